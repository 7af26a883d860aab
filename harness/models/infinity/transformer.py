"""The Infinity transformer as data (a dict of tensors) and pure functions of it.

Promise: nothing here holds state, as in VAR's. Rows say by `positions` where they sit: level, row and column on the
finest grid. What rounds to bfloat16 by the network's law does so in every dtype; angles and guidance weights never do.

Source: the Infinity page, §2 (names), §3 (arithmetic), §5 (guidance between blocks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Cache, Condition, Network, StoredNetwork
from harness.models.var import layer_norm
from harness.models.var.transformer import MAX_SCALE_MUL, Converted, attend
from harness.protocol import Request, ScaleGuidance, ScalePyramid

EPS, BASE, MOST_SIDE, LEVELS = 1e-6, 10000.0, 128, 15


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes and options of one network. Raises `InputError`: a schedule, or sizes, that the family does not have."""

    pyramid: ScalePyramid  # its channels are N
    depth: int
    D: int
    H: int
    C: int
    A: int  # text width
    X: int  # longest text
    ffn: int  # hidden width of the feed-forward
    pool_heads: int  # of the attention that makes one vector of a text
    chunks: int = 1  # runs of blocks
    full: tuple[int, int] = (0, 0)  # full sides (h*, w*); zeros = those of the last scale
    rule: int = 2  # of positions
    shared_adaln: bool = True
    l2_norm: bool = True
    ca_gamma: bool = False
    norm0_ve: bool = False
    two_layer_head: bool = False
    levels_once: bool = True  # level vectors before block 0 alone; else before the first block of every chunk
    fused: bool = True  # False: every scale is rotated as if it were the first positions (a published defect, §9)
    rounds: bool = True  # cross-attention rounds to bfloat16

    V: ClassVar[int] = 2
    classes: ClassVar[int] = 0  # conditions are texts
    family: ClassVar[str] = "infinity"
    reads: ClassVar[tuple[str, ...]] = ("texts", "negative_texts", "scale_guidance", "places")

    def __post_init__(self) -> None:
        sides, N = self.pyramid.sides, self.pyramid.channels
        full = self.full if any(self.full) else sides[-1]
        object.__setattr__(self, "full", full)
        in_range = all(1 <= side <= MOST_SIDE for each in (full, *sides) for side in each)
        counts = self.H, self.pool_heads, self.chunks
        H, pool, chunks = (max(count, 1) for count in counts)
        _refuse_first(
            ("sides", sides, len(sides) <= LEVELS, f"must be at most {LEVELS} scales"),
            ("sides", (*sides, full), in_range, f"must lie in 1..{MOST_SIDE}, full ones too"),
            ("channels", N, N in (self.C, 4 * self.C), f"must be C={self.C}, or 4C where patchified"),
            ("H, pool heads, chunks", counts, min(counts) > 0, "must be positive"),
            ("D", self.D, self.D % (4 * H) == 0 == self.D % pool, f"must be a multiple of 4H, H={H}, and of {pool=}"),
            ("depth", self.depth, self.depth % chunks == 0, f"must be a multiple of {chunks=}"),
            ("position rule", self.rule, self.rule in (0, 1, 2), "must be 0, 1 or 2"),
        )

    @property
    def patch(self) -> int:
        """Side of what one position covers on the latent map: 2 where patchified."""
        return 1 if self.pyramid.channels == self.C else 2

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape (C,h,w) of an image's latent map."""
        h, w = self.pyramid.sides[-1]
        return self.C, h * self.patch, w * self.patch

    @property
    def raw(self) -> int:
        """Channels of a raw input: N."""
        return self.pyramid.channels

    def check_request(self, request: Request) -> None:
        """Refuse texts and places of guidance that the network has not. Raises `InputError`."""
        given, negative, guidance = request.texts, request.negative_texts, request.scale_guidance
        shapes, places = [rows.numbers_TA.shape for rows in (*given, *negative)], guidance.places if guidance else ()
        fit = all(A == self.A and T <= self.X for T, A in shapes)
        acts = all(place in (0, 1) or -self.depth < place < 0 for place in places)
        _refuse_first(
            ("texts", len(given), given and guidance, "must be given, and guidance by scale"),
            ("labels", request.labels, request.labels is not None, "must number texts: nothing draws them"),
            ("labels", request.labels, max(request.labels or (0,)) < len(given), "must number texts: none is without"),
            ("negative_texts", len(negative), len(negative) in (0, len(given)), f"must be one a text ({len(given)})"),
            ("texts", list(map(tuple, shapes)), fit, f"must be 1..{self.X} rows of width {self.A}"),
            ("places", places, acts, f"must be 0, 1 or -1..{1 - self.depth}, after a block other than the first"),
        )


def _refuse_first(*rules: tuple[str, object, object, str]) -> None:
    """Raise `InputError` for the first that does not hold, of (name, value, whether it holds, what must)."""
    for name, value, holds, rule in rules:
        if not holds:
            raise InputError(name, value, rule, "pass what these networks of Infinity were made for")


def infinity_shapes(config: InfinityConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter's name and shape; the one place that knows the checkpoint layout (§2)."""
    D, A, N, Hp = config.D, config.A, config.pyramid.channels, config.pool_heads
    linear = {
        "text_proj_for_sos.ca.proj": (D, D), "text_proj_for_ca.0": (D, A), "text_proj_for_ca.2": (D, D),
        "word_embed": (D, N), "head_nm.ada_lin.1": (2 * D, D),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "cfg_uncond": (config.X, A), "pos_start": (1, 1, D), "lvl_embed.weight": (LEVELS, D), "text_norm.weight": (A,),
        "text_proj_for_sos.ca.mat_q": (1, Hp, D // Hp), "text_proj_for_sos.ca.mat_kv.weight": (2 * D, A),
        "text_proj_for_sos.ca.v_bias": (D,),
    }  # fmt: skip
    linear |= {"head.0": (D, D), "head.2": (2 * N, D)} if config.two_layer_head else {"head": (2 * N, D)}
    linear |= {"shared_ada_lin.1": (6 * D, D)} if config.shared_adaln else {}
    shapes |= {"norm0_ve.weight": (N,), "norm0_ve.bias": (N,)} if config.norm0_ve else {}
    of_blocks = {"ffn.fc1": (config.ffn, D), "ffn.fc2": (D, config.ffn)}
    of_blocks |= dict.fromkeys(("sa.proj", "ca.mat_q", "ca.proj"), (D, D))
    in_blocks: dict[str, tuple[int, ...]] = {
        "sa.mat_qkv.weight": (3 * D, D), "sa.q_bias": (D,), "sa.v_bias": (D,), "ca_norm.weight": (D,),
        "ca_norm.bias": (D,), "ca.mat_kv.weight": (2 * D, D), "ca.v_bias": (D,),
    }  # fmt: skip
    of_blocks |= {} if config.shared_adaln else {"ada_lin.1": (6 * D, D)}
    in_blocks |= {"ada_gss": (1, 1, 6, D)} if config.shared_adaln else {}
    in_blocks |= {"sa.scale_mul_1H11": (1, config.H, 1, 1)} if config.l2_norm else {}
    in_blocks |= {"ca_gamma": (D,)} if config.ca_gamma else {}
    for block in (block_name(config, i) for i in range(config.depth)):
        shapes |= {f"{block}{name}": shape for name, shape in in_blocks.items()}
        linear |= {f"{block}{name}": shape for name, shape in of_blocks.items()}
    for name, (out, into) in linear.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return shapes


def block_name(config: InfinityConfig, i: int) -> str:
    """Return what the names of block `i` begin with."""
    chunk, j = divmod(i, config.depth // config.chunks)
    return f"block_chunks.{chunk}.module.{j}."


@dataclass(frozen=True, eq=False)
class InfinityTransformer(StoredNetwork):
    """An Infinity transformer: sizes and weights."""

    config: InfinityConfig
    weights: Mapping[str, Tensor] = field(repr=False)  # under the names of `infinity_shapes`

    @cached_property
    def pos_LD(self) -> Tensor:
        """Zeros: positions are rotations."""
        return self.start_1D.new_zeros(self.pyramid.L, self.config.D)

    @property
    def lvl_SD(self) -> Tensor:
        """Embedding of every scale."""
        return self.weights["lvl_embed.weight"][: self.pyramid.S]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy with the weights on `device` in `dtype`; cross-attention rounds as before."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()})

    def converted(self, dtype: torch.dtype) -> Self:
        """Return a view in `dtype`: every pass converts the layers in hand, and none is kept."""
        return replace(self, weights=Converted(self.weights, dtype))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return a scale's raw input as (B,n,D), without its level."""
        raw_BnC = raw_BnC.to(self.dtype)
        if self.config.norm0_ve:
            weight, bias = self.weights["norm0_ve.weight"], self.weights["norm0_ve.bias"]
            raw_BnC = F.layer_norm(raw_BnC, raw_BnC.shape[-1:], weight, bias, EPS)
        return self._linear("word_embed", raw_BnC)

    def condition(self, texts: Sequence[Tensor]) -> Condition:
        """Compute what depends on the text (T,A) of every guidance row alone. Raises `TypeError` for labels."""
        if isinstance(texts, Tensor) and texts.ndim < 3:
            raise TypeError("a network of Infinity takes the texts of its guidance rows, no labels (docs/infinity.md)")
        R, Hp, w = len(texts), self.config.pool_heads, self.weights
        lengths, x_TA = [len(text) for text in texts], torch.cat(list(texts)).to(self.device, self.dtype)
        y_TA = x_TA * (x_TA.square().mean(-1, keepdim=True) + EPS).rsqrt() * w["text_norm.weight"]
        y_TD = self._linear("text_proj_for_ca.2", _gelu(self._linear("text_proj_for_ca.0", y_TA)))
        q_R1Hc = w["text_proj_for_sos.ca.mat_q"].expand(R, 1, Hp, -1)
        cond_RD = self._attend("text_proj_for_sos.ca.", q_R1Hc, y_TA.split(lengths))[:, 0]
        silu_RD, names = F.silu(cond_RD), [block_name(self.config, i) for i in range(self.config.depth)]
        if self.config.shared_adaln:
            shared_R16D = self._linear("shared_ada_lin.1", silu_RD).view(R, 1, 6, -1)
            ada = [shared_R16D + w[f"{name}ada_gss"] for name in names]
        else:
            ada = [self._linear(f"{name}ada_lin.1", silu_RD).view(R, 1, 6, -1) for name in names]
        sixes = (each.unbind(2) for each in ada)  # γ1, γ2, scale1, scale2, shift1, shift2
        blocks = tuple((g1, g2, 1 + scale1, 1 + scale2, b1, b2) for g1, g2, scale1, scale2, b1, b2 in sixes)
        scale_R1D, shift_R1D = self._linear("head_nm.ada_lin.1", silu_RD).view(R, 1, 2, -1).unbind(2)
        return Condition(cond_RD, blocks, (1 + scale_R1D, shift_R1D), y_TD.split(lengths))

    def _attend(self, name: str, q_RnHc: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """Let the positions of every row attend to the row's own text; no mask. Queries, text and result round."""
        v_bias, H = self.weights[f"{name}v_bias"], q_RnHc.shape[2]
        bias_2D = torch.cat((torch.zeros_like(v_bias), v_bias))
        kv_T = self._rounded(F.linear(torch.cat(list(texts)), self.weights[f"{name}mat_kv.weight"], bias_2D))
        q_RHnc, rows, first, begin = self._rounded(q_RnHc).transpose(1, 2), [], 0, 0
        for length, same in groupby(map(len, texts)):  # neighbours of one length together
            last = first + sum(1 for _ in same)
            end = begin + (last - first) * length
            k_rHtc, v_rHtc = kv_T[begin:end].view(last - first, length, 2, H, -1).permute(2, 0, 3, 1, 4)
            rows.append(F.scaled_dot_product_attention(q_RHnc[first:last], k_rHtc, v_rHtc))
            first, begin = last, end
        return self._linear(f"{name}proj", self._rounded(torch.cat(rows)).transpose(1, 2).flatten(2))

    def _rounded(self, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype) if self.config.rounds else x

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run the blocks over n new positions, whose inputs hold their level; return h_RnD. Effects: the cache grows.

        `positions` (n,3) are level, row and column of each; a mask of None lets everything be visible.
        """
        assert positions is not None
        config, guidance = self.config, condition.guidance
        softmax_scale = 1.0 if config.l2_norm else (config.D // config.H) ** -0.5
        wide = torch.promote_types(x_RnD.dtype, torch.float32)
        turn, level_n = rotation(positions[:, 1:], config.D // config.H, wide), positions[:, 0].long()
        for i, six in enumerate(condition.blocks):
            name = block_name(config, i)
            if i and name.endswith(".module.0.") and not config.levels_once:
                x_RnD = x_RnD + self.lvl_SD[level_n]
            gamma1, gamma2, factor1, factor2, shift1, shift2 = six
            q, k, v = self._queries(f"{name}sa.", layer_norm(x_RnD) * factor1 + shift1, turn)
            out = attend(q, *cache.extend(i, k, v), mask_11nK, softmax_scale)
            x_RnD = x_RnD + gamma1 * self._linear(f"{name}sa.proj", out.transpose(1, 2).flatten(2))
            x_RnD = x_RnD + self._of_text(name, x_RnD, condition.texts)
            h_RnD = layer_norm(x_RnD) * factor2 + shift2
            x_RnD = x_RnD + gamma2 * self._linear(f"{name}ffn.fc2", _gelu(self._linear(f"{name}ffn.fc1", h_RnD)))
            if guidance is not None and i - config.depth in guidance.places:
                x_RnD = guided_between(x_RnD, guidance, level_n)
        return x_RnD

    def _queries(self, name: str, h_RnD: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (R,H,n,c), the former two at their length and rotated."""
        w, (R, n, D), H = self.weights, h_RnD.shape, self.config.H
        q_bias, v_bias = w[f"{name}q_bias"], w[f"{name}v_bias"]
        bias_3D = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
        q, k, v = F.linear(h_RnD, w[f"{name}mat_qkv.weight"], bias_3D).view(R, n, 3, H, D // H).permute(2, 0, 3, 1, 4)
        if self.config.l2_norm:
            q = F.normalize(q, dim=-1) * w[f"{name}scale_mul_1H11"].clamp_max(MAX_SCALE_MUL).exp()
            k = F.normalize(k, dim=-1)
        return rotated(q, turn), rotated(k, turn), v

    def _of_text(self, name: str, x_RnD: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """What a block's cross-attention adds."""
        weight, bias = self.weights[f"{name}ca_norm.weight"], self.weights[f"{name}ca_norm.bias"]
        q_RnD = self._linear(f"{name}ca.mat_q", F.layer_norm(x_RnD, x_RnD.shape[-1:], weight, bias, EPS))
        out_RnD = self._attend(f"{name}ca.", q_RnD.unflatten(-1, (self.config.H, -1)), texts)
        return out_RnD * self.weights[f"{name}ca_gamma"] if self.config.ca_gamma else out_RnD

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return the logits (R,n·N,2) of hidden states, channel by channel, in float32 at least."""
        dtype = torch.promote_types(h_RnD.dtype, torch.float32)
        factor_R1D, shift_R1D = (vector.to(dtype) for vector in condition.head)
        h_RnD = layer_norm(h_RnD.to(dtype)) * factor_R1D + shift_R1D
        for name in ("head.0", "head.2") if self.config.two_layer_head else ("head",):
            weight, bias = (self.weights[f"{name}.{part}"].to(dtype) for part in ("weight", "bias"))
            h_RnD = F.linear(_gelu(h_RnD) if name == "head.2" else h_RnD, weight, bias)
        logits: Tensor = h_RnD.unflatten(-1, (-1, 2)).flatten(1, 2)
        return logits


def infinity_config(network: Network) -> InfinityConfig:
    """Return the sizes of a network of this family. Raises `InputError` for another one."""
    if not isinstance(network.config, InfinityConfig):
        raise InputError("family", network.config.family, "is not Infinity", "pass networks of Infinity")
    return network.config


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def rotation(where_n2: Tensor, c: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (n,c/2) of rows, then of columns; between two whole numbers their tables are mixed."""
    low_n2, device = where_n2.floor(), where_n2.device
    share_n21 = (where_n2 - low_n2)[..., None].to(dtype)
    omega_m = BASE ** (-4 * torch.arange(c // 4, device=device, dtype=dtype) / c)
    low, high = (edge[..., None].to(dtype) * omega_m for edge in (low_n2, low_n2 + 1))
    return low.cos().lerp(high.cos(), share_n21).flatten(1), low.sin().lerp(high.sin(), share_n21).flatten(1)


def rotated(x_RHnc: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of neighbouring channels by the angles of their positions."""
    cos, sin = turn
    a, b = x_RHnc.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x_RHnc.dtype)


def guided_between(x_RnD: Tensor, guidance: ScaleGuidance, level_n: Tensor) -> Tensor:
    """Return w·conditional + (1−w)·unconditional in both halves; where a level's w is 1, rows as they are."""
    if not guidance.guided:
        return x_RnD
    wide = torch.promote_types(x_RnD.dtype, torch.float32)
    w_n1 = x_RnD.new_tensor(guidance.weights, dtype=wide)[level_n][:, None]
    conditional_BnD, unconditional_BnD = x_RnD.chunk(2)
    mixed_BnD = (w_n1 * conditional_BnD + (1 - w_n1) * unconditional_BnD).to(x_RnD.dtype)
    return torch.where(w_n1 == 1, x_RnD, torch.cat((mixed_BnD, mixed_BnD)))
