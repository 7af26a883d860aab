"""The speculative decoder: draft, verify, accept, update, until every image has all its scales.

Promise: every round finishes at least one scale of every image that it touches; under the coupled policy the tokens
are those of sequential target decoding, whatever the draft proposes (contract A). `build_decoder` makes
one from settings: what `--implementation` takes by default, and what code outside wraps.
"""

import resource
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.errors import InputError
from harness.models import ModelPair, Network
from harness.protocol import Contract, ExclusiveNoise, Noise, Request, Settings, Trace
from harness.speculative._accept import Policy, Window, check_finite
from harness.speculative._draft_length import DraftLength
from harness.speculative._policies import COUPLED, check_against, parse_policy
from harness.speculative._round import run_round
from harness.speculative._state import DecodeState, Launcher
from harness.speculative.parts import Parts, parts_of
from harness.speculative.tools import Observer, Workspace


@dataclass(frozen=True)
class DecoderOptions:
    """How to speculate."""

    # scales proposed per round at most: a number 1..S, or another rule of `DraftLength`. Whatever it says, scales
    # that a policy leaves to the draft alone are proposed all at once, and those that it leaves to the target alone
    # are not proposed
    draft_len: int | str = 5
    # submit the scale after the drafted ones too, where the target decides it, and finish it after full acceptance
    bonus: bool = False
    policy: Policy = COUPLED  # coupling and acceptance rule
    # put the tensors that a defect is traced with into the trace; scales without a target pass have none
    keep_intermediates: bool = True
    # record and replay the device work of whole batches as CUDA graphs; needs the first CUDA device
    graphs: bool = False


class SpeculativeDecoder:
    """A decoder ready to run; holds weights and options, no state of a decode, but for the buffers of its graphs.

    It is composed of `parts`; None = those of the networks' family. `observer` are debug tools; None = off, and then
    nothing of them is in the way. Raises `InputError` for a draft length or policy that does not fit the networks, and
    for graphs under an observer, or on another device than the first CUDA device.
    """

    def __init__(
        self, models: ModelPair, options: DecoderOptions, parts: Parts | None = None, observer: Observer | None = None
    ) -> None:
        self.length = DraftLength.parse(options.draft_len)
        self.length.check(models.pyramid.S)
        check_against(options.policy, models.pyramid.S, models.target.config.V)
        if options.graphs and models.device.type != "cuda":
            raise InputError("graphs", True, f"need a CUDA device, not {models.device}", "pass --device cuda")
        if options.graphs and (models.device.index or 0) > 0:
            remedy = "set CUDA_VISIBLE_DEVICES and pass --device cuda"
            raise InputError("graphs", True, f"are recorded on the first CUDA device, not {models.device}", remedy)
        if options.graphs and observer is not None:
            raise InputError("graphs", True, "a replayed pass has no steps to observe", "drop --graphs")
        parts = parts or parts_of(models.target)
        if observer is not None:
            models, parts = observer.watch(models, parts)
        self.models, self.options, self.parts = models, options, parts
        self.workspaces: dict[tuple[int, int], Workspace] = {}

    @property
    def contract(self) -> Contract:
        """What this decoder claims (design §1)."""
        return self.options.policy.contract

    @property
    def policy(self) -> str:
        """Text of the policy that it follows (docs/policies.md)."""
        return self.options.policy.name

    def _workspace(self, B: int, halves: int) -> Workspace:
        """Return the buffers and recorded passes of so many images and guidance rows, made at their first use."""
        if (B, halves) not in self.workspaces:
            self.workspaces[B, halves] = Workspace(self.models, B, self.parts.new_cache, halves)
        return self.workspaces[B, halves]

    @torch.inference_mode()
    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Return the state before the first round. Arguments and errors as `decode`."""
        request.check_for(self.models.target.config)
        if request.more_smooth:
            raise InputError("more_smooth", True, "cannot be speculated: f_hat is no function of the tokens", "drop it")
        graphs, B, halves = self.options.graphs, request.B, request.R // request.B
        if graphs and request.texts:
            raise InputError("graphs", True, "record no conditions that are texts", "drop --graphs")
        launcher = self._workspace(B, halves) if graphs else Launcher(self.models, B, self.parts.new_cache, halves)
        numbers = ExclusiveNoise(noise) if self.contract == Contract.LAW else noise
        state = DecodeState.begin(
            self.models, request, numbers, launcher, self.parts.condition_rows, self.options.keep_intermediates
        )
        state.draft_lens = [self.length.low] * request.B
        if self.options.keep_intermediates and self.options.policy.shows_law:
            drawn = state.drafted_probs_BLV
            wide = torch.promote_types(drawn.dtype, self.models.target.dtype)
            state.law_BLV = torch.full_like(drawn, torch.nan, dtype=wide)
        return state

    @torch.inference_mode()
    def decode(self, request: Request, noise: Noise) -> Trace:
        """Draw a batch of images; the numbers are read as "draft" and "target".

        Raises `InputError` where the request does not fit the networks, or asks for `more_smooth`, whose f_hat is no
        function of the tokens, so that no draft could ever be accepted; and `NonFiniteError` where logits of the
        network that decides a scale are not finite.
        """
        start = time.perf_counter()
        state, policy, S = self.begin(request, noise), self.options.policy, self.models.pyramid.S
        while groups := self._groups(state):
            for (first, wanted, *_), images in groups:
                last = first + policy.reach(first, wanted, S) - 1
                window = Window(state.noise, state.pyramid, images, first, last, "target")
                run_round(state, self.parts, policy, window, self.options.bonus)
                for image in images:
                    turn = state.rounds[image][-1]
                    whole = turn.accepted == turn.drafted
                    state.draft_lens[image] = self.length.after(state.draft_lens[image], whole, S)
        check_finite(state)
        trace = _trace(state, time.perf_counter() - start)
        state.intermediates = state.law_BLV = None  # recorded work keeps the state, and should not keep these
        return trace

    def _groups(self, state: DecodeState) -> list[tuple[tuple[int, int, int, int], list[int]]]:
        """Images that can share a round, by (scale, scales wanted of the draft, lengths of both caches)."""
        groups, S = defaultdict(list), state.pyramid.S
        for image, done in enumerate(state.done):
            if done < S:
                wanted = self.length.count(done, state.draft_lens[image], S)
                groups[done, wanted, state.draft.cache.lengths[image], state.target.cache.lengths[image]].append(image)
        return sorted(groups.items())


@torch.inference_mode(False)  # so that who wraps the decoder can do anything with its tokens and f_hat
def _trace(state: DecodeState, seconds: float) -> Trace:
    # cloned: a workspace's buffers are the next decode's
    return Trace(
        state.tokens_BL.clone(), state.f_hat_BCPP.clone(), state.writes_BS, state.rounds, state.target.calls,
        state.target.rows, state.draft.calls, state.draft.rows, state.intermediates, state.law_BLV, seconds,
        cache_bytes={side.name: side.cache.bytes() for side in (state.draft, state.target)},
        peak_bytes=peak_bytes(state.target.network.device),
    )  # fmt: skip


def peak_bytes(device: torch.device) -> int:
    """Return the high-water mark of memory: the allocator's on CUDA, the process's resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):  # Linux, where `ru_maxrss` would count who started this process, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_decoder(models: ModelPair, settings: Settings, observer: Observer | None = None) -> SpeculativeDecoder:
    """Build the speculative decoder. Raises `InputError` for settings that do not exist or do not fit the networks."""
    options = DecoderOptions(settings.draft_len, settings.bonus, parse_policy(settings.policy), graphs=settings.graphs)
    return SpeculativeDecoder(models.compiled() if settings.compiled else models, options, observer=observer)


def build_sequential(models: ModelPair, network: Network, graphs: bool = False) -> SpeculativeDecoder:
    """Build sequential decoding by one network out of the same parts: it stands in the draft's place, and is trusted.

    Raises `InputError` for graphs on another device than the first CUDA device.
    """
    trusted = parse_policy(f"handoff:{models.pyramid.S}")
    alone = replace(models, draft=network, target=network)
    return SpeculativeDecoder(alone, DecoderOptions(1, policy=trusted, keep_intermediates=False, graphs=graphs))
