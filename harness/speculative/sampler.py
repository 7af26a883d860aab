"""The speculative decoder: draft, verify, accept, update, until every image has all its scales.

Promise: every round finishes at least one scale of every image that it touches; under the coupled policy the tokens
are those of sequential target decoding, whatever the draft proposes (contract A).
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import torch

from harness.errors import InputError, NonFiniteError
from harness.models.pair import ModelPair
from harness.noise import SeededNoise
from harness.pyramid import ScalePyramid
from harness.request import Request
from harness.speculative.accept import COUPLED, Policy, Window
from harness.speculative.draft import draft_generate_batch
from harness.speculative.graphs import Workspace
from harness.speculative.parts import PARTS, Parts
from harness.speculative.state import DecodeState
from harness.speculative.verify import Verified, keep_intermediates, target_verify_batch
from harness.trace import Round, Trace


@dataclass(frozen=True)
class Options:
    """How to speculate.

    Args:
        draft_len: scales proposed per round, 1..S.
        bonus: submit the scale behind the drafted ones too, and finish it after full acceptance.
        policy: coupling and acceptance rule.
        keep_intermediates: keep the named tensors that a defect is traced with.
        graphs: record and replay the passes of whole batches as CUDA graphs.
    """

    draft_len: int = 5
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

    Raises:
        InputError: draft_len outside 1..S.
    """

    def __init__(self, models: ModelPair, options: Options, parts: Parts = PARTS) -> None:
        S = models.pyramid.S
        if not 1 <= options.draft_len <= S:
            raise InputError("draft_len", options.draft_len, f"must lie in 1..{S}", f"pass --draft-len {min(5, S)}")
        if options.graphs and models.device.type != "cuda":
            raise InputError("graphs", True, f"need a CUDA device, not {models.device}", "pass --device cuda")
        self.models, self.options, self.parts = models, options, parts
        self._workspaces: dict[int, Workspace] = {}

    @property
    def contract(self) -> str:
        """What this decoder claims (design §1)."""
        return self.options.policy.contract

    def _workspace(self, B: int) -> Workspace:
        """Return the buffers and recorded passes of one batch size, made at its first use."""
        if B not in self._workspaces:
            self._workspaces[B] = Workspace(self.models, B, self.parts.new_cache)
        return self._workspaces[B]

    @torch.inference_mode()
    def decode(self, request: Request, noise: SeededNoise) -> Trace:
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
        request.check_against(self.models.target.config.classes, self.models.target.config.V)
        if request.more_smooth:
            raise InputError("more_smooth", True, "cannot be speculated: f_hat is no function of the tokens", "drop it")
        keep = self.options.keep_intermediates
        workspace = self._workspace(request.B) if self.options.graphs else None
        state = DecodeState.begin(self.models, request, noise, self.parts, keep, workspace)
        while groups := _groups(state):
            for first, images in groups:
                run_round(state, self.parts, self.options, images, first)
        return _trace(state, time.perf_counter() - start)


def _groups(state: DecodeState) -> list[tuple[int, list[int]]]:
    """Images that can share a pass: at the same scale, with caches of the same length."""
    groups = defaultdict(list)
    for image, done in enumerate(state.done):
        if done < state.pyramid.S:
            groups[done, state.draft.cache.lengths[image], state.target.cache.lengths[image]].append(image)
    return [(done, images) for (done, _, _), images in sorted(groups.items())]


def run_round(state: DecodeState, parts: Parts, options: Options, images: list[int], first: int) -> None:
    """Draft, verify, accept and update one group of images, all at scale `first`. Effects: on `state`, in place."""
    pyramid, policy = state.pyramid, options.policy
    count = min(options.draft_len, pyramid.S - first)
    last = first + count - 1
    bonus = options.bonus and last + 1 < pyramid.S
    rows_before = [state.target.rows[image] for image in images]

    proposal = draft_generate_batch(state, parts, policy, images, first, count)
    verified = target_verify_batch(state, parts, images, first, last + bonus)
    _check_finite(verified, first)

    window = Window(state.noise, pyramid, images, first, last, "target")
    law_bnV = torch.cat(verified.probs_by_scale[:count], 1)
    acceptance = policy.accept(parts, proposal, law_bnV, window)
    drafted = proposal.tokens_bn.split([pyramid.tokens(si) for si in window.scales], 1)
    corrected = acceptance.tokens_bn.split([pyramid.tokens(si) for si in window.scales], 1)
    tokens = [
        torch.where(whole_b[:, None], drafted_bl, corrected_bl)
        for whole_b, drafted_bl, corrected_bl in zip(acceptance.whole_bs.unbind(1), drafted, corrected, strict=True)
    ]
    if bonus:
        beyond = Window(state.noise, pyramid, images, last + 1, last + 1, "target")
        tokens.append(policy.extend(parts, verified.probs_by_scale[count], beyond))

    accepted = acceptance.whole_bs.long().cumprod(1).sum(1).tolist()  # the round's one wait for the device
    finished = [whole + (1 if whole < count or bonus else 0) for whole in accepted]
    keep_intermediates(state, images, first, finished, verified)
    parts.update_state_with_accepted_tokens(state, parts, images, first, tokens, finished)

    kept_bs = torch.stack([k.sum(1) for k in acceptance.kept_bn.split([len(d[0]) for d in drafted], 1)], 1).tolist()
    for k, image in enumerate(images):
        rows = state.target.rows[image] - rows_before[k]
        state.rounds[image].append(_record(pyramid, first, count, accepted[k], bonus, kept_bs[k], rows))


def _record(
    pyramid: ScalePyramid, first: int, drafted: int, accepted: int, bonus: bool, kept_s: list[int], target_rows: int
) -> Round:
    """Count one image's round. Tokens of a whole scale are accepted; those of the corrected one where kept."""
    corrected = accepted < drafted
    whole_tokens = sum(pyramid.tokens(si) for si in range(first, first + accepted))
    kept_in_corrected = kept_s[accepted] if corrected else 0
    return Round(
        first=first,
        drafted=drafted,
        accepted=accepted,
        corrected=corrected,
        bonus=bonus and not corrected,
        accepted_tokens=whole_tokens + kept_in_corrected,
        corrected_tokens=pyramid.tokens(first + accepted) - kept_in_corrected if corrected else 0,
        bonus_tokens=pyramid.tokens(first + drafted) if bonus and not corrected else 0,
        target_rows=target_rows,
    )


def _check_finite(verified: Verified, first: int) -> None:
    if not bool(torch.isfinite(verified.rows_RnV).all()):
        raise NonFiniteError("target.logits", f"the pass that began at scale {first}")


def _trace(state: DecodeState, seconds: float) -> Trace:
    return Trace(
        tokens_BL=state.tokens_BL,
        f_hat_BCPP=state.f_hat_BCPP,
        scale_writes_BS=state.writes_BS,
        rounds=state.rounds,
        target_calls=state.target.calls,
        target_rows=state.target.rows,
        draft_calls=state.draft.calls,
        draft_rows=state.draft.rows,
        intermediates=state.intermediates,
        seconds=seconds,
    )
