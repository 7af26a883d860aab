"""The hand-off sampler ("test3"): the draft decodes the first scales, the target the rest.

Promise: mode "recorded" is the published behaviour, its defect included; mode "corrected" differs in one line, the
entry scale's logits come from the hidden states of the masked pass instead of from its raw input embeddings. Any
pyramid, any entry, every sd_mask; guidance, filter, draw and accumulation are those of `sequential`.

Source: spec §8.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import ModelPair
from harness.protocol import Noise, Request, Trace
from harness.reference._steps import HAND_OFF_MASKS, family_of, hand_off_mask
from harness.reference.sequential import Progress, Walk

HandOffMode = Literal["recorded", "corrected"]


@dataclass(frozen=True)
class HandOff:
    """Where and how the target takes over. Raises `InputError` for a value outside its range."""

    entry: int  # first scale of the target; 0 = it decodes everything, S or more = the draft does
    # what the target is fed at the entry scale: 0 the entry scale alone, 1..5 the whole prefix too, under that mask
    sd_mask: int = 0
    mode: HandOffMode = "corrected"  # "recorded" (published, defect included) or "corrected"

    def __post_init__(self) -> None:
        if self.entry < 0:
            raise InputError("entry", self.entry, "must be 0 or more", "pass 0 for the target alone")
        if self.sd_mask not in HAND_OFF_MASKS:
            raise InputError("sd_mask", self.sd_mask, "must lie in 0..5", "pass 0 for no prefix, 3 for block-causal")
        if self.mode not in ("recorded", "corrected"):
            raise InputError("mode", self.mode, "must be recorded or corrected", "pass mode corrected")


@torch.inference_mode()
def sample_handoff(
    models: ModelPair, request: Request, noise: Noise, hand_off: HandOff, forced_BL: Tensor | None = None
) -> Trace:
    """Draw a batch of images, the first scales by the draft, the rest by the target.

    One noise runs through both, read as "reference"; `forced_BL` is teacher forcing as in `sample_sequential`. Returns
    a trace with all intermediates; `x_RLD` are the target's inputs, at the draft's scales too. Raises `InputError` for
    a label or top_k that the networks do not have.
    """
    start = time.perf_counter()
    pyramid, entry = models.pyramid, min(hand_off.entry, models.pyramid.S)
    request.check_for(models.target.config)
    labels_B = noise.labels(models.target.config.classes)
    draft, target = Walk.begin(models.draft, request, labels_B), Walk.begin(models.target, request, labels_B)
    progress = Progress(models.target, models.vae, request, noise, forced_BL)
    for si in pyramid:
        raw_BlC = progress.raw()
        x_RlD = target.input(raw_BlC, si)
        if si < entry:
            rows_RlV = draft.rows(draft.input(raw_BlC, si), si)
        elif si == entry:
            rows_RlV = _entry_rows(target, [*progress.x, x_RlD], hand_off)
        else:
            rows_RlV = target.rows(x_RlD, si)
        progress.finish_scale(x_RlD, rows_RlV)
    before = pyramid.begin(entry)
    prefix = before if hand_off.sd_mask and entry < pyramid.S else 0
    trace = progress.trace(time.perf_counter() - start, pyramid.S - entry, prefix + pyramid.L - before)
    return replace(trace, draft_calls=[entry] * request.B, draft_rows=[before] * request.B)


def _entry_rows(target: Walk, x: list[Tensor], hand_off: HandOff) -> Tensor:
    """Return logits_RlV of the entry scale. Effects: fills the target's cache."""
    if hand_off.sd_mask == 0:  # no prefix: the target never sees the earlier scales
        return target.rows(x[-1], hand_off.entry)
    network, entry = target.network, hand_off.entry
    mask_11nn = hand_off_mask(network.pyramid, entry, hand_off.sd_mask, network.device, network.dtype)
    positions = family_of(network).positions(network, 0, entry)
    hidden_RnD = network.hidden(torch.cat(x, 1), target.condition, target.cache, mask_11nn, positions)
    if hand_off.mode == "recorded":
        return network.logits(x[-1], target.condition)  # the published defect: hidden states are thrown away
    return network.logits(hidden_RnD[:, network.pyramid.span(entry)], target.condition)
