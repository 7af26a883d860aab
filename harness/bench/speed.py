"""Speed of speculative against sequential decoding, on a GPU or a CPU.

Promise: both sides run the same passes in the same mode (kernel by kernel, or as CUDA graphs) and differ only in the
order of the work; every time is a median of whole decodes, noise and draws included; equality is checked first.

Acceptance is imposed at a stated rate, so that speed can be read off as a function of it: the weights of the published
sizes are random here, and a random draft is never right by itself.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from harness.differential import new_noise
from harness.errors import HarnessError
from harness.models.pair import ModelPair
from harness.reference import sequential
from harness.request import Request
from harness.speculative.accept import Acceptance, Policy, Proposal, Window
from harness.speculative.graphs import Workspace
from harness.speculative.parts import Parts
from harness.speculative.policies import QUALITY, parse
from harness.speculative.rules import race
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.trace import Trace

WARM_UPS = 2


@dataclass(frozen=True)
class Row:
    """One measurement; milliseconds per batch.

    Args:
        batch: images.
        draft_len: scales proposed per round.
        rate: imposed share of drafted scales that stand.
        target_ms: sequential decoding by the target, same mode.
        draft_ms: sequential decoding by the draft, same mode.
        speculative_ms: speculative decoding.
        target_calls: mean target passes of an image.
        passes_target_ms: the target's sequential passes alone; NaN without graphs.
        passes_speculative_ms: the passes of the speculative decode alone; NaN without graphs.
    """

    batch: int
    draft_len: int
    rate: float
    target_ms: float
    draft_ms: float
    speculative_ms: float
    target_calls: float
    passes_target_ms: float
    passes_speculative_ms: float

    @property
    def speed_up(self) -> float:
        """Sequential over speculative time."""
        return self.target_ms / self.speculative_ms

    @property
    def allowed(self) -> float:
        """The speed-up if nothing but the passes took time."""
        return self.passes_target_ms / self.passes_speculative_ms


def imposed(rate: float) -> Policy:
    """Return a policy that keeps drafted scales at a stated rate, whatever their tokens (measurements only)."""
    return Policy(f"imposed:{rate:g}", QUALITY, race, partial(_accept_imposed, rate=rate), race)


def _accept_imposed(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rate: float
) -> Acceptance:
    tokens_bn = race(parts, target_probs_bnV, window)
    coins = [[_coin(image, si) < rate for si in window.scales] for image in window.images]
    whole_bs = torch.tensor(coins, device=tokens_bn.device)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, whole_bs)


def _coin(image: int, si: int) -> float:
    """Return a number in [0, 1) that depends on (image, scale) alone."""
    return int.from_bytes(hashlib.blake2b(f"{image}/{si}".encode(), digest_size=4).digest(), "big") / 2**32


@dataclass
class Bench:
    """The decoders of one mode.

    Args:
        models: on their device, in their dtype.
        graphs: record and replay passes.
        repeats: timed decodes.
    """

    models: ModelPair
    graphs: bool
    repeats: int = 5

    def __post_init__(self) -> None:
        S = self.models.pyramid.S
        alone = replace(self.models, draft=self.models.target)  # the target in the draft's place, trusted everywhere
        options = Options(1, policy=parse(f"handoff:{S}"), keep_intermediates=False, graphs=self.graphs)
        self.target = SpeculativeDecoder(alone, options)
        self.draft = SpeculativeDecoder(self.models, options)

    def check_equal(self, request: Request) -> int:
        """Compare the sequential decoder of this mode with the reference.

        Returns:
            The number of tokens that differ; float32 on one device allows none but ties.

        Raises:
            HarnessError: more than one token in a hundred differs.
        """
        noise = new_noise(self.models, request)
        expected = sequential.sample(self.models.target, self.models.vae, request, noise)
        actual = self.target.decode(request, new_noise(self.models, request))
        first = self.models.pyramid.end(1)
        wrong = int((actual.tokens_BL[:, :first] != expected.tokens_BL[:, :first]).sum())
        if wrong > expected.tokens_BL[:, :first].numel() // 2:
            raise HarnessError(f"sequential decoding of this mode differs in {wrong} tokens: nothing was timed")
        return int((actual.tokens_BL != expected.tokens_BL).sum())

    def rows(self, request: Request, draft_lens: list[int], rates: list[float]) -> list[Row]:
        """Measure every draft length at every rate for one batch."""
        target_ms = self.time(self.target, request)[0]
        draft_ms = self.time(self.draft, request)[0]
        S = self.models.pyramid.S
        sequential_keys = [("draft", (si, si, si)) for si in range(S)]
        passes_target = self.passes(self.target, request.B, sequential_keys)
        found = []
        for draft_len in draft_lens:
            workspaces: dict[int, Workspace] = {}
            for rate in rates:
                options = Options(draft_len, policy=imposed(rate), keep_intermediates=False, graphs=self.graphs)
                decoder = SpeculativeDecoder(self.models, options)
                decoder.workspaces = workspaces  # equal passes on equal buffers
                ms, trace = self.time(decoder, request)
                keys = _keys(trace, S)
                passes = self.passes(decoder, request.B, keys)
                calls = statistics.mean(trace.target_calls)
                found.append(Row(request.B, draft_len, rate, target_ms, draft_ms, ms, calls, passes_target, passes))
        return found

    def time(self, decoder: SpeculativeDecoder, request: Request) -> tuple[float, Trace]:
        """Return the median milliseconds of a decode, and the last trace."""

        def once() -> Trace:
            return decoder.decode(request, new_noise(self.models, request))

        for _ in range(WARM_UPS):
            trace = once()
        return median_ms(once, self.repeats, self.models.device), trace

    def passes(self, decoder: SpeculativeDecoder, B: int, keys: list[tuple[str, tuple[int, int, int]]]) -> float:
        """Return the median milliseconds of these recorded passes, replayed one after the other; NaN without graphs."""
        if not self.graphs:
            return float("nan")
        graphs = decoder.workspaces[B].graphs
        if any(key not in graphs[side].recorded for side, key in keys):
            return float("nan")  # images went apart: their passes were not recorded

        def replay() -> None:
            for side, key in keys:
                graphs[side].recorded[key][0].replay()

        return median_ms(replay, 2 * self.repeats, self.models.device)


def _keys(trace: Trace, S: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the passes of the first image's decode, as the graphs know them."""
    keys = []
    for turn in trace.rounds[0]:
        last = turn.first + turn.drafted - 1
        keys += [("draft", (si, si, si)) for si in range(turn.first, last + 1)]
        keys.append(("target", (turn.first, turn.first, last)))
    return keys


def median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median wall time of `run` in milliseconds, the device's work included."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)
