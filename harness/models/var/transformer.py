"""The VAR transformer as data (a dict of tensors) and pure functions of it.

Promise: nothing here holds state. Keys and values live in a cache that the caller passes; everything that depends on
the label alone is computed once by `condition` and passed back in. Inputs, keys, values and hidden states have the
weights' dtype in every mode.

Source: spec §2 (names) and §4 (arithmetic).
"""

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.mode import in_its_mode
from harness.models.network import Cache, Condition, Modulation, StoredNetwork, TransformerConfig
from harness.models.var import _block as block
from harness.protocol.pyramid import ScalePyramid

MAX_SCALE_MUL = math.log(100)


def transformer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter's name and shape; the one place that knows the checkpoint layout (spec §2)."""
    D, H, S = config.D, config.H, config.pyramid.S
    shapes: dict[str, tuple[int, ...]] = {
        "pos_start": (1, 1, D),
        "pos_1LC": (1, config.pyramid.L, D),
        "lvl_embed.weight": (S, D),
        "class_emb.weight": (config.classes + 1, D),
        "word_embed.weight": (D, config.C),
        "word_embed.bias": (D,),
        "head_nm.ada_lin.1.weight": (2 * D, D),
        "head_nm.ada_lin.1.bias": (2 * D,),
        "head.weight": (config.V, D),
        "head.bias": (config.V,),
    }
    if config.shared_adaln:
        shapes |= {"shared_ada_lin.1.weight": (6 * D, D), "shared_ada_lin.1.bias": (6 * D,)}
    for i in range(config.depth):
        block = {
            "attn.mat_qkv.weight": (3 * D, D),
            "attn.q_bias": (D,),
            "attn.v_bias": (D,),
            "attn.proj.weight": (D, D),
            "attn.proj.bias": (D,),
            "ffn.fc1.weight": (4 * D, D),
            "ffn.fc1.bias": (4 * D,),
            "ffn.fc2.weight": (D, 4 * D),
            "ffn.fc2.bias": (D,),
        }
        if config.l2_norm:
            block["attn.scale_mul_1H11"] = (1, H, 1, 1)
        if config.shared_adaln:
            block["ada_gss"] = (1, 1, 6, D)
        else:
            block |= {"ada_lin.1.weight": (6 * D, D), "ada_lin.1.bias": (6 * D,)}
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
        """Return word_embed(raw_BnC), (B,n,D): a scale's raw input without its position term."""
        weight_DC, bias_D = self.weights["word_embed.weight"], self.weights["word_embed.bias"]
        return F.linear(raw_BnC.to(self.dtype), weight_DC, bias_D).to(self.dtype)

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
        before, after = block.compiled() if self.compiled else (block.before, block.after)
        softmax_scale = 1.0 if self.config.l2_norm else 0.25 / math.sqrt(self.config.D // self.config.H)
        for i, six in enumerate(condition.blocks):
            w = block.block_weights(self.weights, i, *self._attention_constants[i])
            q_RHnc, k_RHnc, v_RHnc = before(x_RnD, six, w, self.config.l2_norm)
            k_RHKc, v_RHKc = cache.extend(i, k_RHnc.to(self.dtype), v_RHnc.to(self.dtype))
            out_RHnc = F.scaled_dot_product_attention(q_RHnc, k_RHKc, v_RHKc, mask_11nK, scale=softmax_scale)
            x_RnD = after(x_RnD, out_RHnc, six, w)
        return x_RnD

    @in_its_mode
    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV of hidden states, in float32 at least (spec §4)."""
        factor_R1D, shift_R1D = condition.head
        dtype = torch.promote_types(h_RnD.dtype, torch.float32)
        h_RnD = torch.addcmul(shift_R1D.to(dtype), block.layer_norm(h_RnD.to(dtype)), factor_R1D.to(dtype))
        return F.linear(h_RnD, self.weights["head.weight"].to(dtype), self.weights["head.bias"].to(dtype)).to(dtype)
