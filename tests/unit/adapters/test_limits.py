"""What the adapter cannot do is bad input, with file and line, and no defect of the code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness import Settings, Terms, Verdict, verify
from harness.adapters import Sampler, published
from harness.errors import InputError
from harness.models._pair import ModelPair
from tests.helpers import verify_here
from tests.published.checkout import edited, make
from tests.unit.adapters.test_published import SMALL, TWO, run, settings

HELPERS = "models/helpers.py"
DRAWN = (
    "return torch.multinomial(probs, num_samples=num_samples, replacement=True, generator=rng).view(B, l, num_samples)"
)
ONE_BY_ONE = "return torch.stack([torch.multinomial(row, 1, generator=rng) for row in probs]).view(B, l, 1)"
GUMBEL = "return (probs.log() - (-torch.rand(probs.shape, generator=rng).log()).log()).argmax(-1).view(B, l, 1)"
LOGGED = f"torch.rand(1, generator=rng)\n    {DRAWN}"
RACE = "return (probs / torch.empty_like(probs).exponential_(1.0, generator=rng)).argmax(-1).view(B, l, 1)"


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (
            ONE_BY_ONE,
            r"models/helpers.py:\d+ draws by multinomial of \(11,\), .* belongs to no scale of 2 images",
        ),
        (GUMBEL, r"models/helpers.py:\d+ draws by rand: what decides the tokens of scale 0 has no address"),
    ],
)
def test_a_draw_without_an_address_is_bad_input_with_file_and_line(tmp_path: Path, draw: str, said: str):
    with pytest.raises(InputError, match=f"numbers=shared: .*{said}"):
        run("var", edited(tmp_path, "var", (DRAWN, draw), of=HELPERS))


@pytest.mark.parametrize("draw", [LOGGED, RACE], ids=["beside", "race"])
def test_a_draw_that_decides_nothing_and_a_race_of_its_own_are_right(tmp_path: Path, draw: str):
    assert run("var", edited(tmp_path, "var", (DRAWN, draw), of=HELPERS)).verdict is Verdict.IDENTICAL


def test_what_claims_no_tokens_may_draw_as_it_likes(tmp_path: Path):
    result = run("sdvar-test3", edited(tmp_path, "sdvar", (DRAWN, GUMBEL), of=HELPERS), entry_num=2)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence


def test_a_sampler_that_draws_nothing_is_still_a_defect(tmp_path: Path):
    assert run("var", make(tmp_path, "var", "most-likely")).verdict is Verdict.DEFECT


# Arguments of the constructor.

NETWORK = "models/network.py"
MORE = (
    ("16),\n    ):", "16), use_moe=False, experts=4, norm_eps=1e-6,\n    ):"),
    (
        "super().__init__()\n        self.Cvae",
        "super().__init__()\n        self.use_moe, self.experts = use_moe, experts\n        self.Cvae",
    ),
)


def with_more(folder: Path) -> Path:
    return edited(folder, "var", *MORE, of=NETWORK)


def test_defaults_that_nobody_gave_are_named_in_the_result(tmp_path: Path):
    checkout = with_more(tmp_path)
    result = run("var", checkout)
    assert result.verdict is Verdict.IDENTICAL
    (said,) = result.remarks
    assert said.startswith("published code: VAR is built with use_moe=False, experts=4, as its constructor has it")
    given = run("var", checkout, **{"init.use_moe": "true", "init.experts": 8})
    assert (given.verdict, given.remarks) == (Verdict.IDENTICAL, {})


def test_an_option_reaches_the_constructor(tmp_path: Path):
    code = published(with_more(tmp_path), SMALL, {"init.use_moe": "true", "init.experts": "8"})
    assert (code.target.use_moe, code.target.experts, code.draft.experts) == (True, 8, 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("init.moe", "is no argument of VAR's constructor; pass one of init.use_moe, init.experts"),
        ("init.depth", "is fixed by the networks"),
    ],
)
def test_an_argument_that_there_is_not_is_refused(tmp_path: Path, name: str, said: str):
    with pytest.raises(InputError, match=f"option={name}=1: {said}"):
        run("var", with_more(tmp_path), **{name: 1})


# Modules that somebody can stub.

WANTS = ("import torch\n", "import torch\nimport not_here\nimport not_here.deep as deep\nMADE = deep.three()\n")


def test_a_missing_module_can_be_stubbed(tmp_path: Path):
    checkout = edited(tmp_path, "var", WANTS)
    with pytest.raises(
        InputError, match=r"models/var.py:\d+ needs the package not_here, .*or pass --stub not_here=FILE"
    ):
        run("var", checkout)
    empty, deep = tmp_path / "empty.py", tmp_path / "deep.py"
    empty.write_text("")
    deep.write_text("def three():\n    return 3\n")
    result = run("var", checkout, **{"stub.not_here": empty, "stub.not_here.deep": deep})
    assert result.verdict is Verdict.IDENTICAL
    assert (
        published(checkout, SMALL, {"stub.not_here": str(empty), "stub.not_here.deep": str(deep)}).checkout.module.MADE
        == 3
    )
    with pytest.raises(InputError, match=r"stub=not_here=.*nowhere.py: is no file of Python"):
        run("var", checkout, **{"stub.not_here": tmp_path / "nowhere.py"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import sklearn_not_here", "needs the package sklearn_not_here"),
        ("import models.not_here", "needs models.not_here, which the checkout itself does not hold"),
    ],
)
def test_a_missing_module_is_called_what_it_is(tmp_path: Path, line: str, said: str):
    with pytest.raises(InputError, match=said):
        run("var", edited(tmp_path, "var", ("import torch\n", f"import torch\n{line}\n")))


def test_code_that_parses_arguments_at_import_sees_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["sdvar-harness", "verify", "--implementation", "published:var"])
    parse = "import argparse\nimport torch\nargparse.ArgumentParser().parse_args()\n"
    assert run("var", edited(tmp_path, "var", ("import torch\n", parse))).verdict is Verdict.IDENTICAL


# A scale that was rejected and kept.


def test_a_rejected_scale_that_stays_is_neither_corrected_nor_silent(tmp_path: Path):
    anew = (
        "own = sample_with_top_k_top_p_(logits[0].clone(), top_k=state.top_k, top_p=state.top_p, rng=state.rng)",
        "",
    )
    checkout = edited(tmp_path, "sdvar", anew, ("tokens, accepted = [own[:, :, 0]], 1", "accepted = 1"))
    result = run("sdvar-parallel", checkout, gamma=2)
    row = result.settings[0].rows[0]
    assert sum(map(sum, row.counts.accepted_scales)) == 2 * SMALL.pyramid.S  # all final scales of both images
    (said,) = result.remarks
    assert said.startswith("published code: ")
    assert said.endswith("that its rule rejected stayed as drafted")
    right = run("sdvar-parallel", make(tmp_path / "right", "sdvar"), gamma=2)
    assert right.remarks == {}


def test_a_remark_on_what_the_code_is_fails_no_strict_run(tmp_path: Path):
    result = verify_here(SMALL, "published:var", [settings(with_more(tmp_path))], [TWO], sequential=True, strict=True)
    assert (result.verdict, len(result.remarks)) == (Verdict.IDENTICAL, 1)


@pytest.mark.parametrize("in_process", [True, False])
def test_a_sampler_that_reads_no_draft_length_runs_once(tmp_path: Path, in_process: bool):
    checkout = make(tmp_path, "var")

    def mine(models: ModelPair, settings: Settings) -> Sampler:
        code = published(checkout, models)
        return code.sampler(code.target.autoregressive_infer_cfg)

    seen: list[int] = []
    terms = Terms(sequential=True, in_process=in_process)
    result = verify(SMALL, mine, [Settings(length) for length in (1, 2, 4)], [TWO], lambda: seen.append(1), terms=terms)
    assert [str(each.settings) for each in result.settings] == ["as it is"]
    assert (result.images, result.verdict) == (2, Verdict.IDENTICAL)
    one = verify(SMALL, mine, [Settings(2)], [TWO], terms=terms)
    assert [str(each.settings) for each in one.settings] == ["draft_len=2"]


def test_a_loop_in_rounds_is_asked_for_every_length(tmp_path: Path):
    wanted = [replace(settings(make(tmp_path, "sdvar")), draft_len=length) for length in (1, 2)]
    result = verify_here(SMALL, "published:sdvar-parallel", wanted, [TWO])
    assert [each.settings.draft_len for each in result.settings] == [1, 2]
