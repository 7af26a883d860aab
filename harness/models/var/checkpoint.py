"""State dicts of VAR and of its VQ-VAE: every size inferred from the tensors, what does not fit refused.

Promise: a network is either loaded whole, in float32, or refused with one error that lists every name that is missing,
unknown or mis-shaped. What no tensor tells is asked for, not guessed; and nothing is loaded that would fail later.

Source: spec §2.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models.network import TransformerConfig
from harness.models.state_dicts import Kind, is_plain, load_network
from harness.models.var import autoencoder, transformer
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.var.transformer import Transformer
from harness.protocol.pyramid import KNOWN_PYRAMIDS, ScalePyramid

Shape = tuple[int, ...]
ENCODER = ("encoder.", "quant_conv.")  # what encoding alone needs
TRANSFORMER = Kind(
    "VAR transformer",
    ("pos_1LC", "pos_start", "lvl_embed.weight", "word_embed.weight", "class_emb.weight", "head_nm.ada_lin.1.weight"),
    ("lvl_1L", "attn_bias_for_masking", "zero_k_bias"),
)
AUTOENCODER = Kind(
    "VQ-VAE",
    ("quantize.embedding.weight", "post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"),
    ("ema_vocab_hit_SV",),
)


def load_transformer(
    source: Path | str, name: str = "target", patch_nums: tuple[int, ...] | None = None, heads: int = 0
) -> tuple[Transformer, str]:
    """Load a VAR checkpoint, sizes inferred or as told; say what was taken from where. Raises `InputError`."""
    build = partial(transformer_from, patch_nums=patch_nums, heads=heads)
    return load_network(source, name, (TRANSFORMER, AUTOENCODER), build)


def load_autoencoder(source: Path | str) -> tuple[Autoencoder, str]:
    """Load a VQ-VAE checkpoint, sizes inferred. Raises `InputError` as `load_transformer` does."""
    return load_network(source, "vae", (AUTOENCODER, TRANSFORMER), autoencoder_from)


def transformer_from(
    tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None = None, heads: int = 0
) -> Transformer:
    """Build a transformer from a state dict; `source` is ``name=value`` for the error."""
    if "text_norm.weight" in tensors:
        remedy = "pass networks of one family, --schedule 1.0/1M for Infinity's"
        raise refused(source, "is an Infinity transformer, not one of VAR", remedy)
    config = _infer_transformer(tensors, source, patch_nums, heads)
    shapes = transformer.transformer_shapes(config)
    check_names(tensors, shapes, transformer.buffer_names(config), source)
    check_buffers(tensors, config.pyramid, source)
    return Transformer(config, {key: tensors[key] for key in shapes})


def autoencoder_from(tensors: Mapping[str, Tensor], source: str) -> Autoencoder:
    """Build a VQ-VAE from a state dict; `source` is ``name=value`` for the error.

    Where its encoder is not whole (`encoder.*` without `quant_conv`, or the other way round) it is one for decoding.
    """
    config = _infer_autoencoder(tensors, source)
    shapes = autoencoder.autoencoder_shapes(config)
    unread = {"quantize.ema_vocab_hit_SV"}
    if not config.has_encoder:
        unread |= {key for key in tensors if key.startswith(ENCODER)}
    check_names(tensors, shapes, unread, source)
    return Autoencoder(config, {key: tensors[key] for key in shapes})


def refused(source: str, rule: str, remedy: str) -> InputError:
    """Return the error on a state dict; `source` is ``name=value``."""
    name, _, value = source.partition("=")
    return InputError(name, value, rule, remedy)


def check_names(tensors: Mapping[str, Tensor], shapes: dict[str, Shape], unread: Collection[str], source: str) -> None:
    """Refuse a state dict that lacks a tensor, or has an unknown or a wrong one; those that are not read may be any."""
    missing = [f"missing {key}" for key in shapes if key not in tensors]
    unknown = [f"unknown {key}" for key in tensors if key not in shapes and key not in unread]
    wrong = []
    for key, shape in shapes.items():
        if key in tensors and tuple(tensors[key].shape) != shape:
            wrong.append(f"shape of {key} is {tuple(tensors[key].shape)}, not {shape}")
        elif key in tensors and not (is_plain(tensors[key]) and tensors[key].is_floating_point()):
            wrong.append(f"{key} is no dense tensor of numbers that float ({tensors[key].dtype})")
        elif key in tensors and 0 in shape:
            wrong.append(f"{key} holds nothing")
    if missing or unknown or wrong:
        rule = f"{len([*missing, *unknown, *wrong])} tensors do not fit: {', '.join([*missing, *unknown, *wrong])}"
        remedy = "pass the file of one whole model" if missing or wrong else "where nothing reads them, save it without"
        raise refused(source, rule, remedy)


def check_buffers(tensors: Mapping[str, Tensor], pyramid: ScalePyramid, source: str) -> None:
    """Derived tensors that published code computes with must hold what they are derived from; a mask is made anew."""
    levels = torch.tensor([pyramid.levels()])
    for key, tensor in tensors.items():
        is_bias = key.endswith("zero_k_bias")
        if is_bias:
            _check_real(tensors, key, source)
        wrong = is_bias and bool(tensor.double().count_nonzero())
        if wrong or (key == "lvl_1L" and not torch.equal(tensor.double(), levels.double())):
            raise refused(source, f"{key} does not hold its derived value", "export the checkpoint again")


def _check_real(tensors: Mapping[str, Tensor], key: str, source: str) -> None:
    if not is_plain(tensors[key]) or tensors[key].is_complex():
        raise refused(source, f"{key} is no dense tensor of real numbers", "export the checkpoint again")


def _vote(tensors: Mapping[str, Tensor], origin: str, sources: list[tuple[str, int]], what: str) -> int:
    """Return the size that most of the named axes agree on, so that one bad tensor does not condemn the others."""
    sizes = [tensors[key].shape[axis] for key, axis in sources if key in tensors and tensors[key].dim() > axis]
    if not sizes:
        rule = f"{what} cannot be inferred: none of {[key for key, _ in sources]} is there"
        raise refused(origin, rule, "is it a VAR model?")
    return Counter(sizes).most_common(1)[0][0]


def count_indices(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many of the indices 0, 1, … `pattern` finds in the names without a gap; 0 when it finds none."""
    indices = {match.group(1) for key in tensors if (match := re.match(pattern, key))}
    return next(index for index in range(len(indices) + 1) if str(index) not in indices)


def _infer_transformer(
    tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None, heads: int
) -> TransformerConfig:
    vote = partial(_vote, tensors, source)
    D = vote(
        [("word_embed.weight", 0), ("class_emb.weight", 1), ("pos_start", 2), ("pos_1LC", 2), ("lvl_embed.weight", 1)]
        + [("head.weight", 1), ("blocks.0.attn.proj.bias", 0)],
        "width D",
    )
    muls = [t for key, t in tensors.items() if re.fullmatch(r"blocks\.\d+\.attn\.scale_mul_1H11", key) and t.dim() == 4]
    H = Counter(m.shape[1] for m in muls).most_common(1)[0][0] if muls else heads
    if not muls and not heads:
        rule = f"does not tell how many heads its attention of width {D} has: it has no l2-norm (scale_mul_1H11)"
        raise refused(source, rule, f"pass --heads {max(D // 64, 1)}, or what it was trained with")
    if H < 1 or D % H:
        remedy = "pass other --heads" if heads else "is it a VAR model?"
        raise refused(source, f"D={D} is not a multiple of H={H} heads", remedy)
    if heads and heads != H:
        raise refused(source, f"has {H} heads, not {heads}", "drop --heads")
    classes = vote([("class_emb.weight", 0)], "number of classes") - 1
    if classes < 1:
        raise refused(source, "class_emb.weight has no class besides the unconditional one", "is it a VAR model?")
    depth = count_indices(tensors, r"blocks\.(\d+)\.")
    if not depth:
        raise refused(source, "depth cannot be inferred: no blocks.0.* is there", "is it a VAR model?")
    shared = any(key.startswith("shared_ada_lin.") or key.endswith(".ada_gss") for key in tensors)
    return TransformerConfig(
        _infer_pyramid(tensors, source, patch_nums), depth, D, H,
        V=vote([("head.weight", 0), ("head.bias", 0)], "codebook size V"),
        C=vote([("word_embed.weight", 1)], "code channels C"), classes=classes, shared_adaln=shared, l2_norm=bool(muls),
    )  # fmt: skip


def _infer_pyramid(tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None) -> ScalePyramid:
    wanted = ScalePyramid(patch_nums) if patch_nums else None
    if "lvl_1L" in tensors:
        _check_real(tensors, "lvl_1L", source)
        counts = torch.unique(tensors["lvl_1L"].double().flatten(), return_counts=True)[1].tolist()
        sides = tuple(math.isqrt(count) for count in counts)
        if any(side * side != count for side, count in zip(sides, counts, strict=True)):
            raise refused(source, f"lvl_1L counts {counts} are not squares", "export the checkpoint again")
        pyramid: ScalePyramid | None = ScalePyramid(sides)
    else:
        S = _vote(tensors, source, [("lvl_embed.weight", 0)], "number of scales S")
        L = _vote(tensors, source, [("pos_1LC", 1)], "number of positions L")
        pyramid = next((p for p in (wanted, *KNOWN_PYRAMIDS) if p and (p.S, p.L) == (S, L)), None)
        if pyramid is None:
            raise refused(source, f"no known pyramid has S={S} scales and L={L} positions", "pass --patch-nums 1,2,3,…")
    assert pyramid is not None
    if wanted and wanted != pyramid:
        raise refused(source, f"its patch_nums are {pyramid.patch_nums}, not {wanted.patch_nums}", "drop --patch-nums")
    return pyramid


def infer_levels(tensors: Mapping[str, Tensor], source: str) -> tuple[int, tuple[int, ...], int]:
    """Return base width, multipliers and residual blocks of an autoencoder, of its decoder. Raises `InputError`."""
    levels = count_indices(tensors, r"decoder\.up\.(\d+)\.")
    if levels == 0:
        raise refused(source, "multipliers cannot be inferred: no decoder.up.* is there", "is it a VQ-VAE checkpoint?")
    vote, parts = partial(_vote, tensors, source), [f"{j}.{conv}.bias" for j in range(9) for conv in ("conv1", "conv2")]
    widths = [vote([(f"decoder.up.{i}.block.{p}", 0) for p in parts], f"width of level {i}") for i in range(levels)]
    if any(width % autoencoder.GROUPS or not width for width in widths):
        rule = f"level widths {widths} are not multiples of the {autoencoder.GROUPS} groups of its norms"
        raise refused(source, rule, "train one whose widths are")
    # Without an encoder only the products ch·multiplier are told.
    bias = tensors.get("encoder.conv_in.bias")
    ch = math.gcd(*widths) if bias is None else bias.numel()
    if ch < 1 or any(width % ch for width in widths):
        raise refused(source, f"level widths {widths} are not multiples of ch={ch}", "is it a VQ-VAE checkpoint?")
    return ch, tuple(width // ch for width in widths), count_indices(tensors, r"decoder\.up\.0\.block\.(\d+)\.") - 1


def _infer_autoencoder(tensors: Mapping[str, Tensor], source: str) -> AutoencoderConfig:
    vote, (ch, multipliers, res_blocks) = partial(_vote, tensors, source), infer_levels(tensors, source)
    shared = count_indices(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    per_scale = count_indices(tensors, r"quantize\.quant_resi\.(\d+)\.")
    one = any(key.startswith("quantize.quant_resi.qresi.") for key in tensors)
    layout = "shared" if shared else "per-scale" if per_scale else "one" if one else ""
    if not layout:
        raise refused(source, "no φ convolution (quantize.quant_resi.*) is there", "is it a VQ-VAE checkpoint?")
    codebook = "quantize.embedding.weight"
    V, C = vote([(codebook, 0)], "codebook size V"), vote([(codebook, 1)], "code channels C")
    has_encoder = all(any(key.startswith(part) for key in tensors) for part in ENCODER)
    return AutoencoderConfig(V, C, ch, multipliers, res_blocks, shared or per_scale or 1, layout, has_encoder)
