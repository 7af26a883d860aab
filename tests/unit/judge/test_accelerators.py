"""Accelerated samplers: right ones are consistent from a scale on, and each usual mistake is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness import Terms, Verification, verify
from harness.errors import InputError
from harness.judge import Verdict
from harness.laws import LAWS, Scope, Subject, try_law
from harness.laws._conformance import try_laws_quickly
from harness.protocol import Request, Round, Settings, Trace
from tests import accelerators
from tests.accelerators import (
    Compressed,
    DropsEarly,
    EarlyExit,
    ExitsEarly,
    HandsOver,
    HandsOverEarly,
    KeepsTheSmallOne,
    NotNeutral,
    Pruned,
    PrunesEarly,
    PrunesNothing,
    Remembers,
)
from tests.helpers import Layout, V, tiny
from tests.unit.speculative.test_infinity import REQUEST as OF_TEXTS
from tests.unit.speculative.test_infinity import pair

MODELS = tiny(Layout((1, 2, 3, 4, 5)))
REQUEST, FIRST = Request((0, 2), seed=3), 3
FROM_3, OFF = (("entry", "3"),), (("ratio", "0"),)
RIGHT = (Pruned, EarlyExit, Compressed, HandsOver)
EARLY = (PrunesEarly, ExitsEarly, DropsEarly, HandsOverEarly)
BY_ID = {law.id: law for law in LAWS}


def judged(
    kind: Any, options: Any = FROM_3, first: int | None = FIRST, models: Any = MODELS, **asked: Any
) -> Verification:
    terms = Terms(sequential=True, in_process=True, may_differ_from=first)
    request = asked.get("request", REQUEST)
    return verify(models, kind, [Settings(1, options=options)], [request], terms=terms)


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_one_is_consistent_from_its_scale_on(kind: Any):
    result = judged(kind)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence
    assert result.totals["unclaimed"] > 0
    assert str(result).startswith("CONSISTENT contract quality-preserving from scale 3 on, token-identical before: ")
    assert "tokens before scale 3" in result.compared
    assert result.to_json().count('"tokens from scale 3 on"') == 1


@pytest.mark.parametrize("kind", RIGHT)
def test_at_ratio_0_it_is_its_base(kind: Any):
    assert judged(kind, OFF, None).verdict is Verdict.IDENTICAL


def test_a_base_that_is_not_neutral_is_a_defect():
    assert judged(NotNeutral, OFF, None).verdict is Verdict.DEFECT


@pytest.mark.parametrize("kind", EARLY)
def test_one_that_touches_an_earlier_scale_is_a_defect_there(kind: Any):
    first = judged(kind).first_divergence
    assert first is not None
    # keys are left out of earlier scales; positions and blocks of this one, which the decoder says itself
    assert (first.scale, first.component == "skipped") == (2, kind is not DropsEarly)
    left = {PrunesEarly: 5, ExitsEarly: 9, DropsEarly: 0, HandsOverEarly: 9}[kind]
    said = f"the decoder says that it left out {left} positions of scale 2, which is before scale 3; "
    assert first.detail.startswith(said) == bool(left)
    assert judged(kind, first=2).verdict is Verdict.CONSISTENT
    assert judged(kind, first=None).verdict is Verdict.DEFECT


class Undecided(Pruned):
    """Says that no target pass decided scale 2, and draws other tokens there."""

    def decode(self, request: Request, noise: Any) -> Trace:
        trace, pyramid = super().decode(request, noise), self.models.pyramid
        rounds = [
            Round(si, 1, 1, False, False, pyramid.tokens(si), 0, 0, 0 if si == 2 else pyramid.end(si)) for si in pyramid
        ]
        tokens_BL = trace.tokens_BL.clone()
        tokens_BL[:, pyramid.span(2)] = (tokens_BL[:, pyramid.span(2)] + 1) % V
        calls = [pyramid.S - 1] * request.B
        rows = [sum(each.target_rows for each in rounds)] * request.B
        return replace(trace, tokens_BL=tokens_BL, rounds=[rounds] * request.B, target_calls=calls, target_rows=rows)


def test_a_scale_before_it_that_no_target_pass_decided_is_named_so():
    first = judged(Undecided).first_divergence
    assert first is not None
    assert (first.component, first.scale) == ("skipped", 2)
    assert first.detail.startswith("no target pass decided scale 2, which is before scale 3; ")


def test_one_that_saves_nothing_proves_nothing():
    result = judged(PrunesNothing)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.inconclusive == ["nothing was saved in 2 of 2 images, as far as Trace.skipped_BSN and rounds show"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16, torch.uint8])
def test_counts_may_be_of_any_width(dtype: torch.dtype):
    class Narrow(Pruned):
        def decode(self, request: Request, noise: Any) -> Trace:
            trace = super().decode(request, noise)
            assert trace.skipped_BSN is not None
            return replace(trace, skipped_BSN=trace.skipped_BSN.to(dtype))

    result = judged(Narrow)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence


class OneImage(Pruned):
    """Says of the first image alone that it left something out."""

    def decode(self, request: Request, noise: Any) -> Trace:
        trace = super().decode(request, noise)
        assert trace.skipped_BSN is not None
        return replace(trace, skipped_BSN=torch.stack((trace.skipped_BSN[0], 0 * trace.skipped_BSN[1])))


def test_every_image_is_to_be_saved():
    (why,) = judged(OneImage).inconclusive
    assert why.startswith("nothing was saved in 1 of 2 images, ")


class Whole(Pruned):
    """Says that it leaves something out, and computes all of it."""

    def rows(self, walk: Any, x_RlD: Any, si: int) -> Any:
        self.left_SN[si] = 1
        return walk.rows(x_RlD, si)


def test_who_leaves_nothing_out_and_says_so_proves_nothing():
    (why,) = judged(Whole).inconclusive
    assert why == "what it says it left out changed nothing: its logits from scale 3 on are the whole target's"


class ForbiddenEarly(Pruned):
    """Claims contract B, and draws one token before its scale that the filter forbids."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.contract, self.ratio = "distribution-identical", 0.0

    def decode(self, request: Request, noise: Any) -> Trace:
        trace = super().decode(replace(request, top_k=0), noise)
        return replace(trace, skipped_BSN=1 + 0 * trace.skipped_BSN)


def test_under_contract_b_every_token_is_counted_once():
    result = judged(ForbiddenEarly, request=replace(REQUEST, top_k=1))
    assert result.verdict is Verdict.DEFECT
    totals = result.totals
    assert totals["wrong_tokens"] > 0
    assert totals["unclaimed"] >= 0
    assert totals["draws"] == sum(totals[name] for name in ("identical", "ties", "wrong_tokens", "unclaimed"))


def test_no_law_is_held_by_saying_that_all_was_left_out():
    class Shown(Pruned):
        def decode(self, request: Request, noise: Any) -> Trace:
            trace = super().decode(request, noise)
            shown = trace.shown
            wrong = replace(
                trace, intermediates=replace(shown, x_RLD=shown.x_RLD + 1), skipped_BSN=0 * trace.skipped_BSN + 1
            )
            return wrong if self.is_silent else replace(wrong, skipped_BSN=None)

        is_silent = True

    silent = try_law(BY_ID["positions.trace"], Subject(Shown), Scope(6, 3, shrink_s=0.0))
    assert silent.verdict is not Verdict.IDENTICAL
    Shown.contract = property(lambda self: "token-identical", lambda self, name: None)  # leaves nothing out
    assert try_law(BY_ID["positions.trace"], Subject(Shown), Scope(6, 3, shrink_s=0.0)).verdict is Verdict.DEFECT
    del Shown.contract
    Shown.is_silent = False
    assert try_law(BY_ID["positions.trace"], Subject(Shown), Scope(6, 3, shrink_s=0.0)).verdict is Verdict.DEFECT


@pytest.mark.parametrize("law_id", ["reuse.alternating", "reuse.labels"])
def test_one_that_remembers_the_image_before_breaks_the_laws_of_reuse(law_id: str):
    rows = [try_law(BY_ID[law_id], Subject(kind), Scope(6, 3, shrink_s=0.0)) for kind in (Pruned, Remembers)]
    assert [row.verdict for row in rows] == [Verdict.IDENTICAL, Verdict.DEFECT]


def test_an_answer_may_not_depend_on_the_request_before():
    first = judged(Remembers, (("entry", "4"),), 4).first_divergence  # it keeps the last scale's alone
    assert first is not None
    said = "the answer is another one than a new decoder's after a request of labels (1, 0), seed 4"
    assert (first.component, first.detail, first.scale) == ("reuse", said, 4)
    assert REQUEST.labels is not None
    assert (first.seed, first.label) == (3, REQUEST.labels[first.image])
    assert 30 <= first.position < MODELS.pyramid.L


@pytest.mark.parametrize("kind", [Remembers, KeepsTheSmallOne])
@pytest.mark.parametrize("family", ["var", "infinity"])
def test_in_either_family_one_that_goes_on_from_an_earlier_image_is_said_to_remember(kind: Any, family: str):
    models, request = (MODELS, REQUEST) if family == "var" else (pair(dtype=torch.float32, rounds=False), OF_TEXTS)
    first = judged(kind, (("entry", "4"),), 4, models, request=request).first_divergence
    assert first is not None
    assert (first.component, first.scale) == ("reuse", 4)


def test_who_draws_otherwise_in_every_process_is_not_said_to_remember():
    class Drifts(Pruned):
        times = 0

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            Drifts.times += 1

        def rows(self, *given: Any) -> Any:
            return super().rows(*given) + torch.randn(V, generator=torch.Generator().manual_seed(Drifts.times))

    assert judged(Drifts, models=MODELS).verdict is Verdict.CONSISTENT


@pytest.mark.parametrize("kind", RIGHT)
def test_no_law_accuses_a_right_one(kind: Any):
    tried = try_laws_quickly(kind)
    assert not tried.broken
    assert tried.held > 12


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        *((kind, Verdict.CONSISTENT) for kind in RIGHT),
        *((kind, Verdict.DEFECT) for kind in EARLY),
        (PrunesNothing, Verdict.INCONCLUSIVE),
    ],
)
def test_texts_and_bits_are_judged_likewise(kind: Any, verdict: Verdict):
    models = pair(dtype=torch.float32, rounds=False)
    result = judged(kind, (("entry", "4"),), 4, models, request=OF_TEXTS)
    assert result.verdict is verdict, result.first_divergence
    assert result.first_divergence is None or result.first_divergence.scale == 3


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda skipped: skipped + 99, "skipped_BSN says 99 of 1 positions in block 0"),
        (lambda skipped: skipped - 1, "skipped_BSN says -1 of 1 positions in block 0"),
        (lambda skipped: skipped[:, 1:], "skipped_BSN is (2, 4, 2), not (2, 5, 2)"),
        (lambda skipped: skipped.double(), "skipped_BSN is torch.float64, not integers"),
    ],
)
def test_what_was_left_out_has_a_form(change: Any, clause: str):
    class Odd(Pruned):
        def decode(self, request: Request, noise: Any) -> Trace:
            trace = super().decode(request, noise)
            return replace(trace, skipped_BSN=change(trace.skipped_BSN))

    first = judged(Odd).first_divergence
    assert first is not None
    assert (first.component, first.detail) == ("trace", clause)


@pytest.mark.parametrize(("first", "rule"), [(0, "must be a scale after the first, 1..4"), (5, "must be a scale")])
def test_the_scale_is_one_after_the_first(first: int, rule: str):
    with pytest.raises(InputError, match=f"^may_differ_from={first}: {rule}"):
        judged(Pruned, first=first)


def test_who_claims_every_token_may_not_differ():
    rule = (
        r"^may_differ_from=3: is for a decoder that claims B or C, and this one claims A \(token-identical\); drop it"
    )
    with pytest.raises(InputError, match=rule):
        judged(Pruned, OFF)


def test_every_stand_in_is_of_one_kind():
    kinds = {kind for kind in vars(accelerators).values() if isinstance(kind, type) and hasattr(kind, "mistake")}
    assert {kind for kind in kinds if kind.mistake} == {*EARLY, PrunesNothing, Remembers, KeepsTheSmallOne}
