"""The work of a verification: one task at a time, wherever it is done.

Promise: what comes of a task depends on the task, the weights and the machine alone, so that the same task gives the
same rows in this process, in a worker and on a cluster; but for the causes of wrong tensors beyond the first ones that
a worker meets, which are not searched (`judge.Searches`).
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness import judge
from harness.adapters import OF_CODE
from harness.clock import timed
from harness.decoders import Built, Factory, OwnProcess, Runner, Terms, claimed_contract, factory_name, start_runner
from harness.errors import InputError
from harness.judge import Divergence, Evidence, Judgement, Searches
from harness.models import ModelPair, close_pair
from harness.protocol import OF_SETTINGS, Contract, Request, Settings, Trace, declined
from harness.protocol.noise import Noise
from harness.reference.sequential import GrowingCache, KnownScales, sample_sequential
from harness.rounding import Budget
from harness.runs._identity import names_of
from harness.runs._plan import Task
from harness.runs._records import Counts, JudgedRow, packed_tokens
from harness.runs.pictures import Best, Picture, exhibit, pictures

Exhibits = list[tuple[int, int, dict[str, Tensor]]]  # task, setting, tensors
DECLARED = "is asked of a decoder that declares that it does not do it"
Traced = tuple[Trace | Judgement, list[str], float]  # a trace, or the judgement on a defect; remarks; seconds
# With the tensors around its first divergence, the pictures that are worth keeping, and seconds.
Judged = tuple[JudgedRow, dict[str, Tensor], list[Picture], float]


@dataclass(frozen=True)
class Done:
    """What came of one task."""

    task: int  # its number
    rows: list[JudgedRow]  # one a setting
    exhibits: Exhibits  # the tensors around each row's first divergence
    decode_seconds: float = 0.0  # of every decode, the reference's included
    seconds: float = 0.0  # of the whole task
    pictures: list[Picture] = field(default_factory=list)  # those of its images that are worth keeping


@dataclass(frozen=True)
class VerifyWork:
    """What a worker of a verification gets, once."""

    models: ModelPair  # networks
    factory: Factory | str | bytes  # name of the factory, the factory, or cloudpickle's bytes of it
    settings: tuple[Settings, ...]  # of the plan
    most: int  # images of the largest batch
    budget: Budget  # fixed before any decoder is built
    terms: Terms  # how the run is judged
    drafts: tuple[float | None, ...] = ()  # of the plan; empty = the pair's own for every setting
    pictures: int = 0  # how many of a run are kept; 0 = none is made
    heard: Callable[[JudgedRow], None] | None = None  # is called with every row, where the work stays in this process

    def open(self) -> Verifier:
        """Build the decoders. Raises `InputError` where they refuse."""
        factory = pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory
        return Verifier(replace(self, factory=factory))


class Verifier:
    """Verifies tasks; holds the decoders under test."""

    def __init__(self, work: VerifyWork) -> None:
        assert not isinstance(work.factory, bytes)
        self.work, self._best, self._searches = work, Best(work.pictures), Searches()
        drafts = work.drafts or (None,) * len(work.settings)
        self._decoders: dict[int, tuple[Runner, int, ModelPair]] = {}  # by setting: where it is, and its number there
        self._others: dict[int, tuple[Runner, int]] = {}  # likewise, of those that are judged against
        contracts, moved, declines = [""] * len(drafts), list[str](), [list[str]() for _ in drafts]
        with ExitStack() as stack:
            for noise in dict.fromkeys(drafts):
                models = work.models if noise is None else close_pair(work.models, noise)
                numbers = [number for number, of in enumerate(drafts) if of == noise]
                moved += self._open_others(models, numbers, stack)
                settings = [work.settings[number] for number in numbers]
                runner = start_runner(models, work.factory, settings, work.most, work.terms)
                stack.callback(runner.close)
                moved += runner.built.moved
                for k, number in enumerate(numbers):
                    self._decoders[number] = runner, k, models
                    contract = claimed_contract(runner.built.contracts[k], work.terms)
                    _check_first_scale(work.terms, contract)
                    contracts[number] = contract.value
                    declines[number] = runner.built.declines[k]
                    for word, name in OF_SETTINGS.items():
                        if word in declines[number] and declined([word], work.settings[number], Request((0,))):
                            remedy = f"drop it, or {word!r} from `declines`"
                            raise InputError(name, getattr(work.settings[number], name), DECLARED, remedy)
            self._places = stack.pop_all()
        named = work.factory if isinstance(work.factory, str) else factory_name(work.factory)
        tested, other = names_of((named, next(iter(work.settings), Settings())), work.terms.against)
        self._names = f"tested {tested}", f"other {other}"  # two checkouts of one commit may be called the same
        every = [runner.built for runner, _, _ in self._decoders.values()]
        isolation = "; ".join(dict.fromkeys(one.isolation for one in every if one.isolation))
        lengthless = all(one.lengthless for one in every)
        self.about = Built(contracts, list(dict.fromkeys(moved)), lengthless, isolation, declines)

    def _open_others(self, models: ModelPair, numbers: Sequence[int], stack: ExitStack) -> list[str]:
        """Build the decoders that are judged against, if any, for some settings; return what that changed."""
        other = self.work.terms.against
        if other is None:
            return []
        factory = pickle.loads(other.factory) if isinstance(other.factory, bytes) else other.factory
        settings = [other.settings[number] for number in numbers]
        runner = start_runner(models, factory or other.name, settings, self.work.most, self.work.terms)
        stack.callback(runner.close)
        self._others |= {number: (runner, k) for k, number in enumerate(numbers)}
        return [f"{what}, by {other.name}" for what in runner.built.moved]

    def do(self, task: Task) -> Done:
        """Decode one task by the reference and under its settings, and judge."""
        device = self.work.models.device
        done, seconds = timed(partial(self._done, task), device)
        held = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
        now, host = time.time(), resident_bytes()
        rows = [replace(row, ended=now, host_bytes=host, device_bytes=held) for row in done.rows]
        return replace(done, seconds=seconds, rows=rows)

    def close(self) -> None:
        self._places.close()

    def _done(self, task: Task) -> Done:
        work, request = self.work, task.request
        rows, exhibits, runs, total = list[JudgedRow](), Exhibits(), Runs(), 0.0
        made, is_alone = list[Picture](), work.terms.against is None
        if is_alone:
            request.check_for(work.models.target.config)
        for number in task.settings:
            greedy = work.settings[number].greedy
            if is_alone and not self._is_apart(number):
                self._free(request, greedy, runs)
            try:
                word = declined(self.about.declines[number], work.settings[number], request)
                if word:
                    raise InputError("declines", word, DECLARED, "drop what asks it, or the word from `declines`")
                judged = self._row(task, number, runs) if is_alone else self._compared(task, number)
                row, shown, seen, seconds = judged
            except InputError as error:
                if not work.terms.refusals:
                    raise
                row, shown, seen, seconds = JudgedRow(task.number, number, Judgement(request.B)), {}, [], 0.0
                row = replace(row, refused=str(error))
            rows.append(row)
            if work.heard is not None:
                work.heard(row)
            made += seen
            total += seconds
            exhibits += [(task.number, number, shown)] if shown else []
            if work.terms.first_only and row.judgement.defects:
                break
        total += sum(run.trace.seconds for run in runs.values())
        return Done(task.number, rows, exhibits, total, pictures=made)

    def _row(self, task: Task, number: int, runs: Runs) -> Judged:
        request, contract = task.request, Contract.of(self.about.contracts[number])
        actual, remarks, seconds = self._decoded(task, number)
        run, drafts = self._reference(request, number, actual, runs), not self.work.terms.sequential
        row = JudgedRow(task.number, number, Judgement(request.B), reference_seconds=run.trace.seconds)
        if isinstance(actual, Judgement):
            if actual.partial is not None:
                evidence = self._evidence(task, number, actual.partial, run)
                actual = judge.judge_partial_trace(evidence, contract, drafts, actual)
            return replace(row, judgement=self._remarked(actual, remarks, request)), {}, [], seconds
        evidence = self._evidence(task, number, actual, run)
        if run.costs_SB3 is None and contract is Contract.TOKENS:
            run.costs_SB3 = judge.costs_of_draws(evidence)
        judgement, along = judge.judge_along(replace(evidence, costs_SB3=run.costs_SB3), contract, drafts)
        row = replace(row, judgement=self._remarked(judgement, remarks, request), seconds=seconds)
        greedy = self.work.settings[number].greedy
        return self._shown(row, along, lambda: self._free(request, greedy, runs).trace.f_hat_BCPP, seconds)

    def _is_apart(self, number: int) -> bool:
        """Tell whether a setting's decoder has a process of its own."""
        return isinstance(self._decoders[number][0], OwnProcess)

    def _reference(self, request: Request, number: int, actual: Trace | Judgement, runs: Runs) -> ReferenceRun:
        """Return the run that a decode is judged by, made where none is at hand.

        Where all tokens are claimed it follows the first decode's: a tie then costs no second run. Distances are those
        from a free one. In the judge's process a free one was made before the decode, which may write into what both
        sides read.
        """
        models, greedy = self.work.models, self.work.settings[number].greedy
        if self.about.contracts[number] != Contract.TOKENS or request.more_smooth:
            return self._free(request, greedy, runs)
        known = runs.get((greedy, True)) or runs.get((greedy, False))
        if known is not None:
            return known
        along_BL = judge.tokens_to_consume(models, request, actual) if isinstance(actual, Trace) else None
        run = ReferenceRun.of(models, request, greedy, along_BL)
        return runs.setdefault((greedy, run.is_free), run)

    def _free(self, request: Request, greedy: bool, runs: Runs) -> ReferenceRun:
        """Return the free run, made where it is not at hand: it draws the image of sequential decoding."""
        if (greedy, True) not in runs:
            runs[greedy, True] = ReferenceRun.of(self.work.models, request, greedy)
        return runs[greedy, True]

    def _compared(self, task: Task, number: int) -> Judged:
        """Decode a task by both decoders under one setting, and judge one against the other."""
        request, models, (there, k) = task.request, self._decoders[number][2], self._others[number]
        actual, remarks, seconds = self._decoded(task, number)
        expected, theirs, others = _traced(partial(there.decode, k, request), models.device)
        names = self._names
        remarks += [f"{names[1]}: {each}" for each in theirs]
        row = JudgedRow(task.number, number, Judgement(request.B), seconds=seconds, reference_seconds=others)
        seconds += others
        if isinstance(actual, Judgement) or isinstance(expected, Judgement):
            ended = tuple(each if isinstance(each, Judgement) else None for each in (actual, expected))
            made = [each.partial if isinstance(each, Judgement) else each for each in (actual, expected)]
            evidence = None
            if made[0] is not None and made[1] is not None:
                evidence = self._evidence(task, number, made[0], ReferenceRun(made[1], models.noise(request)))
            judgement = self._remarked(judge.judge_ends(evidence, names, ended), remarks, request)
            return replace(row, judgement=judgement), {}, [], seconds
        evidence = self._evidence(task, number, actual, ReferenceRun(expected, models.noise(request)))
        judgement = self._remarked(judge.judge_against(evidence, names), remarks, request)
        seeds = sorted({seed for seed, _ in request.addresses})
        named = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds from {seeds[0]} on"
        changes = tuple(f"{named}, {each}" for each in judge.changed_counts(actual, expected))
        row = replace(row, judgement=judgement, changes=changes)
        return self._shown(row, evidence, lambda: expected.f_hat_BCPP, seconds)

    def _shown(self, row: JudgedRow, along: Evidence, others: Callable[[], Tensor], seconds: float) -> Judged:
        """Add what was counted and is to be seen of a whole decode; `others` makes f_hat_BCPP of the other's image."""
        actual, judgement, pyramid = along.actual, row.judgement, along.models.pyramid
        sides, differing, tokens = (actual.tokens_BL, along.expected.tokens_BL), list[int](), b""
        if judgement.draws:
            differ_L = (sides[0] != sides[1]).sum(0)
            differing = [int(differ_L[pyramid.draws.span(si)].sum()) for si in pyramid]
            tokens = packed_tokens(*sides, judgement.claims_tokens)
        seen = pictures((row.task, row.setting), along, judgement, others, self._best)
        row = replace(row, counts=Counts.of(actual, differing), peak_bytes=actual.peak_bytes, tokens=tokens)
        first = (judgement.defects or judgement.ties)[:1]
        return row, exhibit(along, first[0]) if first else {}, seen, seconds

    def _decoded(self, task: Task, number: int) -> Traced:
        """Decode a task under one setting; return remarks and the seconds, too."""
        where, k, models = self._decoders[number]
        return _traced(partial(where.decode, k, task.request), models.device)

    def _remarked(self, judgement: Judgement, remarks: list[str], request: Request) -> Judgement:
        """Return a judgement with the remarks on its decode, which are defects where the terms are strict."""
        left = [each for each in remarks if self.work.terms.strict and OF_CODE not in each]
        strict = [Divergence("environment", each, request.seed) for each in left]
        return replace(judgement, remarks=remarks, defects=[*judgement.defects, *strict], partial=None)

    def _evidence(self, task: Task, number: int, actual: Trace, run: ReferenceRun) -> Evidence:
        models, greedy, budget = self._decoders[number][2], self.work.settings[number].greedy, self.work.budget
        differ = self.work.terms.may_differ_from
        return Evidence(
            models, task.request, actual, run.trace, budget, greedy, run.consumed_BL, noise=run.noise, cache=run.cache,
            searches=self._searches, decode=(number, task.number),
            # of a case that was made smaller every scale comes before it
            may_differ_from=None if differ is None else min(differ, models.pyramid.S),
        )  # fmt: skip


def _check_first_scale(terms: Terms, contract: Contract) -> None:
    """Refuse a scale that tokens may differ from, of a decoder that claims all of them, too. Raises `InputError`."""
    if (si := terms.may_differ_from) is None:
        return
    if terms.against is not None:
        raise InputError(
            "may_differ_from", si, "is about a decoder beside the reference alone", "drop it, or --against"
        )
    if contract is Contract.TOKENS:
        rule = f"is for a decoder that claims B or C, and this one claims A ({contract})"
        raise InputError("may_differ_from", si, rule, "drop it: every token is compared")


def _traced(decode: Callable[[], Trace | Judgement], device: torch.device) -> Traced:
    """Decode; return the trace, or the judgement on a decode that has defects, and apart the remarks and seconds."""
    outcome, seconds = timed(decode, device)
    if isinstance(outcome, Trace):
        return outcome, [], seconds
    return outcome.whole_trace or outcome, list(outcome.remarks), seconds


@dataclass
class ReferenceRun:
    """The reference's run of one request: its trace, the numbers that it read, its cache, what its draws cost."""

    trace: Trace
    noise: Noise
    cache: GrowingCache | None = None
    consumed_BL: Tensor | None = None  # the tokens that it ran along; None = its own ones, as a free run
    costs_SB3: Tensor | None = None

    @classmethod
    def of(cls, models: ModelPair, request: Request, greedy: bool, along_BL: Tensor | None = None) -> ReferenceRun:
        """Run the reference, along tokens where some are given: what it draws stays equal up to the first other one."""
        noise, known = models.noise(request), KnownScales()
        run = partial(sample_sequential, models.target, models.vae, request, noise, along_BL, greedy, known)
        trace, seconds = timed(run, models.device)
        trace.seconds = seconds
        return cls(trace, noise, known.cache, along_BL)

    @property
    def is_free(self) -> bool:
        """Tell whether it draws every token that it runs along."""
        return self.consumed_BL is None or torch.equal(self.trace.tokens_BL, self.consumed_BL)


Runs = dict[tuple[bool, bool], ReferenceRun]  # of one request, by whether they are greedy, and free


def resident_bytes() -> int:
    """Return how much memory this process has in hand."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
