"""The work of a verification: one task at a time, wherever it is done.

Promise: what comes of a task depends on the task, the weights and the machine alone, so that the same task gives the
same rows in this process, in a worker and on a cluster.
"""

from __future__ import annotations

import os
import pickle
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness.clock import timed
from harness.errors import InputError
from harness.judge.decode import judge_along
from harness.judge.evidence import Evidence
from harness.judge.verdict import Divergence, Judgement
from harness.judge.weights import costs_of
from harness.models.pair import ModelPair, close_pair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.protocol.noise import Noise
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.rounding.budget import Budget
from harness.runs.exhibit import exhibit
from harness.runs.factory import Factory
from harness.runs.place import Place, claimed, find_place
from harness.runs.plan import Task
from harness.runs.records import Counts, JudgedRow
from harness.runs.terms import Terms

Exhibits = list[tuple[int, int, dict[str, Tensor]]]  # task, setting, tensors


@dataclass(frozen=True)
class Done:
    """What came of one task.

    Args:
        task: its number.
        rows: one a setting.
        exhibits: the tensors around each row's first divergence.
        decode_seconds: of every decode, the reference's included.
        seconds: of the whole task.
    """

    task: int
    rows: list[JudgedRow]
    exhibits: Exhibits
    decode_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class VerifyWork:
    """What a worker of a verification gets, once.

    Args:
        models: networks.
        factory: name of the factory, the factory, or cloudpickle's bytes of it.
        settings: of the plan.
        most: images of the largest batch.
        budget: fixed before any decoder is built.
        terms: how the run is judged.
        drafts: of the plan; empty = the pair's own for every setting.
    """

    models: ModelPair
    factory: Factory | str | bytes
    settings: tuple[Settings, ...]
    most: int
    budget: Budget
    terms: Terms
    drafts: tuple[float | None, ...] = ()

    def open(self) -> Verifier:
        """Build the decoders. Raises `InputError` where they refuse."""
        factory = pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory
        return Verifier(replace(self, factory=factory))


class Verifier:
    """Verifies tasks; holds the decoders under test."""

    def __init__(self, work: VerifyWork) -> None:
        assert not isinstance(work.factory, bytes)
        self.work = work
        drafts = work.drafts or (None,) * len(work.settings)
        self._decoders: dict[int, tuple[Place, int, ModelPair]] = {}  # by setting: where it is, and its number there
        contracts, moved = [""] * len(drafts), list[str]()
        with ExitStack() as stack:
            for noise in dict.fromkeys(drafts):
                models = paired(work.models, noise)
                numbers = [number for number, of in enumerate(drafts) if of == noise]
                settings = [work.settings[number] for number in numbers]
                place = find_place(models, work.factory, settings, work.most, work.terms)
                stack.callback(place.close)
                moved += place.moved
                for k, number in enumerate(numbers):
                    self._decoders[number] = place, k, models
                    contracts[number] = claimed(place.contracts[k], work.terms).value
            self._places = stack.pop_all()
        self.about = {"contracts": contracts, "moved": list(dict.fromkeys(moved))}

    def do(self, task: Task) -> Done:
        """Decode one task by the reference and under its settings, and judge."""
        device = self.work.models.device
        done, seconds = timed(partial(self._done, task), device)
        held = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
        now, host = time.time(), resident_bytes()
        rows = [replace(row, ended=now, host_bytes=host, device_bytes=held) for row in done.rows]
        return replace(done, seconds=seconds, rows=rows)

    def close(self) -> None:
        """End the decoders' processes."""
        self._places.close()

    def _done(self, task: Task) -> Done:
        work, request = self.work, task.request
        rows, exhibits, free, total = list[JudgedRow](), Exhibits(), dict[bool, Free](), 0.0
        for number in task.settings:
            greedy = work.settings[number].greedy
            if greedy not in free:
                free[greedy] = Free.of(work.models, request, greedy)
                total += free[greedy].trace.seconds
            row, shown, seconds = self._row(task, number, free[greedy])
            rows.append(row)
            total += seconds
            exhibits += [(task.number, number, shown)] if shown else []
            if work.terms.first_only and row.judgement.defects:
                break
        return Done(task.number, rows, exhibits, total)

    def _row(self, task: Task, number: int, free: Free) -> tuple[JudgedRow, dict[str, Tensor], float]:
        """Decode a task under one setting, and judge; return the tensors around its first divergence, and seconds."""
        place, k, models = self._decoders[number]
        row = JudgedRow(task.number, number, Judgement(task.request.B), reference_seconds=free.trace.seconds)
        try:
            actual, seconds = timed(partial(place.decode, k, task.request), models.device)
        except InputError as error:
            if not self.work.terms.refusals:
                raise
            return replace(row, refused=str(error), reference_seconds=0.0), {}, 0.0
        if isinstance(actual, Judgement):
            return replace(row, judgement=actual), {}, seconds
        judgement, shown = self._judge(task.request, actual, free, number)
        return replace(row, judgement=judgement, counts=Counts.of(actual), seconds=seconds), shown, seconds

    def _judge(self, request: Request, actual: Trace, free: Free, number: int) -> tuple[Judgement, dict[str, Tensor]]:
        work, greedy, models = self.work, self.work.settings[number].greedy, self._decoders[number][2]
        evidence = Evidence(models, request, actual, free.trace, work.budget, greedy, noise=free.noise)
        contract = Contract.of(self.about["contracts"][number])
        if free.costs_SB3 is None and contract is Contract.TOKENS:
            free.costs_SB3 = costs_of(evidence)
        evidence = replace(evidence, costs_SB3=free.costs_SB3)
        judgement, along = judge_along(evidence, contract, not work.terms.sequential)
        first: Sequence[Divergence] = judgement.defects or judgement.ties
        return judgement, exhibit(along, first[0]) if first else {}


def paired(models: ModelPair, draft_noise: float | None) -> ModelPair:
    """Return the pair with the draft that a setting meets (`Plan.draft_of`)."""
    return models if draft_noise is None else close_pair(models, draft_noise)


@dataclass
class Free:
    """The reference's free run of one request: its trace, the numbers that it read, and what its draws cost."""

    trace: Trace
    noise: Noise
    costs_SB3: Tensor | None = None

    @classmethod
    def of(cls, models: ModelPair, request: Request, greedy: bool) -> Free:
        """Run the reference."""
        noise = models.noise(request)
        run = partial(sequential.sample, models.target, models.vae, request, noise, greedy=greedy)
        trace, seconds = timed(run, models.device)
        trace.seconds = seconds
        return cls(trace, noise)


def resident_bytes() -> int:
    """Return how much memory this process has in hand; its highest mark where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
