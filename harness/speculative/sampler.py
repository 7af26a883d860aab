"""The speculative decoder: draft, verify, accept, update, until every image has all its scales.

Promise: every round finishes at least one scale of every image that it touches; under the coupled policy the tokens
are those of sequential target decoding, whatever the draft proposes (contract A).
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.errors import InputError, NonFiniteError
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.noise import ExclusiveNoise, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Round, Trace
from harness.speculative.accept import Acceptance, Policy, Proposal, Window
from harness.speculative.draft import draft_generate_batch
from harness.speculative.draft_length import DraftLength
from harness.speculative.graphs import Workspace
from harness.speculative.observer import Observer
from harness.speculative.parts import PARTS, Parts
from harness.speculative.policies import COUPLED, check_against
from harness.speculative.state import DecodeState
from harness.speculative.verify import Step, Verified, keep_intermediates, target_verify_batch


@dataclass(frozen=True)
class Options:
    """How to speculate.

    Args:
        draft_len: scales proposed per round: a number 1..S, or another rule of `DraftLength`.
        bonus: submit the scale behind the drafted ones too, and finish it after full acceptance.
        policy: coupling and acceptance rule.
        keep_intermediates: keep the named tensors that a defect is traced with.
        graphs: record and replay the device work of whole batches as CUDA graphs.
    """

    draft_len: int | str | DraftLength = 5
    bonus: bool = False
    policy: Policy = COUPLED
    keep_intermediates: bool = True
    graphs: bool = False


class SpeculativeDecoder:
    """A decoder ready to run; holds weights and options, no state of a decode, but for the buffers of its graphs.

    Args:
        models: draft, target and VQ-VAE.
        options: how to speculate.
        parts: the functions that it is composed of.
        observer: debug tools; None = off, and then nothing of them is in the way.

    Raises:
        InputError: a draft length or policy that does not fit the networks, or recorded passes under an observer.
    """

    def __init__(
        self, models: ModelPair, options: Options, parts: Parts = PARTS, observer: Observer | None = None
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
        if observer is not None:
            models, parts = observer.watch(models, parts)
        self.models, self.options, self.parts = models, options, parts
        self.workspaces: dict[int, Workspace] = {}

    @property
    def contract(self) -> Contract:
        """What this decoder claims (design §1)."""
        return self.options.policy.contract

    def _workspace(self, B: int) -> Workspace:
        """Return the buffers and recorded passes of one batch size, made at its first use."""
        if B not in self.workspaces:
            self.workspaces[B] = Workspace(self.models, B, self.parts.new_cache)
        return self.workspaces[B]

    @torch.inference_mode()
    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Return the state in front of the first round. Arguments and errors as `decode`."""
        request.check_against(self.models.target.config.classes, self.models.target.config.V)
        if request.more_smooth:
            raise InputError("more_smooth", True, "cannot be speculated: f_hat is no function of the tokens", "drop it")
        keep = self.options.keep_intermediates
        workspace = self._workspace(request.B) if self.options.graphs else None
        numbers = ExclusiveNoise(noise) if self.contract == Contract.LAW else noise
        state = DecodeState.begin(self.models, request, numbers, self.parts, keep, workspace)
        state.draft_lens = [self.length.begin()] * request.B
        return state

    @torch.inference_mode()
    def decode(self, request: Request, noise: Noise) -> Trace:
        """Draw a batch of images.

        Args:
            request: what to draw.
            noise: the numbers; read as "draft" and "target".

        Raises:
            InputError: the request does not fit the networks, or asks for `more_smooth`, whose f_hat is no function
                of the tokens, so that no draft could ever be accepted.
            NonFiniteError: the target's logits are not finite.
        """
        start = time.perf_counter()
        state = self.begin(request, noise)
        while groups := _groups(state, self.length):
            for (first, count, *_), images in groups:
                run_round(state, self.parts, self.options, images, first, count)
                for image in images:
                    turn = state.rounds[image][-1]
                    whole = turn.accepted == turn.drafted
                    state.draft_lens[image] = self.length.after(state.draft_lens[image], whole, state.pyramid.S)
        trace = _trace(state, time.perf_counter() - start)
        state.intermediates = None  # recorded work keeps the state, and should not keep these
        return trace


Group = tuple[int, int, int, int]  # first scale, scales to draft, lengths of both caches


def _groups(state: DecodeState, length: DraftLength) -> list[tuple[Group, list[int]]]:
    """Images that can share a pass: at the same scale, with as much to draft and caches of the same length."""
    groups = defaultdict(list)
    for image, done in enumerate(state.done):
        if done < state.pyramid.S:
            count = length.count(done, state.draft_lens[image], state.pyramid.S)
            groups[done, count, state.draft.cache.lengths[image], state.target.cache.lengths[image]].append(image)
    return sorted(groups.items())


def run_round(state: DecodeState, parts: Parts, options: Options, images: list[int], first: int, count: int) -> None:
    """Draft `count` scales, verify, accept and update one group of images, all at scale `first`.

    A round never crosses from scales that the target verifies to scales that the draft decides alone, or back.

    Effects: on `state`, in place.
    """
    pyramid, policy = state.pyramid, options.policy
    alone = policy.trusts(first)
    stop = next((si for si in range(first, pyramid.S) if policy.trusts(si) != alone), pyramid.S)
    count = stop - first if alone else min(count, stop - first)
    before = [(state.target.rows[image], state.draft.rows[image]) for image in images]
    proposal = draft_generate_batch(state, parts, policy, images, first, count)
    judge = _trust if alone else _verify
    turn = judge(
        state, parts, options, Window(state.noise, pyramid, images, first, first + count - 1, "target"), proposal
    )
    parts.update_state_with_accepted_tokens(state, parts, images, first, turn.tokens_by_scale, turn.finished)
    for k, image in enumerate(images):
        record = _record(pyramid, first, count, turn, k)
        state.rounds[image].append(
            replace(
                record,
                target_rows=state.target.rows[image] - before[k][0],
                draft_rows=state.draft.rows[image] - before[k][1],
                target_cache=state.target.cache.lengths[image],
                draft_cache=state.draft.cache.lengths[image],
            )
        )


@dataclass(frozen=True)
class _Turn:
    """What a round decided, by image of the group: final tokens, whole scales, final scales, kept tokens by scale."""

    tokens_by_scale: list[Tensor]
    accepted: list[int]
    finished: list[int]
    kept_bs: list[list[int]]


def _trust(state: DecodeState, parts: Parts, options: Options, window: Window, proposal: Proposal) -> _Turn:
    """Take the draft's tokens as they are; no target pass."""
    count, B = len(window.scales), len(window.images)
    kept = [state.pyramid.tokens(si) for si in window.scales]
    return _Turn(list(window.split(proposal.tokens_bn)), [count] * B, [count] * B, [kept] * B)


@dataclass(frozen=True)
class _Decision:
    """What the device made of a window: tokens by scale, the numbers that the host needs, tensors for a diagnosis."""

    tokens_by_scale: list[Tensor]
    numbers: Tensor  # is_finite, accepted_b, kept_bs
    verified: Verified | None


def _verify(state: DecodeState, parts: Parts, options: Options, window: Window, proposal: Proposal) -> _Turn:
    """Let the target judge the drafted scales, and finish the one behind them after full acceptance (bonus)."""
    policy, last, count = options.policy, window.last, len(window.scales)
    bonus = options.bonus and last + 1 < state.pyramid.S and not policy.trusts(last + 1)
    keep = state.intermediates is not None

    def judge(verified: Verified) -> _Decision:
        acceptance = policy.accept(parts, proposal, torch.cat(verified.probs_by_scale[:count], 1), window)
        tokens = [
            torch.where(whole_b[:, None], drafted_bl, corrected_bl)
            for whole_b, drafted_bl, corrected_bl in zip(
                acceptance.whole_bs.unbind(1),
                window.split(proposal.tokens_bn),
                window.split(acceptance.tokens_bn),
                strict=True,
            )
        ]
        if bonus:
            behind = replace(window, first=last + 1, last=last + 1)
            tokens.append(policy.extend(parts, verified.probs_by_scale[count], behind))
        numbers = _numbers(acceptance, verified, window)
        return _Decision(tokens, numbers, verified if keep else None)

    step = Step(f"judge {count} by {policy.name}", judge)
    decision = target_verify_batch(state, parts, window.images, window.first, last + bonus, step)
    accepted, kept_bs = _fetch(decision.numbers, window)
    finished = [whole + (1 if whole < count or bonus else 0) for whole in accepted]
    keep_intermediates(state, window.images, window.first, finished, decision.verified)
    return _Turn(decision.tokens_by_scale, accepted, finished, kept_bs)


def _record(pyramid: ScalePyramid, first: int, drafted: int, turn: _Turn, k: int) -> Round:
    """Count the round of the group's k-th image. Tokens of a whole scale are accepted; else those that were kept."""
    accepted = turn.accepted[k]
    corrected = accepted < drafted
    bonus = turn.finished[k] > drafted
    whole_tokens = sum(pyramid.tokens(si) for si in range(first, first + accepted))
    kept_in_corrected = turn.kept_bs[k][accepted] if corrected else 0
    return Round(
        first=first,
        drafted=drafted,
        accepted=accepted,
        corrected=corrected,
        bonus=bonus,
        accepted_tokens=whole_tokens + kept_in_corrected,
        corrected_tokens=pyramid.tokens(first + accepted) - kept_in_corrected if corrected else 0,
        bonus_tokens=pyramid.tokens(first + drafted) if bonus else 0,
        target_rows=0,
    )


def _numbers(acceptance: Acceptance, verified: Verified, window: Window) -> Tensor:
    """Gather what the host must know of a round: whether the target's logits are finite, accepted_b and kept_bs."""
    finite = torch.isfinite(verified.rows_RnV).all().long()[None]
    accepted_b = acceptance.whole_bs.long().cumprod(1).sum(1)
    kept_bs = torch.stack([kept_bl.sum(1) for kept_bl in window.split(acceptance.kept_bn)], 1)
    return torch.cat((finite, accepted_b, kept_bs.flatten()))


def _fetch(numbers: Tensor, window: Window) -> tuple[list[int], list[list[int]]]:
    """Bring accepted_b and kept_bs to the host: the round's one wait for the device.

    Raises:
        NonFiniteError: the target's logits are not finite.
    """
    is_finite, *counts = numbers.tolist()
    if not is_finite:
        raise NonFiniteError("target.logits", f"the pass that began at scale {window.first}")
    b, s = len(window.images), len(window.scales)
    return counts[:b], [counts[b + k * s : b + (k + 1) * s] for k in range(b)]


def _trace(state: DecodeState, seconds: float) -> Trace:
    return Trace(
        tokens_BL=state.tokens_BL.clone(),  # a workspace's buffers are the next decode's
        f_hat_BCPP=state.f_hat_BCPP.clone(),
        scale_writes_BS=state.writes_BS,
        rounds=state.rounds,
        target_calls=state.target.calls,
        target_rows=state.target.rows,
        draft_calls=state.draft.calls,
        draft_rows=state.draft.rows,
        intermediates=state.intermediates,
        seconds=seconds,
        cache_bytes={side.name: side.cache.bytes() for side in (state.draft, state.target)},
        peak_bytes=peak_bytes(state.target.network.device),
    )


def peak_bytes(device: torch.device) -> int:
    """Return the high-water mark of memory: the allocator's on CUDA, the process's resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
