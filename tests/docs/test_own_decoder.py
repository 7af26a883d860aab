"""Python that pages show runs as it is written there: a decoder of contract B, and a file for `evidence`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import harness
from harness.commands.init import TEMPLATE
from harness.decoders import Terms
from harness.judge import Verdict
from harness.protocol import Request, Settings
from harness.reference.sequential import sample_sequential
from tests.docs.pages import ROOT, blocks
from tests.helpers import command, tiny
from tests.unit.judge.planted_lines import LOCKSTEP, module_of

DRAWS = 40_000
DRAW = "    def draw("
(SAMPLED,) = (text for text in blocks(ROOT / "docs" / "own-decoder.md", "python") if text.startswith("def draw("))


(FORMULAS,) = (text for text in blocks(ROOT / "docs" / "own-decoder.md", "python") if "def f_hat_of(" in text)


def far_from_the_reference(text: str) -> float:
    """Return how far f_hat and inputs of the page's formulas are from the reference's, at most."""
    names: dict[str, Any] = {"F": torch.nn.functional}
    exec(compile(text, "own-decoder.md", "exec"), names)
    models, request = tiny(), Request((0, 2), 3)
    run = sample_sequential(models.target, models.vae, request, models.noise(request))
    shown, pyramid, network = run.shown, models.pyramid, models.target
    tokens, far = [run.tokens_BL[:, pyramid.span(si)] for si in pyramid], 0.0
    for si in pyramid:
        f_hat_BCPP = names["f_hat_of"](models, tokens[: si + 1])
        far = max(far, float((f_hat_BCPP - shown.f_hat_SBCPP[si]).abs().max()))
        if si + 1 < pyramid.S:
            span = pyramid.span(si + 1)
            x_BlD = network.embed(names["raw_input_of"](models, f_hat_BCPP, si + 1))
            x_BlD = x_BlD + network.lvl_SD[si + 1] + network.pos_LD[span]
            far = max(far, float((x_BlD.repeat(2, 1, 1) - shown.x_RLD[:, span]).abs().max()))
    return far


@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ("bicubic", "bilinear"), ("area", "bicubic"),
     ("= f_hat_BCPP +", "="), ("phi(codes_BCpp, si", "phi(codes_BCpp, 0")],
)  # fmt: skip
def test_the_pages_formulas_are_the_references_and_a_mistake_in_one_is_seen(old: str, new: str):
    assert old in FORMULAS
    far = far_from_the_reference(FORMULAS.replace(old, new) if old else FORMULAS)
    assert (far > 1e-3) if old else (far < 1e-5)


(CACHE,) = (text for text in blocks(ROOT / "docs" / "own-decoder.md", "python") if text.startswith("class KV"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ("stop] = v", "stop] = k"), ("< levels_L[None", "<= levels_L[None"), ("fill + k", "fill + 1 + k")],
)
def test_a_decoder_with_the_pages_cache_and_mask_is_right_and_a_mistake_in_one_is_seen(
    old: str, new: str, tmp_path: Path
):
    assert old in CACHE
    before, after = LOCKSTEP.index("class KV:"), LOCKSTEP.index("class Net:")
    text = f"{LOCKSTEP[:before]}{CACHE.replace(old, new) if old else CACHE}\n\n{LOCKSTEP[after:]}"
    own = text[text.index("        rows, columns = ") : text.index("        h = self.net.hidden(")]
    text = text.replace(own, "        bias = mask_of(self.pyramid, begin, end)[0, 0]\n")
    decoder = module_of(text, tmp_path / "cached_decoder.py").factory
    terms = Terms(in_process=True)
    result = harness.verify(tiny(), decoder, Settings(2), [Request((0, 1), 0)], terms=terms)
    assert (result.verdict is Verdict.DEFECT) == bool(old), str(result.first_divergence)
    assert old or result.verdict is Verdict.IDENTICAL


def sampled(folder: Path, example: str) -> ModuleType:
    """Return what the page makes of the decoder that `init` writes."""
    head, rest = TEMPLATE.read_text().split(DRAW)
    tail = rest[rest.index("    def f_hat(") :]
    text = head + textwrap.indent(example, "    ") + "\n" + tail
    text = text.replace('contract = "token-identical"', 'contract = "distribution-identical"')
    text = text.replace(
        "self.models, self.length = decoder", "self.drafted = {}\n        self.models, self.length = decoder"
    )
    return module_of(text, folder / "sampled_decoder.py")


def chi_square(example: str) -> float:
    """Return how far the tokens that the example draws for 40,000 positions are from the target's law: chi-square."""
    generator = torch.Generator().manual_seed(0)
    p_V, q_V = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.3, 0.1, 0.4])
    numbers: dict[str, Any] = {
        "exponential": lambda si, stream, reader: torch.empty(1, DRAWS, 4).exponential_(generator=generator),
        "uniform": lambda si, stream, reader: torch.rand(1, DRAWS, generator=generator),
    }
    names: dict[str, Any] = {"torch": torch}
    exec(compile(example, "own-decoder.md", "exec"), names)
    image = SimpleNamespace(
        law=lambda of_V, si: of_V.expand(DRAWS, 4), noise=SimpleNamespace(**numbers), b=0, drafted={}
    )
    names["draw"](image, q_V, 0, "draft")
    counts_V = torch.bincount(names["draw"](image, p_V, 0, "target"), minlength=4)
    return float(((counts_V - DRAWS * p_V) ** 2 / (DRAWS * p_V)).sum())


def test_the_example_of_contract_b_keeps_the_law_and_a_bug_in_it_does_not():
    assert len(SAMPLED.splitlines()) < 17
    assert chi_square(SAMPLED) < 25  # 3 degrees of freedom: exceeded by a right one in 2 of 100,000
    for right, wrong in (
        ("keep_l = u_l * q_lV", "keep_l = u_l * 2 * q_lV"),
        ("(law_lV - q_lV).clamp(min=0)", "law_lV"),
    ):
        assert chi_square(SAMPLED.replace(right, wrong)) > 100


def test_the_decoder_that_the_page_makes_has_no_defect(tmp_path: Path):
    models, requests = tiny(), [Request((0, 1), seed) for seed in range(2)]
    terms = Terms(in_process=True)
    result = harness.verify(models, sampled(tmp_path, SAMPLED).factory, Settings(2), requests, terms=terms)
    assert result.verdict is not Verdict.DEFECT, str(result.first_divergence)
    assert result.contract == "distribution-identical"
    assert "tokens" in result.not_compared


def test_tokens_of_a_decoder_of_ones_own_are_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (script,) = (text for text in blocks(ROOT / "docs" / "evidence.md", "python") if "mydecoder" in text)
    module = ModuleType("mydecoder")
    module.factory = harness.build_decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mydecoder", module)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace("range(10)", "range(2)"), "evidence.md", "exec"), {})
    assert command(monkeypatch, "evidence", "mine.safetensors") == 3
    assert "2 images prove little" in capsys.readouterr().out
