"""The spec page's formulas once more, in float64, for laws of the code that decoder and reference share.

Promise: written from the page alone; nothing of `models/` computes here. Weights are read under their published names.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.network import TransformerConfig

_Weights = Mapping[str, Tensor]


def normal(x: Tensor) -> Tensor:
    """Return a layer norm without affine (spec §4)."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def logits(config: TransformerConfig, w: _Weights, x_RnD: Tensor, labels_R: Tensor, mask_nn: Tensor) -> Tensor:
    """Return logits_RnV of one pass (spec §4) over rows with their position term; `mask_nn`: a row sees a column."""
    R, D = len(x_RnD), config.D
    silu_RD = _silu(w["class_emb.weight"][labels_R])
    for i in range(config.depth):
        block = f"blocks.{i}."
        if config.shared_adaln:
            shared = silu_RD @ w["shared_ada_lin.1.weight"].T + w["shared_ada_lin.1.bias"]
            six = w[block + "ada_gss"] + shared.view(R, 1, 6, D)
        else:
            six = (silu_RD @ w[block + "ada_lin.1.weight"].T + w[block + "ada_lin.1.bias"]).view(R, 1, 6, D)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (six[:, :, k] for k in range(6))
        x_RnD = x_RnD + gamma1 * _attention(config, w, block, normal(x_RnD) * (1 + scale1) + shift1, mask_nn)
        inner = (normal(x_RnD) * (1 + scale2) + shift2) @ w[block + "ffn.fc1.weight"].T + w[block + "ffn.fc1.bias"]
        gelu = 0.5 * inner * (1 + (math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)).tanh())
        x_RnD = x_RnD + gamma2 * (gelu @ w[block + "ffn.fc2.weight"].T + w[block + "ffn.fc2.bias"])
    two = (silu_RD @ w["head_nm.ada_lin.1.weight"].T + w["head_nm.ada_lin.1.bias"]).view(R, 1, 2, D)
    return (normal(x_RnD) * (1 + two[:, :, 0]) + two[:, :, 1]) @ w["head.weight"].T + w["head.bias"]


def _attention(config: TransformerConfig, w: _Weights, block: str, h_RnD: Tensor, mask_nn: Tensor) -> Tensor:
    R, n, D = h_RnD.shape
    H, c = config.H, D // config.H
    q_bias, v_bias = w[block + "attn.q_bias"], w[block + "attn.v_bias"]
    qkv = h_RnD @ w[block + "attn.mat_qkv.weight"].T + torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
    q, k, v = (qkv.view(R, n, 3, H, c)[:, :, part].transpose(1, 2) for part in range(3))
    scale = 0.25 / math.sqrt(c)
    if config.l2_norm:
        factor = w[block + "attn.scale_mul_1H11"].clamp(max=math.log(100)).exp()
        q = factor * q / q.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        k = k / k.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        scale = 1.0
    scores = (scale * q @ k.transpose(-1, -2)).masked_fill(~mask_nn, float("-inf"))
    out_RnD = (scores.softmax(-1) @ v).transpose(1, 2).reshape(R, n, D)
    return out_RnD @ w[block + "attn.proj.weight"].T + w[block + "attn.proj.bias"]


def phi_choice(si: int, S: int, n: int) -> int:
    """Return which of n φ a scale uses: the nearest tick, the first of two (spec §3)."""
    a = 1 / (3 * n) if n == 4 else 1 / (2 * n)
    step = ((1 - a) - a) / (n - 1) if n > 1 else 0.0
    # as NumPy's linspace: k·step + a, and the last tick exactly 1 − a
    ticks = [k * step + a for k in range(n - 1)] + [1 - a] if n > 1 else [a]
    distances = [abs(tick - (si / (S - 1) if S > 1 else 0.0)) for tick in ticks]
    return distances.index(min(distances))


def phi(h_BCPP: Tensor, kernel_CC33: Tensor, bias_C: Tensor) -> Tensor:
    """Return 0.5·h + 0.5·conv3x3(h), one shift of the map a tap (spec §3)."""
    P = h_BCPP.shape[-1]
    padded = F.pad(h_BCPP, (1, 1, 1, 1))
    out = bias_C[None, :, None, None].expand(len(h_BCPP), -1, P, P)
    for row in range(3):
        for column in range(3):
            tap = padded[:, :, row : row + P, column : column + P]
            out = out + torch.einsum("oc,bchw->bohw", kernel_CC33[:, :, row, column], tap)
    return 0.5 * h_BCPP + 0.5 * out


def nearest(flat_NC: Tensor, codebook_VC: Tensor) -> Tensor:
    """Return the index of the nearest code, the lowest on a tie (spec §3)."""
    distance_NV = (flat_NC[:, None] - codebook_VC[None]).square().sum(-1)
    least_N1 = distance_NV.min(1, keepdim=True).values
    return torch.stack([torch.nonzero(row)[0, 0] for row in distance_NV == least_N1])
