"""What a verdict speaks of: what was compared, counts that can be true, and what a contract needs to be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from harness import Contract, InputError, ModelPair, Request, SeededNoise, Settings, Trace, Verdict, build_decoder
from harness.judge._verdict import Divergence
from harness.reference.sequential import sample_sequential
from harness.runs._result import UNTESTED, Verification
from tests.helpers import Layout, command, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3, 4)))
REQUEST = Request((0, 1), 0)


class Changed:
    """The harness's own decoder, its trace changed."""

    def __init__(self, models: ModelPair, settings: Settings, change: Callable[[Trace], None], claim: str = "") -> None:
        self.inner, self.change = build_decoder(models, settings), change
        self.contract = claim or self.inner.contract

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, noise)
        with torch.inference_mode():  # as the tensors were made
            self.change(trace)
        return trace


def judged(
    change: Callable[[Trace], None], policy: str = "coupled", claim: str = "", contract: Contract | None = None
) -> Verification:
    factory = lambda models, settings: Changed(models, settings, change, claim)  # noqa: E731
    return verify_here(MODELS, factory, [Settings(2, policy=policy)], [REQUEST], contract=contract)


def hide(trace: Trace) -> None:
    trace.intermediates = None


def hide_counts(trace: Trace) -> None:
    trace.target_calls = []


def show_all(trace: Trace) -> None:
    """Change nothing."""


def test_a_decoder_that_shows_everything_has_everything_compared():
    result = judged(show_all)
    assert result.verdict is Verdict.IDENTICAL
    names = {
        "tokens",
        "final f_hat",
        "inputs",
        "rows",
        "guided logits",
        "f_hat of every scale",
    }  # what it counts is its word
    assert (set(result.compared), result.not_compared) == (names, {})


def test_what_was_not_shown_is_said_and_under_contract_a_the_tokens_are_enough():
    result = judged(hide)
    assert result.verdict is Verdict.IDENTICAL
    assert result.compared == ["final f_hat", "tokens"]
    assert set(result.not_compared.values()) == {"the decoder shows no Trace.intermediates"}
    assert "calls and rows" in judged(hide_counts).not_compared


@pytest.mark.parametrize("policy", ["rejection", "match:0.5", "handoff:2", "code:2"])
def test_a_claim_about_the_target_needs_its_tensors(policy: str):
    law = UNTESTED.partition("{")[0] if policy == "rejection" else "-"
    shown = judged(show_all, policy)
    assert shown.settings[0].verdict is Verdict.CONSISTENT
    assert [why.startswith(law) for why in shown.inconclusive] == [True] * (policy == "rejection")
    blind = judged(hide, policy)
    assert blind.verdict is Verdict.INCONCLUSIVE
    why = "nothing of the target was compared: the decoder shows no Trace.intermediates"
    assert blind.inconclusive[0] == why
    assert [reason.startswith(law) for reason in blind.inconclusive[1:]] == [True] * (policy == "rejection")


def test_a_target_that_decides_everything_alone_leaves_nothing_of_the_draft_to_judge():
    result = judged(show_all, "code:4")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "nothing was drafted" in result.inconclusive[0]


@pytest.mark.parametrize("name", ["x_RLD", "rows_RLV", "guided_BLV"])
def test_under_target_first_the_tensors_of_its_scales_are_compared(name: str):
    def change(trace: Trace) -> None:
        assert trace.intermediates is not None
        getattr(trace.intermediates, name)[:, 1] += torch.tensor(1.0)  # position 1: scale 1, the target's

    result = judged(change, "code:2")
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence.scale == 1


def test_a_draft_that_decides_everything_leaves_nothing_of_the_target_to_compare():
    result = judged(show_all, "handoff:4")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "the draft decided every scale alone" in result.inconclusive[0]


def spoil(name: str) -> Callable[[Trace], None]:
    def change(trace: Trace) -> None:
        assert trace.intermediates is not None
        getattr(trace.intermediates, name)[:, -1:] += torch.tensor(1.0)

    return change


@pytest.mark.parametrize("policy", ["rejection", "match:0.5"])
@pytest.mark.parametrize("name", ["x_RLD", "rows_RLV", "guided_BLV", "f_hat_SBCPP"])
def test_the_targets_tensors_are_compared_under_every_contract(name: str, policy: str):
    result = judged(spoil(name), policy)
    parts = {"x_RLD": ("query",), "rows_RLV": ("mask", "cache"), "guided_BLV": ("trace",), "f_hat_SBCPP": ("f_hat",)}
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence.component in parts[name]


def fewer_calls(trace: Trace) -> None:
    trace.target_calls = [1] * len(trace.target_calls)


def fewer_rows(trace: Trace) -> None:
    trace.target_rows = [rows - 1 for rows in trace.target_rows]


def cheap_round(trace: Trace) -> None:
    trace.rounds[1][-1] = replace(trace.rounds[1][-1], target_rows=3)


def free_round(trace: Trace) -> None:
    trace.rounds[0][0] = replace(trace.rounds[0][0], target_rows=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fewer_calls, "target_calls is 1, and cannot be below "),
        (fewer_rows, "target_rows is "),
        (cheap_round, "counts 3 target rows for "),
        (free_round, "counts no target rows, and the target decides every scale"),
    ],
)
@pytest.mark.parametrize("policy", ["coupled", "rejection"])
def test_counts_that_are_too_low_are_defects(change: Callable[[Trace], None], said: str, policy: str):
    result = judged(change, policy)
    found = [d for j in result.settings[0].judgements for d in j.defects]
    assert result.verdict is Verdict.DEFECT
    assert found[0].component == "counts"
    assert said in found[0].detail


@pytest.mark.parametrize("demanded", ["A", "B"])
def test_a_weaker_claim_than_the_demanded_one_is_bad_input(demanded: str):
    with pytest.raises(InputError, match=rf"contract={demanded}: is demanded, and the decoder claims C"):
        judged(show_all, "match:0.5", contract=Contract.of(demanded))


def test_a_stronger_claim_than_the_demanded_one_is_judged_by_itself():
    result = judged(show_all, contract=Contract.QUALITY)
    assert (result.verdict, result.contract) == (Verdict.IDENTICAL, "token-identical")


def test_the_command_line_refuses_a_weaker_claim_before_anything_is_decoded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--contract", "A", "--implementation", "tests.unit.judge.test_claims:lossy", "--seeds", "0", "--quiet")
    assert command(monkeypatch, "verify", *arguments) == 2
    assert "contract=A: is demanded, and the decoder claims C" in capsys.readouterr().err


def lossy(models: ModelPair, settings: Settings) -> Changed:
    return Changed(models, settings, show_all, "quality-preserving")


class Plain:
    """A right decoder that never drafts."""

    contract = "token-identical"

    def __init__(self, models: ModelPair) -> None:
        self.models = models

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        return sample_sequential(self.models.target, self.models.vae, request, noise)


def test_a_sequential_decoder_is_identical_where_it_says_what_it_is():
    factory = lambda models, settings: Plain(models)  # noqa: E731
    assert verify_here(MODELS, factory, [Settings(1)], [REQUEST], sequential=True).verdict is Verdict.IDENTICAL
    unsaid = verify_here(MODELS, factory, [Settings(1)], [REQUEST])
    assert unsaid.verdict is Verdict.INCONCLUSIVE
    assert "pass --sequential" in unsaid.inconclusive[0]


def test_a_message_does_not_expect_what_it_found():
    where = {"seed": 0, "image": 0, "scale": 1, "position": 4}
    same = str(Divergence("guidance", "why", **where, actual=163, expected=163))
    other = str(Divergence("guidance", "why", **where, actual=163, expected=7))
    assert "position 4: token 163 agrees" in same
    assert "position 4: token 163, expected 7" in other


def test_a_wrong_label_is_a_wrong_condition_and_a_wrong_half_is_a_wrong_row():
    def label(models: ModelPair, settings: Settings) -> Relabelled:
        return Relabelled(models, settings)

    (first,) = [verify_here(MODELS, label, [Settings(2)], [REQUEST]).first_divergence]
    assert (first.component, first.scale) == ("condition", 0)
    assert "in the conditional row alone" in first.detail
    result = judged(half)
    assert result.first_divergence.component == "rows"
    assert "input of scale 2 is wrong in the unconditional row alone" in result.first_divergence.detail


def half(trace: Trace) -> None:
    assert trace.intermediates is not None
    trace.intermediates.x_RLD[2:, 5:14] += 1


class Relabelled:
    """Plant: every image gets the next label."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, self.inner = models, build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        other = replace(request, labels=tuple((label + 1) % 3 for label in request.labels or ()))
        return self.inner.decode(other, self.models.noise(other))


def test_a_scale_that_was_never_made_is_said_to_be_so():
    def never(trace: Trace) -> None:
        trace.scale_writes_BS[1, 3] = 0

    assert judged(never).first_divergence.detail == "scale 3 was made final 0 times, not once"
