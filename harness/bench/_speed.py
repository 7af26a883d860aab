"""Speed and memory of speculative against sequential decoding, and the time that no implementation can go below.

Promise: both sides run the same passes in the same mode (kernel by kernel, or as CUDA graphs) and differ only in the
order of the work; every time is a median of whole decodes, noise and draws included; equality is checked first. The
floor is counted from the sizes of a pass and measured on the machine itself, never taken from a data sheet.
"""

import gc
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

import torch

from harness.clock import Times, times_of
from harness.errors import HarnessError
from harness.files import compact, finite
from harness.judge import Evidence, judge
from harness.models import ModelPair, Network
from harness.protocol import Request, ScalePyramid, Trace
from harness.provenance import versions
from harness.reference.sequential import sample_sequential
from harness.rounding import joint_budget, precision
from harness.speculative import Window, forward, forward_window, parse_policy, policy_speculates
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_sequential

COPY_BYTES, SIDE = {"cuda": 2**30, "cpu": 2**27}, {"cuda": 8192, "cpu": 1024}
REPEATS = 10
GB, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """What a device can do, in the dtype and mode of a run."""

    name: str  # of the device
    bandwidth: float  # bytes a second, read plus written, of a large copy
    rate: float  # floating-point operations a second of a large matrix product

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Self:
        """Measure a copy of 1 GiB and a product of two 8192×8192 matrices (smaller on a CPU); medians of ten."""
        source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        side = SIDE[device.type]
        # random numbers: products of constants run faster than real ones
        generator = torch.Generator(device=device).manual_seed(0)
        a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        copy_s = times_of(lambda: target.copy_(source), REPEATS, device).median / 1e3
        product_s = times_of(lambda: torch.mm(a, b, out=out), REPEATS, device).median / 1e3
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return cls(name, 2 * len(source) / copy_s, 2 * side**3 / product_s)

    def __str__(self) -> str:
        return f"{self.name}: {self.bandwidth / GB:.0f} GB/s copied, {self.rate / TERA:.1f} TFLOP/s in matrix products"

    def pass_ms(self, network: Network, R: int, begin: int, first: int, last: int) -> float:
        """Return the floor of one pass over scales begin..last of R guidance rows, with logits from `first` on."""
        config, pyramid, width = network.config, network.pyramid, network.dtype.itemsize
        n, end = pyramid.end(last) - pyramid.begin(begin), pyramid.end(last)
        judged = end - pyramid.begin(first)
        blocks, head = config.depth * 12 * config.D**2 + config.C * config.D, config.V * config.D
        # keys and values: those of earlier scales are read, those of the pass written and read
        moved = (blocks + head) * width + 2 * R * config.depth * config.D * (end + n) * width
        moved += R * judged * config.V * 4  # logits in float32
        attended = sum(pyramid.tokens(si) * pyramid.end(si) for si in range(begin, last + 1))
        operations = 2 * R * (n * blocks + judged * head) + 4 * R * attended * config.D * config.depth
        return 1e3 * max(moved / self.bandwidth, operations / self.rate)


WARM_UPS = 2
Turn = tuple[str, int, int, int]  # side; first scale computed, first and last one with logits


@dataclass(frozen=True)
class Sequential:
    """Sequential decoding of one batch; milliseconds a batch, bytes."""

    ms: float  # whole decodes
    passes_ms: float  # their transformer passes alone
    floor_ms: float  # what the machine's bandwidth and rate allow those passes
    peak: int  # most memory allocated, this network's weights and the VQ-VAE included; 0 on a CPU
    least_ms: float = math.nan  # of the whole decodes; files from before it was measured do not say
    most_ms: float = math.nan

    @property
    def times(self) -> Times:
        return Times(self.ms, self.least_ms, self.most_ms)


@dataclass(frozen=True)
class SpeedRow:
    """One setting of one batch; milliseconds a batch, bytes."""

    batch: int  # images
    policy: str  # text form; imposed:RATE keeps drafted scales at that rate
    draft_len: int  # scales proposed per round; means nothing where the target judges no draft (`speculates`)
    reference_ms: float  # the plain reference sampler, kernel by kernel
    target: Sequential  # sequential decoding by the target, in the mode of the run
    draft: Sequential  # sequential decoding by the draft, in the mode of the run
    ms: float  # speculative decoding
    draft_passes_ms: float  # the draft's passes alone, one after the other; NaN where the images took different rounds
    target_passes_ms: float  # the target's passes alone; likewise
    floor_ms: float  # what the machine allows all of them; likewise
    target_calls: float  # mean target passes of an image
    kept: float  # share of the judged scales that were accepted: what an imposed rate came to on these few images
    peak: int  # most memory allocated, all weights included; 0 on a CPU

    @property
    def speculates(self) -> bool:
        """Whether the target judges drafts; False where target and draft divide the scales."""
        return policy_speculates(self.policy)

    @property
    def speed_up(self) -> float:
        return self.target.ms / self.ms

    @property
    def allowed(self) -> float:
        """The speed-up if nothing but the passes took time; NaN where they are unknown."""
        return self.target.passes_ms / (self.draft_passes_ms + self.target_passes_ms)

    @property
    def extra_memory(self) -> float:
        """Share of memory beyond what the target alone needs; NaN on a CPU."""
        return self.peak / self.target.peak - 1 if self.target.peak else math.nan


@dataclass(frozen=True)
class Speed:
    models: str  # name of the pair
    mode: str  # dtype, or TF32
    draft_dtype: str  # of the draft
    graphs: bool  # recorded work; else kernel by kernel
    bonus: bool  # the scale after the drafted ones is finished too
    machine: Machine  # where
    rows: list[SpeedRow]  # measurements
    compiled: bool = False  # the networks' blocks are; files from before there was a choice do not say

    @property
    def title(self) -> str:
        same = self.draft_dtype == ("float32" if self.mode == "TF32" else self.mode)
        named = self.mode if same else f"{self.mode}, draft {self.draft_dtype}"
        launched = "CUDA graphs" if self.graphs else "kernel by kernel"
        return f"{named}, {launched}{', compiled' if self.compiled else ''}"

    def document(self) -> bytes:
        return compact({**finite(asdict(self)), "precision": precision(), "versions": versions()})


@dataclass
class Bench:
    models: ModelPair  # on their device, in their dtype
    graphs: bool  # record and replay device work
    repeats: int  # timed decodes a figure
    machine: Machine  # bandwidth and rate, for the floor
    bonus: bool = False  # let the target finish the scale after the drafted ones too
    compiled: bool = False  # compile the blocks of both sides; the plain reference stays as it is

    def __post_init__(self) -> None:
        self.fast = self.models.compiled() if self.compiled else self.models

    def rows(self, requests: Sequence[Request], settings: Sequence[tuple[str, int]]) -> Iterator[SpeedRow]:
        """Measure every (policy, draft_len); times are means over requests of one batch size.

        Sequential decoding, whose work is the same for all, is measured on the first. Raises `HarnessError` where it is
        not the reference's, or recorded work differs, and `InputError` for a policy or length that does not fit.
        """
        decoders = [
            SpeculativeDecoder(
                self.fast, DecoderOptions(length, self.bonus, parse_policy(policy, bench=True), False, self.graphs)
            )
            for policy, length in settings
        ]
        request = requests[0]
        self.check_equal(request)
        reference_ms = times_of(lambda: self._reference(request), self.repeats, self.models.device).median
        target, draft = (self.sequential(network, request) for network in (self.fast.target, self.fast.draft))
        for (policy, length), decoder in zip(settings, decoders, strict=True):
            self.check_recorded(decoder, request)
            done = [self._measure(decoder, request) for request in requests]
            parts = [self._alone(decoder, request, turns_of(trace, self.models.pyramid)) for _, _, trace in done]
            draft_ms, target_ms, floor_ms = (statistics.mean(each) for each in zip(*parts, strict=True))
            calls = statistics.mean(count for _, _, trace in done for count in trace.target_calls)
            yield SpeedRow(
                batch=request.B, policy=policy, draft_len=length, reference_ms=reference_ms, target=target, draft=draft,
                ms=statistics.mean(times.median for times, _, _ in done), draft_passes_ms=draft_ms,
                target_passes_ms=target_ms, floor_ms=floor_ms, target_calls=calls,
                kept=_kept(trace for _, _, trace in done),
                peak=max(peak for _, peak, _ in done),
            )  # fmt: skip
            decoder.workspaces.clear()

    def check_equal(self, request: Request) -> None:
        """Judge sequential decoding of this mode against the reference. Raises `HarnessError` for a defect."""
        budget = joint_budget(self.models, self.compiled)
        expected = self._reference(request)
        decoder = build_sequential(self.models, self.fast.target, self.graphs)
        actual = decoder.decode(request, self.models.noise(request))
        del decoder
        # the target decodes in the draft's place, so the target's counts say nothing
        actual = replace(actual, rounds=[], target_calls=[], target_rows=[])
        release(self.models.device)  # two caches of the target, and it may decode once more along other tokens
        defects = judge(Evidence(self.models, request, actual, expected, budget)).defects
        if defects:
            raise HarnessError(f"sequential decoding of this mode is wrong, so nothing was timed: {defects[0]}")

    def check_recorded(self, decoder: SpeculativeDecoder, request: Request) -> None:
        """Raise `HarnessError` where a decoder that replays its work differs in a bit from one that does not."""
        if not self.graphs:
            return
        eager = SpeculativeDecoder(self.fast, replace(decoder.options, graphs=False))
        expected = eager.decode(request, self.models.noise(request))
        for _ in range(2):  # recorded, then replayed
            actual = decoder.decode(request, self.models.noise(request))
            same = torch.equal(actual.tokens_BL, expected.tokens_BL)
            if not (same and torch.equal(actual.f_hat_BCPP, expected.f_hat_BCPP)):
                raise HarnessError(f"policy={decoder.options.policy.name}: recorded work differs: nothing was timed")
        decoder.workspaces.clear()

    def sequential(self, network: Network, request: Request) -> Sequential:
        decoder = build_sequential(self.models, network, self.graphs)
        times, peak, _ = self._measure(decoder, request)
        turns = [("draft", si, si, si) for si in self.models.pyramid]
        passes_ms = self._passes_ms(decoder, request, turns)
        floor_ms = sum(self.machine.pass_ms(network, request.R, *scales) for _, *scales in turns)
        if peak:  # what stands in memory for the other measurements: the second network, and a cache never used
            other, config = self.fast.draft if network is self.fast.target else self.fast.target, network.config
            numbers = 4 * request.B * config.depth * config.D * network.pyramid.L
            peak -= sum(weight.nbytes for weight in other.weights.values()) + numbers * network.dtype.itemsize
        return Sequential(times.median, passes_ms, floor_ms, peak, times.least, times.most)

    def _reference(self, request: Request) -> Trace:
        return sample_sequential(self.models.target, self.models.vae, request, self.models.noise(request))

    def _measure(self, decoder: SpeculativeDecoder, request: Request) -> tuple[Times, int, Trace]:
        """Return the milliseconds of a decode, the peak of memory (recording included), and the last trace."""
        cuda = self.models.device.type == "cuda"
        release(self.models.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.models.device)
        for _ in range(WARM_UPS):
            trace = decoder.decode(request, self.models.noise(request))
        decode = lambda: decoder.decode(request, self.models.noise(request))  # noqa: E731
        times = times_of(decode, self.repeats, self.models.device)
        return times, torch.cuda.max_memory_allocated(self.models.device) if cuda else 0, trace

    @torch.inference_mode()
    def _passes_ms(self, decoder: SpeculativeDecoder, request: Request, turns: Sequence[Turn]) -> float:
        """Return the median milliseconds of these passes, one after the other, with nothing between them."""
        state = decoder.begin(request, self.models.noise(request))
        images = list(range(request.B))

        def run() -> None:
            for name, begin, first, last in turns:
                side = getattr(state, name)
                side.cache.lengths[:] = [self.models.pyramid.begin(begin)] * request.B
                window = Window(state.noise, state.pyramid, images, first, last, name)
                forward_window(state, decoder.parts, side, window, forward)

        return times_of(run, 2 * self.repeats, self.models.device).median if turns else 0.0

    def _alone(self, decoder: SpeculativeDecoder, request: Request, turns: list[Turn]) -> tuple[float, float, float]:
        """Return draft passes, target passes and floor of one decode; NaN where its images took different rounds."""
        if not turns:
            return math.nan, math.nan, math.nan
        draft, target = ([turn for turn in turns if turn[0] == side] for side in ("draft", "target"))
        floor = sum(self.machine.pass_ms(getattr(self.models, side), request.R, *at) for side, *at in turns)
        return self._passes_ms(decoder, request, draft), self._passes_ms(decoder, request, target), floor


def release(device: torch.device) -> None:
    """Give back what decoders held that are gone: recorded work refers to itself, so only a collection ends it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _kept(traces: Iterable[Trace]) -> float:
    """Return the share of drafted scales that were accepted, of those that were judged; NaN where none was."""
    turns = [turn for trace in traces for rounds in trace.rounds for turn in rounds if turn.target_rows]
    accepted = sum(turn.accepted for turn in turns)
    judged = accepted + sum(turn.corrected for turn in turns)
    return accepted / judged if judged else math.nan


def turns_of(trace: Trace, pyramid: ScalePyramid) -> list[Turn]:
    """Return the passes of a decode, from what its caches held; none where its images took different rounds."""
    ways = [[(t.first, t.drafted, t.target_rows, t.draft_rows) for t in rounds] for rounds in trace.rounds]
    if any(way != ways[0] for way in ways):
        return []
    turns: list[Turn] = []
    cached = {"draft": 0, "target": 0}  # positions
    for turn in trace.rounds[0]:
        last = turn.first + turn.drafted - 1
        # after a bonus scale the draft catches up in its first pass
        begin = pyramid.level_of(cached["draft"])
        turns += [("draft", begin if si == turn.first else si, si, si) for si in range(turn.first, last + 1)]
        if turn.target_rows:
            end = pyramid.level_of(cached["target"] + turn.target_rows - 1)
            turns.append(("target", pyramid.level_of(cached["target"]), turn.first, end))
        cached = {"draft": turn.draft_cache, "target": turn.target_cache}
    return turns
