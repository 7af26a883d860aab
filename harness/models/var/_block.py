"""One transformer block as two pure functions, before and after its attention: between them lie the caller's caches.

Promise: launched kernel by kernel or compiled (`compiled`), the same arithmetic in the same order. A compiler keeps
more digits between its steps or fewer, so compiled blocks are a mode of their own for error budgets (`rounding`).

Source: spec §4.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError, text_of
from harness.models.network import Modulation

LN_EPS = 1e-6
MIN_NORM = 1e-12  # below it a query or key is not brought to its length
# Kernels of one function: by width of the network, dtype, one token or more, one row or more. Far more than a pair
# needs; a process that needs even more is told so, and never falls back to other arithmetic in silence.
MOST_KERNELS = 64


class BlockWeights(NamedTuple):
    """The weights of one block; the bias of queries, keys (none) and values together, and the lengths of the former."""

    qkv: Tensor  # (3D, D)
    qkv_bias: Tensor  # (3D,)
    length_2H1: Tensor
    proj: Tensor  # (D, D)
    proj_bias: Tensor
    fc1: Tensor  # (4D, D)
    fc1_bias: Tensor
    fc2: Tensor  # (D, 4D)
    fc2_bias: Tensor


Before = Callable[[Tensor, Modulation, BlockWeights, bool], tuple[Tensor, Tensor, Tensor]]
After = Callable[[Tensor, Tensor, Modulation, BlockWeights], Tensor]


def block_weights(weights: Mapping[str, Tensor], i: int, qkv_bias: Tensor, length_2H1: Tensor) -> BlockWeights:
    attn, ffn = f"blocks.{i}.attn.", f"blocks.{i}.ffn."
    rest = (attn + "proj.weight", attn + "proj.bias", ffn + "fc1.weight", ffn + "fc1.bias", ffn + "fc2.weight",
            ffn + "fc2.bias")  # fmt: skip
    return BlockWeights(weights[attn + "mat_qkv.weight"], qkv_bias, length_2H1, *(weights[name] for name in rest))


def before(x_RnD: Tensor, six: Modulation, w: BlockWeights, l2_norm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (R,H,n,c) of n new positions; `l2_norm` brings the former two to their length."""
    _, _, factor1, _, shift1, _ = six
    R, n, D = x_RnD.shape
    H = w.length_2H1.shape[1]
    h_RnD = torch.addcmul(shift1, layer_norm(x_RnD), factor1)
    qkv = F.linear(h_RnD, w.qkv, w.qkv_bias).view(R, n, 3, H, D // H)
    qk_Rn2Hc, v_RnHc = qkv[:, :, :2], qkv[:, :, 2]
    if l2_norm:
        norm_Rn2H1 = torch.linalg.vector_norm(qk_Rn2Hc, dim=-1, keepdim=True).clamp_min(MIN_NORM)
        qk_Rn2Hc = qk_Rn2Hc * (w.length_2H1 / norm_Rn2H1)
    q_RHnc, k_RHnc = qk_Rn2Hc.transpose(1, 3).unbind(2)  # (R, n, 2, H, c) -> two of (R, H, n, c)
    return q_RHnc, k_RHnc, v_RnHc.transpose(1, 2)


def after(x_RnD: Tensor, out_RHnc: Tensor, six: Modulation, w: BlockWeights) -> Tensor:
    """Return what goes out of the block, from what went in and what came of its attention."""
    gamma1, gamma2, _, factor2, _, shift2 = six
    out_RnD = out_RHnc.transpose(1, 2).flatten(2)  # (R, H, n, c) -> (R, n, H·c)
    x_RnD = torch.addcmul(x_RnD, gamma1, F.linear(out_RnD, w.proj, w.proj_bias))
    h_RnD = torch.addcmul(shift2, layer_norm(x_RnD), factor2)
    return torch.addcmul(x_RnD, gamma2, feed_forward(h_RnD, w))


def feed_forward(h_RnD: Tensor, w: BlockWeights) -> Tensor:
    return F.linear(F.gelu(F.linear(h_RnD, w.fc1, w.fc1_bias), approximate="tanh"), w.fc2, w.fc2_bias)


def layer_norm(x: Tensor) -> Tensor:
    """Normalise the last axis; no weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS)


def check_compiler() -> None:
    """Refuse to compile where PyTorch finds no compiler of C++, as it would at the first pass. Raises `InputError`."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415  # takes seconds
    except ImportError:  # elsewhere in another version: the pass itself says so
        return
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        rule = f"takes a compiler of C++, which is not there ({text_of(error).splitlines()[0]})"
        raise InputError("compile", True, rule, "install g++, or name one in CXX, or drop --compile") from None


@cache
def compiled() -> tuple[Before, After]:
    """Return both functions compiled, once a process. Effects: PyTorch's bound on kernels, as `MOST_KERNELS`."""
    # They take seconds, and most runs never compile; PyTorch warns of itself while they are imported.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.compile_fx  # noqa: PLC0415
        from torch._dynamo import config, maybe_mark_dynamic  # noqa: PLC0415
    config.recompile_limit = max(MOST_KERNELS, config.recompile_limit)
    # whole or not at all; rows and positions vary from pass to pass, nothing else does
    inner_before = torch.compile(before, fullgraph=True, dynamic=False)
    inner_after = torch.compile(after, fullgraph=True, dynamic=False)

    def mark(x_RnD: Tensor, six: Modulation) -> None:
        for axis in (0, 1):
            maybe_mark_dynamic(x_RnD, axis)
        for vector_R1D in six:
            maybe_mark_dynamic(vector_R1D, 0)

    def marked_before(x_RnD: Tensor, six: Modulation, w: BlockWeights, l2_norm: bool) -> tuple[Tensor, Tensor, Tensor]:
        mark(x_RnD, six)
        return inner_before(x_RnD, six, w, l2_norm)

    def marked_after(x_RnD: Tensor, out_RHnc: Tensor, six: Modulation, w: BlockWeights) -> Tensor:
        mark(x_RnD, six)
        for axis in (0, 2):
            maybe_mark_dynamic(out_RHnc, axis)
        return inner_after(x_RnD, out_RHnc, six, w)

    return marked_before, marked_after
