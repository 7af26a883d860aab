"""How often the reference runs for a decode: along its tokens where all are claimed, freely where distances count."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from harness.decoders import Terms
from harness.errors import InputError
from harness.judge import Evidence, Verdict, _evidence, judge
from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.protocol.noise import Noise
from harness.reference.sequential import KnownScales, sample_sequential
from harness.rounding import quick_budget
from harness.runs import _work
from harness.runs._plan import Task
from harness.runs._work import Verifier, VerifyWork
from harness.runs.pictures import pngs
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3, 4)))
REQUEST = Request((0, 1, 2), 7)
BUDGET = quick_budget(MODELS)
HERE = Terms(in_process=True, sequential=True)


@dataclass
class OtherTokens:
    """The target's tokens, but for one that is another one; all that follows is right."""

    models: ModelPair
    draw: int
    contract: Contract = Contract.TOKENS

    def decode(self, request: Request, noise: Noise) -> Trace:
        target, vae, pyramid = self.models.target, self.models.vae, self.models.pyramid
        end = pyramid.end(pyramid.level_of(self.draw))
        first_Bn = sample_sequential(target, vae, request, noise).tokens_BL[:, :end].clone()
        first_Bn[1, self.draw] = (first_Bn[1, self.draw] + 1) % target.config.V
        run = sample_sequential(target, vae, request, noise, first_Bn)
        return replace(run, tokens_BL=torch.cat((first_Bn, run.tokens_BL[:, end:]), 1))


def at_draw(models: ModelPair, settings: Settings) -> OtherTokens:
    return OtherTokens(models, int(settings.draft_len))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """List every run of the reference: for whom, and how many scales were known."""
    seen: list[tuple[str, int]] = []

    def counted(word: str) -> Any:
        def run(*given: Any, **named: Any) -> Trace:
            known = [each for each in (*given, *named.values()) if isinstance(each, KnownScales)]
            seen.append((word, len(known[0].scales) if known else 0))
            return sample_sequential(*given, **named)

        return run

    monkeypatch.setattr(_work, "sample_sequential", counted("task"))
    monkeypatch.setattr(_evidence, "sample_sequential", counted("along"))
    return seen


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge as if every decoder had a process of its own."""
    monkeypatch.setattr(Verifier, "_is_apart", lambda self, number: True)


def verifier(factory: Any, settings: Sequence[Settings], kept: int = 0, **terms: Any) -> Verifier:
    terms = {"in_process": True, "sequential": True, **terms}
    return VerifyWork(MODELS, factory, tuple(settings), REQUEST.B, BUDGET, Terms(**terms), pictures=kept).open()


@pytest.mark.usefixtures("apart")
def test_a_decode_whose_tokens_differ_costs_one_run_and_is_judged_as_from_a_free_one(runs: list[tuple[str, int]]):
    lengths = [Settings(2), Settings(9)]  # other tokens from scale 1 on, and from scale 2 on
    done = verifier(at_draw, lengths).do(Task(0, REQUEST, (0, 1)))
    assert runs == [("task", 0), ("along", 2)]  # the second goes on from what both share: scales 0 and 1
    free = sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
    for row, setting in zip(done.rows, lengths, strict=True):
        actual = at_draw(MODELS, setting).decode(REQUEST, MODELS.noise(REQUEST))
        due = judge(Evidence(MODELS, REQUEST, actual, free, BUDGET), drafts=False)
        found = row.judgement
        assert found.verdict is due.verdict is Verdict.DEFECT
        names = ("draws", "identical", "wrong_tokens", "wrong_tensors", "ties", "defects")
        assert [found.count(name) for name in names] == [due.count(name) for name in names]
        assert [(d.place, d.component, d.expected) for d in found.defects] == [
            (d.place, d.component, d.expected) for d in due.defects
        ]


@pytest.mark.usefixtures("apart")
def test_decodes_of_the_same_tokens_share_one_run(runs: list[tuple[str, int]]):
    done = verifier(build_decoder, [Settings(1), Settings(3)], sequential=False).do(Task(0, REQUEST, (0, 1)))
    assert runs == [("task", 0)]
    assert [row.judgement.verdict for row in done.rows] == [Verdict.IDENTICAL] * 2
    assert done.rows[0].judgement.surprise == done.rows[1].judgement.surprise


@pytest.mark.usefixtures("apart")
def test_distances_are_from_a_free_run_whoever_was_judged_before(runs: list[tuple[str, int]]):
    def either(models: ModelPair, settings: Settings) -> OtherTokens:
        return OtherTokens(models, 2, Contract.TOKENS if settings.draft_len == 1 else Contract.QUALITY)

    done = verifier(either, [Settings(1), Settings(2)]).do(Task(0, REQUEST, (0, 1)))
    assert [word for word, _ in runs] == ["task", "task", "along"]
    distances = done.rows[1].judgement.distances
    assert [each.tokens > 0 for each in distances] == [False, True, False]


@pytest.mark.usefixtures("apart")
def test_a_picture_beside_other_tokens_is_of_the_image_that_sequential_decoding_draws():
    done = verifier(at_draw, [Settings(2)], kept=3).do(Task(0, REQUEST, (0,)))
    worst = min(done.pictures, key=lambda picture: picture.rank)
    free = sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
    assert worst.row == 1
    assert worst.reference == pngs(MODELS.vae.decode(free.f_hat_BCPP[1:2]))[0] != worst.decoder


def test_a_request_that_the_networks_do_not_take_reaches_no_decoder():
    asked: list[Request] = []

    class Asked(OtherTokens):
        def decode(self, request: Request, noise: Noise) -> Trace:
            asked.append(request)
            return super().decode(request, noise)

    with pytest.raises(InputError, match="labels"):
        verifier(lambda models, settings: Asked(models, 2), [Settings(1)]).do(Task(0, Request((10**6,), 0), (0,)))
    assert not asked


@pytest.mark.usefixtures("apart")
def test_tokens_that_no_network_can_run_along_are_judged_by_a_free_run(runs: list[tuple[str, int]]):
    class Beyond(OtherTokens):
        def decode(self, request: Request, noise: Noise) -> Trace:
            trace = super().decode(request, noise)
            return replace(trace, tokens_BL=trace.tokens_BL + MODELS.target.config.V)

    done = verifier(lambda models, settings: Beyond(models, 2), [Settings(1)]).do(Task(0, REQUEST, (0,)))
    assert runs == [("task", 0)]
    assert done.rows[0].judgement.verdict is Verdict.DEFECT


def test_in_the_judges_process_the_reference_runs_before_a_decoder_can_write_into_what_both_read(
    runs: list[tuple[str, int]],
):
    models = deepcopy(MODELS)  # it is spoiled

    class Spoils(OtherTokens):
        @torch.inference_mode()
        def decode(self, request: Request, noise: Noise) -> Trace:
            for bias_3D, _ in models.target._attention_constants:
                bias_3D.add_(0.5)
            return sample_sequential(models.target, models.vae, request, noise)

    work = VerifyWork(models, lambda models, settings: Spoils(models, 2), (Settings(1),), 3, BUDGET, HERE)
    done = work.open().do(Task(0, REQUEST, (0,)))
    assert runs[0] == ("task", 0)
    assert done.rows[0].judgement.verdict is Verdict.DEFECT


def test_a_process_of_its_own_is_known_by_what_keeps_it_apart():
    work = VerifyWork(MODELS, "harness.speculative.sampler:build_decoder", (Settings(1),), 3, BUDGET, Terms())
    for terms, is_apart in ((Terms(), True), (Terms(in_process=True), False)):
        opened = replace(work, terms=terms).open()
        assert opened._is_apart(0) is is_apart
        opened.close()
