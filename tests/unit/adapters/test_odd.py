"""Right code in odd dress passes, and wrong code that the adapters once took for right is named."""

from __future__ import annotations

from pathlib import Path

from harness import Request, Settings, Verdict, Verification
from harness.runs.factory import load_factory
from tests.helpers import Layout, tiny, verify_here
from tests.published.checkout import edited

SMALL = tiny(Layout((1, 2, 3, 4)))
TWO = Request((0, 1), 0)


def settings(checkout: Path, **options: object) -> Settings:
    return Settings("", False, "", (("checkout", str(checkout)), *((n, str(v)) for n, v in options.items())))


def run(kind: str, checkout: Path, request: Request = TWO, **options: object) -> Verification:
    factory = load_factory(f"published:{kind}")
    return verify_here(SMALL, factory, [settings(checkout, **options)], [request], sequential=kind == "var")


def test_arguments_may_be_given_by_name_in_any_order(tmp_path: Path):
    checkout = edited(
        tmp_path,
        "var",
        ("(logits, top_k=top_k, top_p=top_p, rng=rng)", "(rng=rng, top_k=top_k, logits_BlV=logits, top_p=top_p)"),
        ("(si, S, f_hat, h)", "(h_BCpp=h, f_hat=f_hat, SN=S, si=si)"),
    )
    network = checkout / "models" / "network.py"
    network.write_text(network.read_text().replace("embedding(idx_Bl)", "embedding(input=idx_Bl)"))
    result = run("var", checkout)
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence
