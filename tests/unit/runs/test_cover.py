"""The default verification covers what it says, and says what it did not cover."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoders._factory import Factory
from harness.decoders._runner import Terms
from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.models._pair import CLOSE_NOISE, ModelPair, close_pair
from harness.mutants import state
from harness.pool._employ import Parallelism
from harness.protocol._decoder import Implementation, Settings
from harness.protocol._request import Request
from harness.protocol._trace import Round, Trace
from harness.runs._cover import (
    Block,
    covering,
    filtered_by_scale,
    plan_of,
    requests_for,
    soft_codes,
    verify_coverage_plan,
)
from harness.runs._decodes import Decodes, Step
from harness.runs._records import CLAIMS, Coverage
from harness.runs._result import Verification
from harness.runs._runfile import RunFileOptions, read_run
from harness.runs._setting import SettingResult
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, digits, seal_anew, tiny, verify_here

FIVE = Layout((1, 2, 3, 4, 5))
HERE = Terms(in_process=True)


def designed(blocks: Sequence[Block], factory: Factory | str, terms: Terms = HERE, **how: Any) -> Verification:
    return verify_coverage_plan(blocks[0].models, Decodes(factory, plan_of(blocks), terms), **how)


def rounds(*turns: tuple[int, int, bool]) -> list[Round]:
    """Return rounds of (first, accepted of 2 drafted, bonus)."""
    return [Round(first, 2, n, n < 2, bonus, 0, 0, 0, 1) for first, n, bonus in turns]


def trace(*images: list[Round]) -> Trace:
    nothing = torch.zeros(1)
    return Trace(nothing, nothing, nothing, rounds=list(images))


def never(made: Coverage) -> list[str]:
    return [word for word, count in CLAIMS.items() if not count(made)]


def test_a_draft_of_the_first_two_scales_is_no_accepted_draft_of_several():
    def whole(S: int, *turns: tuple[int, int, bool]) -> int:
        return Coverage.of(replace(trace(rounds(*turns)), scale_writes_BS=torch.ones(1, S))).whole

    assert [whole(5, (first, 2, False)) for first in (0, 1, 3)] == [0, 1, 1]
    assert whole(2, (0, 2, False)) == 1  # of two scales there are no others
    assert whole(5, (1, 1, False)) == 0


def test_every_claim_is_exercised_by_a_round_of_its_kind_and_by_no_other():
    made = Coverage()
    made.add([Coverage.of(trace(rounds((0, 2, False))))])
    assert never(made) == [word for word in CLAIMS if word != "a draft of several scales that is accepted"]
    apart = trace(rounds((0, 0, False), (1, 1, False), (3, 1, False)), rounds((0, 2, True)))
    made.add([Coverage.of(apart), Coverage.of(trace(rounds((0, 2, False))))])
    assert never(made) == []
    assert (made.rounds, dict(made.accepted), made.whole, made.partial) == (6, {2: 3, 0: 1, 1: 2}, 3, 2)
    assert (made.corrected, made.late, made.bonus, made.apart) == (3, 1, 1, 1)
    assert (made.decodes, made.diverged, made.reused) == (3, 1, 1)


def test_a_correction_that_nothing_comes_after_shows_no_stale_state():
    made = Coverage()
    made.add([Coverage.of(trace(rounds((0, 2, False), (2, 1, False)), rounds((0, 1, False))))])
    assert (made.partial, made.corrected, made.late) == (2, 2, 0)
    assert "a correction after accepted scales" in never(made)


def test_a_target_that_decides_alone_exercises_no_claim_about_drafts():
    alone = [Round(si, 0, 0, False, True, 0, 0, 1, 1) for si in range(2)]
    made = Coverage()
    made.add([Coverage.of(trace([*alone, *rounds((2, 0, True))]))])
    assert (made.rounds, made.judged, dict(made.accepted), made.bonus) == (3, 1, {0: 1}, 1)
    assert "a first drafted scale that is rejected" not in never(made)
    # nothing that the draft proposes is judged: what stands and what falls is nobody's claim
    first = Coverage()
    by_draft = Round(2, 2, 2, False, False, 2, 0, 0, 0)
    first.add([Coverage.of(trace([*alone, by_draft]))] * 2)
    assert (first.rounds, first.judged) == (6, 0)


def test_a_close_draft_is_the_target_moved_by_the_stated_amount():
    models = digits()
    close, again, other = close_pair(models, 0.01), close_pair(models, 0.01), close_pair(models, 0.01, seed=1)
    for name, weight in models.target.weights.items():
        moved = close.draft.weights[name]
        assert torch.equal(moved, again.draft.weights[name])
        assert (moved.dtype, moved.shape) == (weight.dtype, weight.shape)
        if weight.numel() > 1000 and float(weight.abs().max()):
            size = float((moved - weight).square().mean().sqrt() / weight.square().mean().sqrt())
            assert size == pytest.approx(0.01, rel=0.1)
            assert not torch.equal(moved, other.draft.weights[name])
    assert close.target is models.target
    assert (close.name, close.title) == ("digits", "digits, close draft (noise 0.01)")
    same = close_pair(models, 0.0).draft.weights
    assert all(torch.equal(same[name], weight) for name, weight in models.target.weights.items())


@pytest.mark.parametrize("noise", [-0.1, 11.0, float("nan")])
def test_an_amount_outside_its_range_is_refused(noise: float):
    with pytest.raises(InputError, match=r"draft_noise=.*: must lie in \[0, 10\]; pass --draft-noise 0.002"):
        close_pair(tiny(), noise)


def test_the_design_holds_what_it_promises():
    own, close = covering(digits())
    requests = own.requests
    assert requests == (*close.requests, soft_codes(digits()))
    assert close.requests == (*requests_for(digits()), filtered_by_scale(digits()))
    by_scale = close.requests[-1].filters
    pairs = list(pairwise(by_scale))
    assert any(a[0] == b[0] and a[1] != b[1] for a, b in pairs)  # top-p alone differs within a window
    assert any(a[0] != b[0] for a, b in pairs)
    requests = requests_for(digits())
    assert (own.models.draft_noise, close.models.draft_noise) == (None, CLOSE_NOISE)
    assert {setting.bonus for block in (own, close) for setting in block.settings} == {True, False}
    kinds = {type(setting.draft_len) for setting in close.settings}
    assert kinds == {int, str}
    assert any(10 in (request.labels or ()) for request in requests)
    assert {0.0, 1.5} < {request.cfg for request in requests}
    assert min(request.cfg for request in requests) < 0
    assert {request.order for request in requests} == {"image", "batch"}
    assert {request.B for request in requests} >= {1, 2, 3, 4}
    assert any(request.top_k for request in requests)
    assert any(request.top_p for request in requests)
    filters = {(request.top_k > 0, request.top_p > 0) for request in requests}
    assert filters == {(False, False), (True, False), (False, True), (True, True)}
    same_size = [(a, b) for a in requests for b in requests if a is not b and a.B == b.B and a.labels != b.labels]
    assert same_size


@pytest.mark.parametrize("layout", [Layout((1,), depth=1), Layout((1, 2)), FIVE])
def test_the_design_fits_any_pyramid(layout: Layout):
    result = designed(covering(tiny(layout), noise=0.05), build_decoder)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.INCONCLUSIVE), result.first_divergence
    soft = sum(task.request.more_smooth for task in result.plan.tasks)
    assert result.coverage.refused == soft * sum(noise is None for noise in result.plan.drafts)


def test_what_was_never_exercised_is_said_and_inconclusive():
    blocks = covering(tiny(FIVE), noise=0.0)[1:]  # draft = target: nothing ever falls
    result = designed(blocks, build_decoder)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "never exercised: a first drafted scale that is rejected" in result.inconclusive
    assert '"covers": true' in result.to_json()


@pytest.mark.parametrize("ignores", [True, False])
def test_bonus_scales_that_are_asked_for_and_ignored_are_said_where_no_design_asks(ignores: bool):
    def factory(models: ModelPair, settings: Settings) -> Implementation:
        return build_decoder(models, replace(settings, bonus=settings.bonus and not ignores))

    models = close_pair(tiny(FIVE), 0.0)  # draft = target: whatever is drafted is accepted
    result = verify_here(models, factory, [Settings(2, bonus=True)], [Request((0, 1))])
    said = "bonus scales were asked for, and no draft that was accepted whole is followed by one; drop --bonus"
    assert (said in result.inconclusive) is ignores
    assert result.verdict is (Verdict.INCONCLUSIVE if ignores else Verdict.IDENTICAL)


@pytest.mark.parametrize(("policy", "verdict"), [("code:2", Verdict.CONSISTENT), ("code:5", Verdict.INCONCLUSIVE)])
def test_a_policy_that_divides_the_labour_need_not_reject(policy: str, verdict: Verdict):
    result = designed(covering(tiny(FIVE), policy, noise=0.05), build_decoder)
    assert result.verdict is verdict, result.inconclusive
    assert not any("never exercised" in why for why in result.inconclusive)


class Plain:
    """A right decoder that takes numbers alone for a draft length, no bonus, and no unconditional label."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        if settings.bonus:
            raise InputError("bonus", True, "is not built", "drop --bonus")
        self.classes = models.target.config.classes
        self.inner = build_decoder(models, Settings(int(settings.draft_len)))

    def decode(self, request: Any, noise: Any) -> Trace:
        if self.classes in request.labels:
            raise InputError("labels", self.classes, "is no class", "pass others")
        return self.inner.decode(request, noise)


def test_what_a_decoder_refuses_is_counted():
    (block,) = covering(tiny(FIVE), noise=0.1)[1:]
    result = designed([block], Plain)
    kept = len({setting.draft_len for setting in block.settings if isinstance(setting.draft_len, int)})
    unconditional = sum(3 in (request.labels or ()) for request in block.requests)
    asked = len(block.settings) * len(block.requests)
    assert len(result.settings) == kept
    assert result.coverage.refused == asked - kept * (len(block.requests) - unconditional)
    # what it refuses to be built with it does not claim
    assert result.inconclusive == [
        f"{result.coverage.refused} of {asked} decodes were not made: {result.coverage.refused} refused"
    ]
    assert not any(judgement.defects for setting in result.settings for judgement in setting.judgements)


def test_one_decoder_goes_through_all_requests_of_a_block():
    models = tiny(FIVE)
    request = requests_for(models)[0]
    other = replace(request, seed=9)
    block = Block(models, (Settings(2),), (request, other))
    result = designed([block], state.SHARED_BUFFERS)
    assert result.coverage.reused == 1


def test_a_hunt_stops_at_the_first_defect():
    blocks = covering(tiny(FIVE))
    result = designed(blocks, state.TWICE, replace(HERE, first_only=True))
    assert result.verdict is Verdict.DEFECT
    assert sum(len(setting.judgements) for setting in result.settings) == 1
    assert not result.is_whole
    assert result.exercised.not_done == {}  # what was never reached was not refused
    assert {"bonus scales", "guidance off"} <= set(result.exercised.missing)


def require_alike(actual: SettingResult, expected: SettingResult) -> None:
    """Require equal judgements, causes included where both sides searched them: how many depends on the workers."""
    for one, other in zip(actual.judgements, expected.judgements, strict=True):
        assert str(replace(one, defects=[])) == str(replace(other, defects=[]))
        for found, wanted in zip(one.defects, other.defects, strict=True):
            assert found.component == wanted.component
            if "not searched" in found.detail + wanted.detail:
                found, wanted = replace(found, detail=""), replace(wanted, detail="")  # noqa: PLW2901
            assert str(found) == str(wanted)


@pytest.mark.slow
def test_a_design_is_kept_and_spread_as_a_grid_is(tmp_path: Path):
    """The file holds drafts and what was covered; two workers go on with a part of it, to the serial result."""
    blocks = [replace(block, requests=block.requests[:3]) for block in covering(tiny(FIVE), noise=0.05)]
    serial = designed(blocks, "harness.mutants.state:TWICE")
    path = tmp_path / "run.db"
    designed(blocks, "harness.mutants.state:TWICE", store=RunFileOptions(path))
    with closing(sqlite3.connect(path)) as base:
        base.execute("DELETE FROM judged WHERE task = 1")
        seal_anew(base)
        base.commit()
    steps = list[Step]()
    again = designed(
        blocks,
        "harness.mutants.state:TWICE",
        parallelism=Parallelism(2),
        store=RunFileOptions(path, resume=True),
        progress=steps.append,
    )
    assert again.verdict is serial.verdict is Verdict.DEFECT
    assert str(again.coverage) == str(serial.coverage)
    assert str(again.first_divergence) == str(serial.first_divergence)
    for setting, wanted in zip(again.settings, serial.settings, strict=True):
        require_alike(setting, wanted)
    assert [setting.draft for setting in again.settings] == ["own"] * 3 + ["close"] * (len(again.settings) - 3)
    assert sum(step.images for step in steps) == plan_of(blocks).images
    kept, rows = read_run(path)
    assert kept.plan == plan_of(blocks)
    assert kept.plan.drafts[-1] == 0.05
    assert all(row.counts is not None for row in rows)
    other = [blocks[0], *(replace(block, models=close_pair(block.models, 0.06)) for block in blocks[1:])]
    with pytest.raises(InputError, match="is the file of another run: settings"):
        designed(other, "harness.mutants.state:TWICE", store=RunFileOptions(path, resume=True))


def test_what_a_decoder_refuses_is_kept_with_its_reason(tmp_path: Path):
    (block,) = covering(tiny(FIVE), noise=0.1)[1:]
    path = tmp_path / "run.db"
    result = designed([block], Plain, store=RunFileOptions(path))
    _, rows = read_run(path)
    refused = [row for row in rows if row.refused]
    assert len(refused) == sum(setting.refused for setting in result.settings) > 0
    assert {row.refused for row in refused} == {"labels=3: is no class; pass others"}
    again = designed([block], Plain, store=RunFileOptions(path, resume=True))
    assert (again.verdict, again.inconclusive) == (result.verdict, result.inconclusive)
