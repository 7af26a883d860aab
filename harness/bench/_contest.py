"""A decoder of anybody's beside sequential decoding: is it faster than the best that needs no draft?

Promise: all sides decode the same requests under the same random numbers, on the same networks; a time is that of whole
decodes, noise and draws included. The decoder's is taken from outside of its process, as the difference between many
decodes and one, so that neither the way there nor what watches over it counts. What was timed is judged once more
after it, under a seed that the process has not met.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from harness.bench._speed import WARM_UPS, Bench, Machine, release, turns_of
from harness.clock import Times
from harness.decoders import Runner
from harness.errors import HarnessError, InputError
from harness.files import compact, finite
from harness.judge import Evidence, Judgement, judge
from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.provenance import versions
from harness.reference.sequential import sample_sequential
from harness.rounding import joint_budget, precision

SAMPLES = 3  # medians and spreads are over so many, at least
ANSWERS = ("SLOWER", "UNDECIDED", "FASTER")  # the worst first


class TimedDecoderError(HarnessError):
    """The decoder fails a request while it is timed, or decodes it wrongly after that."""


@dataclass(frozen=True)
class ContestRow:
    """What one side takes for one batch."""

    batch: int  # images
    side: str  # name of what decodes
    times: Times  # milliseconds a batch
    passes_ms: float  # its transformer passes alone; NaN for a decoder of somebody's: nobody can run them alone
    floor_ms: float  # what bandwidth and rate allow its passes; NaN where it does not say which it makes
    target_calls: float  # mean target passes of an image; NaN likewise
    peak: int  # most memory its process allocated, bytes; 0 on a CPU

    @property
    def is_sequential(self) -> bool:
        return not math.isnan(self.passes_ms)


@dataclass(frozen=True)
class Contest:
    """The sides of every batch size; the decoder's row is the first of its batch."""

    models: str  # name of the pair
    mode: str  # dtype, or TF32
    decoder: str  # name of the decoder
    setting: Settings  # of it
    seeds: tuple[int, ...]  # of the requests; times are means over them
    verdict: str  # on its decodes
    remarks: tuple[str, ...]  # on them
    machine: Machine  # where
    repeats: int  # timed decodes of a sample
    rows: list[ContestRow]

    def best(self, batch: int) -> ContestRow:
        """Return the fastest sequential decoding of a batch size."""
        rivals = [row for row in self.rows if row.batch == batch and row.is_sequential]
        return min(rivals, key=lambda row: row.times.median)

    @property
    def answers(self) -> list[str]:
        """One sentence a batch size: is the decoder faster than the best sequential one?"""
        sentences = []
        for row in self.rows:
            if row.is_sequential:
                continue
            ours, best = row.times, self.best(row.batch)
            low, high = best.times.least / ours.most, best.times.most / ours.least
            word = ANSWERS[1 + (low > 1) - (high < 1)]
            sentences.append(
                f"{word}: batch of {row.batch}: {ours.median:.1f} ms, {best.side} {best.times.median:.1f} ms: "
                f"{best.times.median / ours.median:.2f} times as fast ({low:.2f} to {high:.2f})"
            )
        return sentences

    def document(self) -> bytes:
        return compact({**finite(asdict(self)), "precision": precision(), "versions": versions()})


def sequential_sides(models: ModelPair, compiled: bool) -> list[tuple[str, bool, bool]]:
    """Return what sequential decoding can be here: name, recorded, compiled."""
    recorded = [False, True] if models.device.type == "cuda" else [False]
    return [
        (", ".join(["sequential", *["CUDA graphs"] * graphs, *["compiled"] * fast]), graphs, fast)
        for fast in ([False, True] if compiled else [False])
        for graphs in recorded
    ]


def contest_rows(
    models: ModelPair, runner: Runner, requests: Sequence[Request], machine: Machine, repeats: int, compiled: bool
) -> Iterator[ContestRow]:
    """Time a decoder on requests of one batch size, then sequential decoding in every way there is here.

    Raises `TimedDecoderError`, `InputError` where so few repeats take no time that can be seen, and `HarnessError`
    where sequential decoding is wrong.
    """
    request = requests[0]
    yield _decoder_row(models, runner, requests, machine, repeats)
    for name, graphs, fast in sequential_sides(models, compiled):
        timer = Bench(models, graphs, max(repeats, SAMPLES), machine, compiled=fast)
        timer.check_equal(request)
        found = timer.sequential(timer.fast.target, request)
        yield ContestRow(
            request.B, name, found.times, found.passes_ms, found.floor_ms, float(models.pyramid.S), found.peak
        )
        release(models.device)


def _decoder_row(
    models: ModelPair, runner: Runner, requests: Sequence[Request], machine: Machine, repeats: int
) -> ContestRow:
    traces = [_decoded(runner, request, 1)[0] for request in list(requests) * WARM_UPS][-len(requests) :]
    samples = []
    for _ in range(SAMPLES):
        spent = [_decoded(runner, request, 1 + repeats)[1] - _decoded(runner, request, 1)[1] for request in requests]
        samples.append(1e3 * statistics.mean(spent) / repeats)
    for request in requests:
        unmet = replace(request, seed=(request.seed + repeats + 1) % 2**63)
        trace, _ = _decoded(runner, unmet, 1)
        expected = sample_sequential(models.target, models.vae, unmet, models.noise(unmet))
        evidence = Evidence(models, unmet, trace, expected, joint_budget(models, compiled=False))
        defects = judge(evidence, Contract.of(runner.built.contracts[0]), drafts=False).defects
        if defects:
            raise TimedDecoderError(f"the decoder was right before it was timed, and is wrong after it: {defects[0]}")
    if min(samples) <= 0:
        rule = "is too few: what the decoder takes is lost in what the way to its process does"
        raise InputError("repeats", repeats, rule, f"pass --repeats {10 * repeats}")
    calls = [count for trace in traces for count in trace.target_calls]
    floors = []
    for trace in traces:
        turns = turns_of(trace, models.pyramid) if trace.rounds and all(trace.rounds) else []
        passes = [machine.pass_ms(getattr(models, side), requests[0].R, *scales) for side, *scales in turns]
        floors.append(sum(passes) if passes else math.nan)
    return ContestRow(
        requests[0].B, "decoder", Times.of(samples), math.nan, statistics.mean(floors),
        statistics.mean(calls) if calls else math.nan, max(trace.peak_bytes for trace in traces)
        if models.device.type == "cuda" else 0,
    )  # fmt: skip


def _decoded(runner: Runner, request: Request, times: int) -> tuple[Trace, float]:
    """Decode a request so many times under seeds that follow it; return the first trace, and all seconds."""
    start = time.perf_counter()
    try:
        outcome = runner.decode(0, request, times)
    except InputError as refusal:
        raise TimedDecoderError(f"the decoder refuses while it is timed what it decoded before: {refusal}") from None
    seconds = time.perf_counter() - start
    trace = outcome.whole_trace if isinstance(outcome, Judgement) else outcome
    if trace is None:
        assert isinstance(outcome, Judgement)
        said = outcome.defects[0] if outcome.defects else "it refuses the request"
        raise TimedDecoderError(f"the decoder fails while it is timed: {said}")
    return trace, seconds
