"""Decodes that end half-way, what is left behind, and two decoders beside each other: here and apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness import Limits, Request, Settings, Terms, Verdict, Verification, verify
from harness.decoders._in_process import tidied_process
from harness.decoders._runner import Other
from tests.helpers import decoder_factory, verify_here
from tests.published.checkout import make
from tests.unit.adapters.test_published import SMALL, settings

TWO = Request((0, 1), 0)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ends")


def run(checkout: Path, in_process: bool, kind: str = "var", **terms: object) -> Verification:
    how = Terms(in_process=in_process, sequential=kind == "var", **terms)  # type: ignore[arg-type]
    return verify(SMALL, f"published:{kind}", [settings(checkout)], [TWO], terms=how)


@pytest.mark.parametrize("in_process", [True, False])
def test_a_crash_keeps_the_trace_so_far(shelf: Path, in_process: bool):
    result = run(make(shelf, "var", "crashes-late"), in_process)
    assert result.first_divergence is not None
    assert result.first_divergence.component == "crash"
    assert "IndexError: list index out of range in forward, basic_var.py:" in result.first_divergence.detail
    (text,) = result.so_far
    assert "scales 0..1 of 4 final; last good tensor: f_hat of scale 1" in text
    assert text.endswith("numbers were read of scales: target 0..1; last seen: target pass over 9 positions")


def test_rounds_before_a_crash_are_counted(shelf: Path):
    result = run(make(shelf, "sdvar", "crashes-late"), True, "sdvar-parallel")
    assert result.so_far[0].startswith("1 round, scales 0..0 of 4 final")


def test_a_mistake_before_a_crash_is_found(shelf: Path):
    result = run(make(shelf, "var", "crashes-late", "flat-guidance"), True)
    assert result.first_divergence is not None
    assert result.first_divergence.component == "crash"  # the first line, and what differed before it behind
    found = result.settings[0].judgements[0].defects[1]
    assert (found.component, found.scale) == ("guidance", 0)
    assert result.before_the_crash is found
    assert run(make(shelf, "var", "crashes-late"), True).before_the_crash is None


def test_a_decode_that_hangs_says_where(shelf: Path):
    result = run(make(shelf, "var", "hangs"), False, limits=Limits(6.0))
    assert result.first_divergence is not None
    assert result.first_divergence.component == "process"
    assert "no answer within 6 s (timeout) in forward, basic_var.py:" in result.first_divergence.detail
    assert "scales 0..1 of 4 final" in result.so_far[0]


LEFT = [
    ("patches-torch", "decoding left torch.rand patched"),
    ("default-dtype", "decoding left the default dtype at torch.float64, not torch.float32"),
    ("moves-generator", "decoding moved PyTorch's global generator"),
]


@pytest.mark.parametrize(("mistake", "said"), LEFT)
@pytest.mark.parametrize("in_process", [True, False])
def test_what_is_left_behind_is_a_remark_and_put_back(shelf: Path, mistake: str, said: str, in_process: bool):
    rand, state = torch.rand, torch.get_rng_state()
    result = run(make(shelf, "var", mistake), in_process)
    assert result.verdict is Verdict.IDENTICAL
    assert result.remarks == {said: 1}
    strict = run(make(shelf, "var", mistake), in_process, strict=True)
    (defect,) = strict.settings[0].judgements[0].defects
    assert (defect.component, defect.detail) == ("environment", said)
    assert strict.settings[0].total("draws") == 60  # and the trace is judged all the same
    assert torch.rand is rand
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrapper_of_pytorchs_own_is_nothing_left_behind():
    def wrapped(seed: int) -> None: ...

    with tidied_process() as left:
        import torch._dynamo  # wraps torch.manual_seed
    assert left == []
    with tidied_process() as left:
        torch.manual_seed = wrapped  # type: ignore[assignment]
    assert left == ["left torch.manual_seed patched"]


def against(shelf: Path, *mistakes: str, in_process: bool = True) -> Verification:
    other = Other("published:var", (settings(make(shelf, "var", *mistakes)),))
    return run(make(shelf, "var"), in_process, against=other)


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [True, False])
def test_two_checkouts_of_the_same_code_are_identical(shelf: Path, in_process: bool):
    result = against(shelf, in_process=in_process)
    assert result.verdict is Verdict.IDENTICAL
    assert "rows" in result.compared


@pytest.mark.parametrize(
    ("mistake", "component", "scale"),
    [("wrong-positions", "positions", 1), ("flat-guidance", "guidance", 0), ("most-likely", "draw", -1)],
)
def test_what_a_change_did_is_named_with_its_scale(shelf: Path, mistake: str, component: str, scale: int):
    result = against(shelf, mistake)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == component
    assert scale in (-1, result.first_divergence.scale)
    judged = result.settings[0].judgements[0]
    assert judged.draws == judged.identical + judged.wrong_tokens + len(judged.ties) + judged.unclaimed


def test_another_decoder_that_crashes_is_told_apart(shelf: Path):
    result = against(shelf, "crashes-late")
    assert result.first_divergence is not None
    assert re.match(r"other published:var of var-crashes-late: IndexError", result.first_divergence.detail)
    assert result.so_far == ["compared up to there: 2 final scales"]


def test_a_checkout_against_itself_is_identical_up_to_its_crash(shelf: Path):
    crashing = make(shelf, "var", "crashes-late")
    result = run(crashing, True, against=Other("published:var", (settings(crashing),)))
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence
    assert (result.settings[0].total("draws"), result.settings[0].total("identical")) == (
        10,
        10,
    )  # two images, scales 0..1
    (text,) = result.so_far
    assert text.startswith("both end alike, component crash (IndexError: list index out of range in forward")
    assert text.endswith("compared up to there: 2 final scales")


def test_the_steps_before_a_crash_are_compared(shelf: Path):
    other = Other("published:var", (settings(make(shelf, "var", "crashes-late")),))
    result = run(make(shelf, "var", "crashes-late", "flat-guidance"), True, against=other)
    (found, *_) = result.settings[0].judgements[0].defects
    assert (result.verdict, found.component, found.scale) == (Verdict.DEFECT, "guidance", 0)
    assert result.so_far[0].startswith("both end alike")


@pytest.mark.parametrize("swapped", [False, True])
def test_a_wrong_input_is_explained_of_the_side_that_has_it(shelf: Path, swapped: bool):
    sides = [make(shelf, "var", "wrong-positions"), make(shelf, "var")]
    one, other = reversed(sides) if swapped else sides
    found = run(one, True, against=Other("published:var", (settings(other),))).first_divergence
    assert found.component == "positions"
    word, folder = ("other" if swapped else "tested"), "var-wrong-positions"
    assert (
        f"; {word} published:var of {folder}: inputs of scale 1 carry position terms 0..3, not 1..4,"
        " and level 0..1, not 1" in found.detail
    )


def test_counts_that_changed_are_no_defect(shelf: Path):
    other = Other("published:var", (settings(make(shelf, "var")),))
    result = verify_here(SMALL, decoder_factory(), [Settings(2)], [TWO], against=other)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
    assert any(text.startswith("seed 0, draft_calls: ") for text in result.changes)
