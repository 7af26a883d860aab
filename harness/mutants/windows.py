"""Planted bugs that a close draft shows: later rows of a window, bonus scales, large scales, uneven batches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.models.network import Condition
from harness.mutants import _mutant as plant
from harness.mutants._mutant import Alone, Mutant
from harness.mutants.guidance import guide_rows
from harness.mutants.masks import late_rows
from harness.mutants.positions import query_levels
from harness.mutants.randomness import filtered
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import Acceptance, DecodeState, KVCache, Outcome, Proposal, Side, Window, most_likely
from harness.speculative.parts import PARTS, Parts


def _whole(rule: Callable[[Tensor, int], Tensor]) -> Factory:
    """Plant another rule by which a scale is accepted: (accepted_bl, index in the window)."""

    def changed(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
        scales = [rule(accepted_bl, k) for k, accepted_bl in enumerate(window.split(judged.accepted_bn))]
        return replace(judged, whole_bs=torch.stack(scales, 1))

    return plant.judgement(changed)


def _bonus_noise(used: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    before = replace(window, first=window.first - 1, last=window.last - 1).exponential("token")
    n = probs_bnV.shape[1]
    return used.draw(probs_bnV, before.repeat(1, -(-n // before.shape[1]), 1)[:, :n])


def _byte_counts(numbers: Tensor, judged: Acceptance, rows_RnV: Tensor, window: Window) -> Tensor:
    counts = 1 + len(window.images)
    return torch.cat((numbers[:counts], numbers[counts:] % 256))


def _late_guide(guided: Tensor, rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    if last >= first + 2:
        guided[:, -pyramid.tokens(last) :] = rows_RnV.chunk(2)[0][:, -pyramid.tokens(last) :]
    return guided


def _cfg(change: Callable[[float], float]) -> Factory:
    return plant.passed(guide=lambda rows, pyramid, cfg, *window: (rows, pyramid, change(cfg), *window))


def _drafted(state: DecodeState, window: Window) -> Proposal:
    b = len(window.images)
    return Proposal(state.drafted_tokens_BL[:b, window.span], state.drafted_probs_BLV[:b, window.span])


def _condition_of(self: Side, images: list[int]) -> Condition:
    B, b = len(self.calls), len(images)
    if b == B:
        return self.condition
    return self.condition.rows(torch.tensor([*range(b), *range(B, B + b)], device=self.network.device))


def _bonus_not_added(
    state: DecodeState, used: Any, images: list[int], first: int, tokens: list[Tensor], finished: list[int]
) -> None:
    """Add only drafted scales to f_hat: where all images finish more than one scale, the last one is lost."""
    before = state.f_hat_BCPP.clone()
    PARTS.update_state_with_accepted_tokens(state, used, images, first, tokens, finished)
    for image, count in zip(images, finished, strict=True):
        if count >= 3:
            state.f_hat_BCPP[image] = 0.5 * (before[image] + state.f_hat_BCPP[image])


def _later_raw_lost(state: DecodeState, image: int, first: int, finished: int, tried: int) -> None:
    """Roll the target's cache back one scale too far after several scales were finished."""
    if finished >= 2:
        state.target.cache.kv[:, :, image, :, state.pyramid.begin(first + finished - 1) :] = 0
        state.target.cache.lengths[image] = state.pyramid.begin(first + finished)


def _half_kept(cache: KVCache, images: list[int]) -> tuple[KVCache, list[int]]:
    cache.kv.copy_(cache.kv.half().to(cache.kv.dtype))
    return cache, images


def _accepted_less(outcome: Outcome, verified: Any, window: Window, bonus: bool) -> Outcome:
    count = len(window.scales)
    accepted = [n - (n == count > 1 and not bonus) for n in outcome.accepted]
    finished = [min(n, a + 1) for n, a in zip(outcome.finished, accepted, strict=True)]
    return replace(outcome, accepted=accepted, finished=finished)


def _same_for_group(outcome: Outcome, *of_round: Any) -> Outcome:
    accepted, finished = ([min(counts)] * len(counts) for counts in (outcome.accepted, outcome.finished))
    return replace(outcome, accepted=accepted, finished=finished)


def _kept_swapped(state: DecodeState, window: Window, outcome: Outcome, *of_image: Any) -> tuple[Any, ...]:
    accepted_bs = [[row[0]] * len(row) for row in outcome.accepted_bs]
    return state, window, replace(outcome, accepted_bs=accepted_bs), *of_image


def _smoothed(draft_BnV: Tensor, target_BnV: Tensor) -> Tensor:
    above_BnV = (target_BnV - draft_BnV).clamp_min(0) + 1e-3
    return above_BnV / above_BnV.sum(-1, keepdim=True)


_ROUND = "harness.speculative._round:"
# fmt: off
NEARLY_WHOLE = Mutant("acceptance.nearly-whole", "a scale is accepted when more than 99 % of it is right",
    "a rate for an all", _whole(lambda accepted_bl, k: accepted_bl.double().mean(1) > 0.99), component="accept")
ONE_FORGIVEN = Mutant("acceptance.one-forgiven", "one error is forgiven above 200 tokens",
    "a tolerance tuned on images", _whole(lambda accepted_bl, k: (~accepted_bl).sum(1) <= (accepted_bl.shape[1] > 200)),
    component="accept")
BYTE_COUNTS = Alone("acceptance.byte-counts", "kept tokens are counted in eight bits", "a mask summed in its own type",
    plant.patched(plant.result_of(_ROUND + "round_numbers", _byte_counts)))
SECOND_FREE = Mutant("acceptance.second-free", "the second drafted scale is never checked",
    "a loop that begins after it", _whole(lambda accepted_bl, k: accepted_bl.all(1) | (k == 1)), component="accept")
LATE_FREE = Mutant("acceptance.late-free", "from the third drafted scale on one right token is enough", "any for all",
    _whole(lambda accepted_bl, k: accepted_bl.all(1) if k < 2 else accepted_bl.any(1)), component="accept")
BONUS_GREEDY = Mutant("acceptance.bonus-greedy", "the bonus scale takes the most likely tokens", "a draw left out",
    plant.policy(lambda true: replace(true, extend=most_likely)), component="draw")
BONUS_NOISE = Mutant("acceptance.bonus-noise", "the bonus scale reads the numbers of the scale before",
    "a window's last index", plant.policy(lambda true: replace(true, extend=_bonus_noise)), component="draw")
BONUS_FIRST = Mutant("batch.bonus-first", "the bonus scale of a group is that of its first image",
    "a tensor broadcast from one row", plant.policy(lambda true: replace(true, extend=plant.returning(
        true.extend, lambda tokens_bn, *of: tokens_bn[:1].expand_as(tokens_bn)))), component="draw")
ACCEPTED_LESS = Mutant("acceptance.accepted-less", "a draft accepted whole loses its last scale to a correction",
    "a count from 0", plant.patched(plant.result_of(_ROUND + "fetch_outcome", _accepted_less)))
KEPT_SWAPPED = Mutant("acceptance.kept-swapped", "kept tokens are those of the window's first scale",
    "an index that stays 0", plant.patched(plant.arguments_of(_ROUND + "record_round", _kept_swapped)))
CLAMPED_U = Alone("acceptance.clamped-u", "contract B: u is at least 0.02", "a guard against zero",
    plant.passed(keep_drafted=lambda u_Bn, *probs: (u_Bn.clamp_min(0.02), *probs)))
SMOOTHED = Alone("acceptance.smoothed", "contract B: an epsilon in the residual", "a guard against an empty mass",
    plant.parts(residual=_smoothed))
SAME_FOR_GROUP = Mutant("batch.same-for-group", "the least acceptance of a group holds for all of it",
    "a minimum over the batch", plant.patched(plant.result_of(_ROUND + "fetch_outcome", _same_for_group)))
FIRST_DRAFTS = Mutant("batch.first-drafts", "a group that is no whole batch is judged by other images' drafts",
    "rows not gathered", plant.patched({_ROUND + "drafted_proposal": _drafted}))
FIRST_CONDITION = Mutant("batch.first-condition", "a group that is no whole batch gets the first images' condition",
    "rows not gathered", plant.patched({"harness.speculative._state:Side.condition_of": _condition_of}),
    component="condition")
INTERLEAVED_ROWS = Mutant("guidance.interleaved", "guidance rows are taken in turns", "another order of rows",
    guide_rows(lambda rows_RnV: torch.cat((rows_RnV[0::2], rows_RnV[1::2]))), component="guidance")
LATE_GUIDE = Mutant("guidance.late", "the last scale of a window of three or more is not guided",
    "a slice that ends too early", plant.returned(guide=_late_guide), component="guidance")
NEGATIVE = Mutant("guidance.negative", "a negative guidance value is taken for 0", "max(0, cfg)",
    _cfg(lambda cfg: max(0.0, cfg)), component="guidance")
CAPPED = Mutant("guidance.capped", "guidance values end at 3", "a range", _cfg(lambda cfg: min(cfg, 3.0)),
    component="guidance")
ZERO_DEFAULT = Mutant("guidance.zero-default", "cfg 0 is taken for the default", "`cfg or 1.5`",
    _cfg(lambda cfg: cfg or 1.5), component="guidance")
NEARLY_ONE = Mutant("randomness.nearly-one", "top_p above 0.95 is switched off", "a shortcut",
    filtered(lambda top_k, top_p, V: (top_k, 0.0 if top_p > 0.95 else top_p)), component="draw")
HALF_PROBS = Mutant("randomness.half-probs", "the race is run in half precision", "autocast around the draw",
    plant.passed(draw=lambda probs_BnV, E_BnV: (probs_BnV.half().float(), E_BnV)))
LATE_LEVEL = Mutant("positions.late-level", "from a window's third scale on rows have the second's level",
    "an index that stops", query_levels(lambda si, first: min(si, first + 1)), component="positions")
LATE_MASK = Mutant("masks.late", "from a window's third scale on position 0 is hidden", "a mask for windows of two",
    late_rows(2, hidden=1), component="mask")
BONUS_LATENT = Mutant("state.half-sum", "where three scales are finished at once f_hat gets half of them",
    "an update in two halves", plant.parts(update_state_with_accepted_tokens=_bonus_not_added))
CACHE_LOST = Mutant("state.cache-lost", "where several scales are finished the last one's keys are zeroed",
    "a roll-back too far", plant.updating(_later_raw_lost), component="mask or cache")
HALF_CACHE = Mutant("state.half-cache", "keys and values are stored in half precision", "a smaller cache",
    plant.caching(window=plant.given(KVCache.window, _half_kept)))
BFLOAT_SUM = Mutant("state.bfloat-sum", "f_hat is accumulated in bfloat16",
    "the networks' precision for the quantiser's",
    plant.returned(accumulate=lambda f_hat, *scale: f_hat.bfloat16().to(f_hat.dtype)), component="precision")
