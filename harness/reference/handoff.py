"""The hand-off sampler ("test3"): the draft decodes the first scales, the target the rest.

Promise: mode "recorded" is the published behaviour, its defect included; mode "corrected" differs in one line, the
entry scale's logits come from the hidden states of the masked pass instead of from its raw input embeddings. Any
pyramid, any entry, every sd_mask; guidance, filter, draw and accumulation are those of `sequential`.

Source: spec §8.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models.pair import ModelPair
from harness.protocol.noise import SMOOTH, Noise
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Trace
from harness.reference.draw import smooth_codes
from harness.reference.guidance import guide
from harness.reference.latent import accumulate, next_input
from harness.reference.masks import HAND_OFF_MASKS, hand_off_mask
from harness.reference.sequential import choose
from harness.reference.walk import Walk

HandOffMode = Literal["recorded", "corrected"]


@dataclass(frozen=True)
class HandOff:
    """Where and how the target takes over.

    Args:
        entry: first scale of the target; 0 = it decodes everything, S or more = the draft does.
        sd_mask: what the target is fed at the entry scale, 0..5: 0 the entry scale alone, 1..5 the whole prefix too,
            under that mask.
        mode: "recorded" (published, defect included) or "corrected".

    Raises:
        InputError: a value outside its range.
    """

    entry: int
    sd_mask: int = 0
    mode: HandOffMode = "corrected"

    def __post_init__(self) -> None:
        if self.entry < 0:
            raise InputError("entry", self.entry, "must be 0 or more", "pass 0 for the target alone")
        if self.sd_mask not in HAND_OFF_MASKS:
            raise InputError("sd_mask", self.sd_mask, "must lie in 0..5", "pass 0 for no prefix, 3 for block-causal")
        if self.mode not in ("recorded", "corrected"):
            raise InputError("mode", self.mode, "must be recorded or corrected", "pass mode corrected")


@dataclass
class _Made:
    """What was computed so far, a list item a scale; `x` holds the target's inputs of the draft's scales too."""

    x: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    f_hat: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def sample(
    models: ModelPair, request: Request, noise: Noise, hand_off: HandOff, forced_BL: Tensor | None = None
) -> Trace:
    """Draw a batch of images, the first scales by the draft, the rest by the target.

    Args:
        models: draft, target and quantiser.
        request: what to draw.
        noise: one noise that runs through both; read as "reference".
        hand_off: entry, mask and mode.
        forced_BL: teacher forcing as in `sequential.sample`: consumed in place of the drawn tokens.

    Returns:
        A trace with all intermediates; `x_RLD` are the target's inputs, at the draft's scales too.

    Raises:
        InputError: a label or top_k that the networks do not have.
    """
    start = time.perf_counter()
    pyramid = models.pyramid
    request.check_against(models.target.config.classes, models.target.config.V)
    labels_B = noise.labels(models.target.config.classes)
    draft, target = Walk.begin(models.draft, labels_B), Walk.begin(models.target, labels_B)
    made = _Made()
    raw_BlC: Tensor | None = None
    for si in pyramid:
        made.x.append(target.input(raw_BlC, si))
        if si < hand_off.entry:
            made.rows.append(draft.rows(draft.input(raw_BlC, si)))
        elif si == hand_off.entry:
            made.rows.append(_entry_rows(target, made.x, hand_off))
        else:
            made.rows.append(target.rows(made.x[si]))
        _finish_scale(models, request, noise, made, forced_BL)
        if si + 1 < pyramid.S:
            raw_BlC = next_input(made.f_hat[si], si + 1, pyramid)
    return _trace(models, request, made, hand_off, time.perf_counter() - start)


def _entry_rows(target: Walk, x: list[Tensor], hand_off: HandOff) -> Tensor:
    """Return logits_RlV of the entry scale. Effects: fills the target's cache."""
    if hand_off.sd_mask == 0:  # no prefix: the target never sees the earlier scales
        return target.rows(x[-1])
    network, entry = target.network, hand_off.entry
    mask_11nn = hand_off_mask(network.pyramid, entry, hand_off.sd_mask, network.device, network.dtype)
    hidden_RnD = network.hidden(torch.cat(x, 1), target.condition, target.cache, mask_11nn)
    if hand_off.mode == "recorded":
        return network.logits(x[-1], target.condition)  # the published defect: hidden states are thrown away
    return network.logits(hidden_RnD[:, network.pyramid.span(entry)], target.condition)


def _finish_scale(models: ModelPair, request: Request, noise: Noise, made: _Made, forced_BL: Tensor | None) -> None:
    """Guide, filter, draw and accumulate the scale whose rows came last. Effects: on `made`."""
    pyramid, vae, si = models.pyramid, models.vae, len(made.rows) - 1
    guided_BlV = guide(made.rows[si], request.cfg, si, pyramid.S)
    filtered_BlV, idx_Bl = choose(guided_BlV, request, noise, si)
    if request.more_smooth:
        E_BlV = noise.exponential(si, SMOOTH, "reference")
        codes_BlC = smooth_codes(filtered_BlV, E_BlV, vae.quantizer.codebook_VC, pyramid.ramp(si))
        codes_BCpp = codes_BlC.mT.reshape(request.B, vae.config.C, pyramid.patch_nums[si], -1)
    else:
        used_Bl = idx_Bl if forced_BL is None else forced_BL[:, pyramid.span(si)]
        codes_BCpp = vae.quantizer.codes(used_Bl, pyramid.patch_nums[si])
    shape = (request.B, vae.config.C, pyramid.P, pyramid.P)
    before = made.f_hat[-1] if made.f_hat else torch.zeros(shape, device=codes_BCpp.device, dtype=codes_BCpp.dtype)
    made.guided.append(guided_BlV)
    made.tokens.append(idx_Bl)
    made.f_hat.append(accumulate(before, codes_BCpp, si, vae.quantizer, pyramid))


def _trace(models: ModelPair, request: Request, made: _Made, hand_off: HandOff, seconds: float) -> Trace:
    pyramid, B = models.pyramid, request.B
    entry = min(hand_off.entry, pyramid.S)
    prefix = pyramid.begin(entry) if hand_off.sd_mask and entry < pyramid.S else 0
    return Trace(
        tokens_BL=torch.cat(made.tokens, 1),
        f_hat_BCPP=made.f_hat[-1],
        scale_writes_BS=torch.ones(B, pyramid.S, dtype=torch.int64),
        target_calls=[pyramid.S - entry] * B,
        target_rows=[prefix + pyramid.L - pyramid.begin(entry)] * B,
        draft_calls=[entry] * B,
        draft_rows=[pyramid.begin(entry)] * B,
        intermediates=Intermediates(
            torch.cat(made.x, 1), torch.cat(made.rows, 1), torch.cat(made.guided, 1), torch.stack(made.f_hat)
        ),
        seconds=seconds,
    )
