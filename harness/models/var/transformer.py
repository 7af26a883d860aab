"""The VAR transformer as data (a dict of tensors) and pure functions of it.

Promise: nothing here holds state. Keys and values live in a cache that the caller passes; everything that depends on
the label alone is computed once by `condition` and passed back in. Inputs, keys, values and hidden states have the
weights' dtype in every mode.

A block is two functions, before and after its attention. Launched kernel by kernel or compiled (`compiled`) they are
the same arithmetic in the same order. A compiler keeps more digits between its steps or fewer, so compiled blocks are a
mode of their own for error budgets (`rounding`).

Source: spec §2 (names) and §4 (arithmetic).
"""

import math
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError, text_of
from harness.models.mode import in_its_mode
from harness.models.network import Cache, Condition, Modulation, StoredNetwork, TransformerConfig
from harness.protocol.pyramid import ScalePyramid

MAX_SCALE_MUL = math.log(100)


def transformer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter's name and shape; the one place that knows the checkpoint layout (spec §2)."""
    D, H, S = config.D, config.H, config.pyramid.S
    shapes: dict[str, tuple[int, ...]] = {
        "pos_start": (1, 1, D), "pos_1LC": (1, config.pyramid.L, D), "lvl_embed.weight": (S, D),
        "class_emb.weight": (config.classes + 1, D), "word_embed.weight": (D, config.C), "word_embed.bias": (D,),
        "head_nm.ada_lin.1.weight": (2 * D, D), "head_nm.ada_lin.1.bias": (2 * D,),
        "head.weight": (config.V, D), "head.bias": (config.V,),
    }  # fmt: skip
    if config.shared_adaln:
        shapes |= {"shared_ada_lin.1.weight": (6 * D, D), "shared_ada_lin.1.bias": (6 * D,)}
    for i in range(config.depth):
        block: dict[str, tuple[int, ...]] = {
            "attn.mat_qkv.weight": (3 * D, D), "attn.q_bias": (D,), "attn.v_bias": (D,),
            "attn.proj.weight": (D, D), "attn.proj.bias": (D,), "ffn.fc1.weight": (4 * D, D), "ffn.fc1.bias": (4 * D,),
            "ffn.fc2.weight": (D, 4 * D), "ffn.fc2.bias": (D,),
        }  # fmt: skip
        block |= {"attn.scale_mul_1H11": (1, H, 1, 1)} if config.l2_norm else {}
        own = {"ada_lin.1.weight": (6 * D, D), "ada_lin.1.bias": (6 * D,)}
        block |= {"ada_gss": (1, 1, 6, D)} if config.shared_adaln else own
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def buffer_names(config: TransformerConfig) -> set[str]:
    """Return the derived tensors that a published checkpoint may also hold (spec §2)."""
    return {"lvl_1L", "attn_bias_for_masking"} | {f"blocks.{i}.attn.zero_k_bias" for i in range(config.depth)}


class Converted(ChainMap[str, Tensor]):
    """Weights in another dtype, each converted when it is read: of a large network one layer exists twice at a time."""

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__(weights)  # type: ignore[arg-type]  # nobody writes to it
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        return super().__getitem__(name).to(self._dtype)


@dataclass(frozen=True, eq=False)
class Transformer(StoredNetwork):
    """A VAR transformer: sizes and weights."""

    config: TransformerConfig  # sizes
    # tensors under the names of `transformer_shapes`, all of one dtype and device
    weights: Mapping[str, Tensor] = field(repr=False)
    compiled: bool = False  # run the blocks through PyTorch's compiler, which takes a while at the first pass of a kind
    autocast: torch.dtype | None = None  # compute inside torch.autocast of this dtype; None = outside

    @property
    def pos_LD(self) -> Tensor:
        """Embedding of every position."""
        return self.weights["pos_1LC"][0]

    @property
    def lvl_SD(self) -> Tensor:
        """Embedding of every scale."""
        return self.weights["lvl_embed.weight"]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy with the weights on `device` in `dtype`."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()}, autocast=None)

    def converted(self, dtype: torch.dtype) -> Self:
        """Return a view in `dtype` alone, not compiled: every pass converts the layers in hand, and none is kept."""
        return replace(self, weights=Converted(self.weights, dtype), compiled=False, autocast=None)

    def first_scales(self, count: int) -> Self:
        """Return the network on the first `count` scales of its pyramid."""
        pyramid = ScalePyramid(self.pyramid.patch_nums[:count])
        cut = {"pos_1LC": self.weights["pos_1LC"][:, : pyramid.L], "lvl_embed.weight": self.lvl_SD[:count]}
        return replace(self, config=replace(self.config, pyramid=pyramid), weights={**self.weights, **cut})

    @in_its_mode
    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return word_embed(raw_BnC), (B,n,D): a scale's raw input without its position term.

        The same bits however the input lies in memory, and the product is rounded before its bias is added: so do
        published samplers, whose input lies channel by channel, and for which `F.linear` adds the bias apart.
        """
        weight_DC, bias_D = self.weights["word_embed.weight"], self.weights["word_embed.bias"]
        product_BnD = F.linear(raw_BnC.to(self.dtype).contiguous(), weight_DC)
        return (product_BnD + bias_D.to(product_BnD.dtype)).to(self.dtype)

    @cached_property
    def _attention_constants(self) -> list[tuple[Tensor, Tensor]]:
        """Per block: the bias of q, k and v together (keys have none), and the lengths that q and k are brought to."""
        w, constants = self.weights, []
        for i in range(self.config.depth):
            name = f"blocks.{i}.attn."
            q_bias, v_bias = w[name + "q_bias"], w[name + "v_bias"]
            bias_3D = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
            length_H = q_bias.new_ones(self.config.H)
            if self.config.l2_norm:
                length_H = w[name + "scale_mul_1H11"].clamp_max(MAX_SCALE_MUL).exp().flatten()
            constants.append((bias_3D, torch.stack((length_H, torch.ones_like(length_H)))[..., None]))
        return constants

    @in_its_mode
    def condition(self, labels_R: Tensor) -> Condition:
        """Compute what depends on the label of every guidance row alone, int64; `classes` is the unconditional one."""
        w, D = self.weights, self.config.D
        cond_RD = w["class_emb.weight"][labels_R]
        silu_RD = F.silu(cond_RD)

        def six(i: int) -> Modulation:
            # (R, 6D) -> six of (R, 1, D), in the order γ1, γ2, scale1, scale2, shift1, shift2
            if self.config.shared_adaln:
                ada_R16D = w[f"blocks.{i}.ada_gss"] + shared_R16D
            else:
                ada = F.linear(silu_RD, w[f"blocks.{i}.ada_lin.1.weight"], w[f"blocks.{i}.ada_lin.1.bias"])
                ada_R16D = ada.view(-1, 1, 6, D)
            ada_R16D[:, :, 2:4] += 1
            return ada_R16D.unbind(2)

        if self.config.shared_adaln:
            shared = F.linear(silu_RD, w["shared_ada_lin.1.weight"], w["shared_ada_lin.1.bias"])
            shared_R16D = shared.view(-1, 1, 6, D)
        head = F.linear(silu_RD, w["head_nm.ada_lin.1.weight"], w["head_nm.ada_lin.1.bias"]).view(-1, 1, 2, D)
        scale_R1D, shift_R1D = head.unbind(2)
        return Condition(cond_RD, tuple(six(i) for i in range(self.config.depth)), (1 + scale_R1D, shift_R1D))

    @in_its_mode
    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run the blocks over n new positions, whose inputs hold their position term; return h_RnD.

        The cache of earlier keys and values is extended by n in every layer. The additive mask is over all K+n visible
        columns; None where everything is visible. `positions` are not read.
        """
        enter, leave = compiled() if self.compiled else (before, after)
        softmax_scale = 1.0 if self.config.l2_norm else 0.25 / math.sqrt(self.config.D // self.config.H)
        for i, six in enumerate(condition.blocks):
            rest = (self.weights[f"blocks.{i}.{name}"] for name in OUTSIDE)
            w = BlockWeights(self.weights[f"blocks.{i}.attn.mat_qkv.weight"], *self._attention_constants[i], *rest)
            q_RHnc, k_RHnc, v_RHnc = enter(x_RnD, six, w, self.config.l2_norm)
            k_RHKc, v_RHKc = cache.extend(i, k_RHnc.to(self.dtype), v_RHnc.to(self.dtype))
            out_RHnc = attend(q_RHnc, k_RHKc, v_RHKc, mask_11nK, softmax_scale)
            x_RnD = leave(x_RnD, out_RHnc, six, w)
        return x_RnD

    @in_its_mode
    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV of hidden states, in float32 at least (spec §4)."""
        factor_R1D, shift_R1D = condition.head
        dtype = torch.promote_types(h_RnD.dtype, torch.float32)
        h_RnD = torch.addcmul(shift_R1D.to(dtype), layer_norm(h_RnD.to(dtype)), factor_R1D.to(dtype))
        return F.linear(h_RnD, self.weights["head.weight"].to(dtype), self.weights["head.bias"].to(dtype)).to(dtype)


# Queries times keys of one head that are attended at once: all passes of VAR's pyramids (2,240 positions at most) are
# below. Some kernels, those of float64 on CUDA among them, hold all scores: beyond it, so many of all heads at a time.
MOST_SCORES, SCORES_AT_ONCE = 2**23, 2**27


def queries_at_once(heads: int, n: int, K: int) -> int:
    """Return how many of n queries are attended at once over K keys; `heads` are those of all rows."""
    return n if n * K <= MOST_SCORES else min(n, max(1, SCORES_AT_ONCE // (heads * K)))


def attend(q_RHnc: Tensor, k_RHKc: Tensor, v_RHKc: Tensor, mask_11nK: Tensor | None, scale: float) -> Tensor:
    """Return the attention (R,H,n,c) of n queries, in blocks where they and their keys are many."""
    (R, H, n, _), K = q_RHnc.shape, k_RHKc.shape[2]
    if (step := queries_at_once(R * H, n, K)) == n:
        return F.scaled_dot_product_attention(q_RHnc, k_RHKc, v_RHKc, mask_11nK, scale=scale)
    queries = q_RHnc.split(step, 2)
    masks = [None] * len(queries) if mask_11nK is None else mask_11nK.split(step, 2)
    blocks = zip(queries, masks, strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k_RHKc, v_RHKc, mask, scale=scale) for q, mask in blocks], 2)


LN_EPS = 1e-6
MIN_NORM = 1e-12  # below it a query or key is not brought to its length
# Kernels of one function: by width of the network, dtype, one token or more, one row or more. Far more than a pair
# needs; a process that needs even more is told so, and never falls back to other arithmetic in silence.
MOST_KERNELS = 64

# weights of a block that stand after its attention, in the order of `BlockWeights`
OUTSIDE = "attn.proj.weight", "attn.proj.bias", "ffn.fc1.weight", "ffn.fc1.bias", "ffn.fc2.weight", "ffn.fc2.bias"


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
    """Return what the two linear layers, with GELU between them, make of rows."""
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
