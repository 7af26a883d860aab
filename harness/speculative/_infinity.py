"""What the decoder does with a network of Infinity, a window of scales at a time: query, places, guidance, latent map.

Promise: each states its contract, and depends on its arguments alone; `parts` composes the decoder of them. The module
of this name in `reference/` keeps the same contracts, one scale at a time; positions are those of rule 2 alone here.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.infinity.transformer import InfinityConfig, infinity_config
from harness.models.network import Condition, Network
from harness.protocol import Request, ScalePyramid


def condition_rows(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Return the condition of the guidance rows, conditional ones first; device work."""
    infinity_config(network).check_request(request)
    own = [request.texts[label].numbers_TA for label in labels_B.tolist()]
    other = [request.negative_texts[label].numbers_TA for label in labels_B.tolist() if request.negative_texts]
    other = other or [network.weights["cfg_uncond"][: text.shape[0]].to(text) for text in own]
    return replace(network.condition(own + other if request.R > request.B else own), guidance=request.scale_guidance)


def build_combined_query(network: Network, condition: Condition, raw_BnN: Tensor, first: int, last: int) -> Tensor:
    """Return x_RnD of scales first..last, each position with its own level; the raw input of position 0 is not used."""
    counts = torch.tensor(network.pyramid.counts[first : last + 1], device=network.device)
    level_nD = network.lvl_SD[first : last + 1].repeat_interleave(counts, 0)
    x_BnD = network.embed(raw_BnN) + level_nD
    x_RnD = x_BnD.repeat(condition.cond_RD.shape[0] // x_BnD.shape[0], 1, 1)
    if first == 0:
        x_RnD[:, 0] = condition.cond_RD + network.start_1D + level_nD[0]
    return x_RnD


@cache  # never emptied, since a recorded pass keeps the address; a few KiB an entry
def _places(config: InfinityConfig, first: int, last: int, device: torch.device) -> Tensor:
    (full_h, full_w), scales = config.full, []
    for si in range(first, last + 1):
        h, w = config.pyramid.sides[si]
        place_l = torch.arange(h * w)
        # float32 products, half to even
        y_l = torch.round((place_l // w).float() * torch.tensor(full_h / h))
        x_l = torch.round((place_l % w).float() * torch.tensor(full_w / w))
        scales.append(torch.stack((torch.full_like(y_l, si), y_l, x_l), 1))
    return torch.cat(scales).double().to(device)


def positions(network: Network, first: int, last: int) -> Tensor:
    """Return level, row and column (n,3) of the rows of scales first..last. Raises `InputError` but for rule 2."""
    config = infinity_config(network)
    if config.rule != 2 or not config.fused:
        rule = "must be 2, of fused blocks: what sits elsewhere the reference alone decodes"
        raise InputError("position rule", config.rule, rule, "pass networks of rule 2")
    return _places(config, first, last, network.device)


def guide(rows_RnV: Tensor, pyramid: ScalePyramid, guidance: Any, first: int, last: int) -> Tensor:
    """Return guided_BnV of scales first..last, each by its own weight and τ. Raises `InputError` for odd rows."""
    if guidance.guided and rows_RnV.shape[0] % 2:
        rule = "must be 2B: conditional, then unconditional"
        raise InputError("guidance rows", rows_RnV.shape[0], rule, "pass both halves")
    guided, scales = [], rows_RnV.split(pyramid.draws.counts[first : last + 1], 1)
    for si, rows_RlV in enumerate(scales, first):
        z_RlV, w = rows_RlV * (1 / guidance.temperature(si)), guidance.weights[si]
        z_BlV = z_RlV[: z_RlV.shape[0] // 2] if guidance.guided else z_RlV
        guided.append(z_BlV if w == 1 or 0 not in guidance.places else w * z_BlV + (1 - w) * z_RlV[len(z_BlV) :])
    return torch.cat(guided, 1)


def accumulate(f_hat_BChw: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    """Return f_hat after scale `si` with int64 bits `idx_Bl`, a tensor of its own; the last scale is not resized."""
    codes_BChw = quantizer.codes(idx_Bl, *pyramid.sides[si])
    return f_hat_BChw + (codes_BChw if si + 1 == pyramid.S else _linear(codes_BChw, list(f_hat_BChw.shape[-2:])))


def next_input(f_hat_BChw: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return raw_BlN, the raw input of scale `si`, from f_hat after the scales before it; a tensor of its own."""
    (h, w), (H, W), latent = pyramid.sides[si], pyramid.sides[-1], f_hat_BChw.shape[-2:]
    map_BChw = _linear(f_hat_BChw, [h * latent[0] // H, w * latent[1] // W])
    if tuple(latent) != (H, W):  # patchified: four neighbours are one position's channels
        map_BChw = F.pixel_unshuffle(map_BChw, 2)
    return map_BChw.flatten(2).mT.clone()


def _linear(map_BChw: Tensor, sides: list[int]) -> Tensor:
    """Resize linearly, both sides at once: a frame, channels last, as published code does."""
    frame = map_BChw[:, :, None].contiguous(memory_format=torch.channels_last_3d)
    return F.interpolate(frame, [1, *sides], mode="trilinear", align_corners=False)[:, :, 0]
