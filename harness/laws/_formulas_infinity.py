"""The Infinity page's formulas once more, in float64, for laws of the code that decoder and reference share.

Promise: as in `_formulas`: written from the page alone, and nothing of `models/` computes here. Plain and slow: every
row of guidance alone, every text without its neighbours, one pass over the whole image.
"""

import math
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from harness.laws._formulas import gelu, normal, silu
from harness.models.infinity.transformer import InfinityConfig
from harness.protocol import Request, ScalePyramid

_Weights = Mapping[str, Tensor]


def logits(config: InfinityConfig, w: _Weights, raw_BLN: Tensor, request: Request, labels: tuple[int, ...]) -> Tensor:
    """Return logits_RLV of all draws along raw inputs (page §3, §5): conditional rows, then what guidance compares."""
    guidance, levels, pyramid = request.scale_guidance, torch.tensor(config.pyramid.levels()), config.pyramid
    assert guidance is not None
    texts = [request.texts[label].numbers_TA.to(raw_BLN) for label in labels]
    if request.is_guided:
        against = [rows.numbers_TA.to(raw_BLN) for rows in request.negative_texts]
        texts += [against[k] if against else w["cfg_uncond"][: len(request.texts[k].numbers_TA)] for k in labels]
    texts = [_rms(text_TA) * w["text_norm.weight"] for text_TA in texts]
    pool = "text_proj_for_sos.ca."
    query_1Hc = w[f"{pool}mat_q"]
    cond_RD = torch.cat([_linear(w, f"{pool}proj", _attend(config, w, pool, query_1Hc, text)) for text in texts])
    texts = [_linear(w, "text_proj_for_ca.2", gelu(_linear(w, "text_proj_for_ca.0", text))) for text in texts]
    if config.norm0_ve:
        raw_BLN = normal(raw_BLN) * w["norm0_ve.weight"] + w["norm0_ve.bias"]
    x_BLD = _linear(w, "word_embed", raw_BLN)
    x_RLD = torch.cat([x_BLD] * (len(texts) // len(x_BLD)))
    x_RLD[:, 0] = cond_RD + w["pos_start"][:, 0]
    level_LD = w["lvl_embed.weight"][levels]
    mixed = raw_BLN.new_tensor(guidance.weights)[levels][:, None]
    for i in range(config.depth):
        chunk, j = divmod(i, config.depth // config.chunks)
        block = f"block_chunks.{chunk}.module.{j}."
        if i == 0 or (j == 0 and not config.levels_once):
            x_RLD = x_RLD + level_LD
        rows = zip(x_RLD, cond_RD, texts, strict=True)
        x_RLD = torch.stack([_block(config, w, block, x_LD, cond_D, text) for x_LD, cond_D, text in rows])
        if i - config.depth in guidance.places and request.is_guided:
            one_BLD, other_BLD = x_RLD.chunk(2)
            both_BLD = mixed * one_BLD + (1 - mixed) * other_BLD
            x_RLD = torch.where(mixed == 1, x_RLD, torch.cat((both_BLD, both_BLD)))
    scale_RD, shift_RD = _linear(w, "head_nm.ada_lin.1", silu(cond_RD)).chunk(2, -1)
    out_RLV = normal(x_RLD) * (1 + scale_RD[:, None]) + shift_RD[:, None]
    if config.two_layer_head:
        out_RLV = _linear(w, "head.2", gelu(_linear(w, "head.0", out_RLV)))
    else:
        out_RLV = _linear(w, "head", out_RLV)
    return out_RLV.reshape(len(texts), pyramid.draws.L, 2)


def _block(config: InfinityConfig, w: _Weights, block: str, x_LD: Tensor, cond_D: Tensor, text_TD: Tensor) -> Tensor:
    if config.shared_adaln:
        six_6D = w[f"{block}ada_gss"][0, 0] + _linear(w, "shared_ada_lin.1", silu(cond_D)).view(6, -1)
    else:
        six_6D = _linear(w, f"{block}ada_lin.1", silu(cond_D)).view(6, -1)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six_6D
    x_LD = x_LD + gamma1 * _self_attention(config, w, f"{block}sa.", normal(x_LD) * (1 + scale1) + shift1)
    query_LD = _linear(w, f"{block}ca.mat_q", normal(x_LD) * w[f"{block}ca_norm.weight"] + w[f"{block}ca_norm.bias"])
    out_LD = _attend(config, w, f"{block}ca.", query_LD.unflatten(-1, (config.H, -1)), text_TD)
    x_LD = x_LD + w.get(f"{block}ca_gamma", 1) * _linear(w, f"{block}ca.proj", out_LD)
    inner = gelu(_linear(w, f"{block}ffn.fc1", normal(x_LD) * (1 + scale2) + shift2))
    x_LD = x_LD + gamma2 * _linear(w, f"{block}ffn.fc2", inner)
    return x_LD


def _self_attention(config: InfinityConfig, w: _Weights, name: str, h_LD: Tensor) -> Tensor:
    H, c, level_L = config.H, config.D // config.H, torch.tensor(config.pyramid.levels())
    bias = torch.cat((w[f"{name}q_bias"], torch.zeros_like(w[f"{name}q_bias"]), w[f"{name}v_bias"]))
    q, k, v = ((h_LD @ w[f"{name}mat_qkv.weight"].T + bias)[:, part].unflatten(-1, (H, c)).transpose(0, 1)
               for part in torch.arange(3 * H * c).chunk(3))  # fmt: skip
    scale = 1 / math.sqrt(c)
    if config.l2_norm:
        q, k = (each / each.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12) for each in (q, k))
        q, scale = q * w[f"{name}scale_mul_1H11"][0].clamp(max=math.log(100)).exp(), 1.0
    turn = torch.polar(torch.ones_like(angles := _angles(config, c).to(h_LD)), angles)
    q, k = (torch.view_as_real(torch.view_as_complex(each.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for each in (q, k))  # fmt: skip
    sees_LL = level_L[:, None] >= level_L[None, :]
    weights_HLL = (scale * q @ k.transpose(-1, -2)).masked_fill(~sees_LL, float("-inf")).softmax(-1)
    return _linear(w, f"{name}proj", (weights_HLL @ v).transpose(0, 1).flatten(1))


def _angles(config: InfinityConfig, c: int) -> Tensor:
    """Return the angle (L,c/2) of every pair of channels: those of the row, then those of the column (rule 2)."""
    (H, W), m = config.full, c // 4
    where = [
        (y * torch.tensor(H / h), x * torch.tensor(W / w))  # float32, which then decides which half is even
        for h, w in config.pyramid.sides
        for y, x in product(range(h), range(w))
    ]
    omega_m = torch.tensor([10000 ** (-4 * k / c) for k in range(m)], dtype=torch.float64)
    return (torch.tensor(where).round().double()[..., None] * omega_m).flatten(1)


def _attend(config: InfinityConfig, w: _Weights, name: str, q_nHc: Tensor, text_TD: Tensor) -> Tensor:
    """Return what positions read of one text, before `proj`; queries, text and result round by the network's law."""
    v_bias = w[f"{name}v_bias"]
    kv = _rounded(config, text_TD @ w[f"{name}mat_kv.weight"].T + torch.cat((torch.zeros_like(v_bias), v_bias)))
    k_THc, v_THc = (each.unflatten(-1, q_nHc.shape[1:]) for each in kv.chunk(2, -1))
    scores_nHT = torch.einsum("nhc,thc->nht", _rounded(config, q_nHc), k_THc) / math.sqrt(q_nHc.shape[-1])
    return _rounded(config, torch.einsum("nht,thc->nhc", scores_nHT.softmax(-1), v_THc)).flatten(1)


def _rounded(config: InfinityConfig, x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype) if config.rounds else x


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _linear(w: _Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def draws_of(map_BChw: Tensor, patch: int) -> Tensor:
    """Return a map's numbers in the order of a scale's draws, (B,l·N): by position, then by channel (§4)."""
    C, h, w = map_BChw.shape[1:]
    places = [
        map_BChw[:, channel, patch * y + i, patch * x + j]
        for y, x in product(range(h // patch), range(w // patch))
        for channel, i, j in product(range(C), range(patch), range(patch))
    ]
    return torch.stack(places, 1)


def encoded(z_BChw: Tensor, pyramid: ScalePyramid, bits_BL: Tensor) -> Tensor:
    """Return the residuals (B,L) whose signs a latent map's bits are, where earlier scales have these bits (§4)."""
    patch, cum, residuals = z_BChw.shape[3] // pyramid.sides[-1][1], torch.zeros_like(z_BChw), []
    interpolate, size = torch.nn.functional.interpolate, z_BChw.shape[1] ** -0.5
    for si, (h, w) in enumerate(pyramid.sides):
        r_BChw, last = z_BChw - cum, si == pyramid.S - 1
        r_BChw = r_BChw if last else interpolate(r_BChw, (patch * h, patch * w), mode="area")
        residuals.append(draws_of(r_BChw, patch))
        places_l = draws_of(torch.arange(r_BChw[0].numel()).view(1, *r_BChw.shape[1:]), patch)[0]
        codes = torch.zeros_like(r_BChw).flatten(1)
        codes[:, places_l] = size * (2.0 * bits_BL[:, pyramid.draws.span(si)] - 1).to(codes)
        codes = codes.view_as(r_BChw)
        cum = cum + (codes if last else interpolate(codes, z_BChw.shape[2:], mode="bilinear"))
    return torch.cat(residuals, 1)
