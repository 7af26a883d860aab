"""Checkpoint files: read, infer every size from the tensors, refuse what does not fit.

Promise: a file is either loaded whole, in float32, or refused with one error that lists every name that is missing,
unknown or mis-shaped. Nothing is executed (`weights_only=True`).

Source: spec §2.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import InputError, text_of
from harness.files import check_readable
from harness.models.network import TransformerConfig
from harness.models.var import autoencoder, transformer
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.var.transformer import Transformer
from harness.protocol.pyramid import KNOWN_PYRAMIDS, ScalePyramid

Shape = tuple[int, ...]
HEAD_DIM = 64  # of a published transformer without l2-norm, whose head count no tensor tells


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Read a state dict, floating point tensors upcast to float32, from a ``.safetensors``, ``.pth`` or ``.pt`` file.

    `name` is what the file is to the user, e.g. ``draft``. Raises `InputError` where it is missing, truncated, of
    another format, or holds something else than a plain dict of tensors.
    """
    check_readable(path, name, f"pass --{name} FILE")
    try:
        if path.suffix == ".safetensors":
            tensors: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols and quantised tensors: what matters is checked
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets any byte, and raises accordingly
        reason = text_of(error).splitlines()[0][:120]
        remedy = "pass a whole .safetensors file, or a .pth file of a plain state dict (it may be truncated)"
        raise InputError(name, str(path), f"cannot be read ({reason})", remedy) from None
    if not isinstance(tensors, Mapping) or not all(_is_dense(t) for t in tensors.values()):
        raise InputError(name, str(path), "must hold a plain dict of dense tensors", "save model.state_dict()")
    return {str(key): t.float() if t.is_floating_point() else t for key, t in tensors.items()}


def _is_dense(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def load_transformer(path: Path, name: str = "target", patch_nums: tuple[int, ...] | None = None) -> Transformer:
    """Load a VAR checkpoint, sizes inferred; `patch_nums` are for one that does not tell them, else they are checked.

    Raises `InputError` as `read_tensors` does, and for names that are missing, unknown or mis-shaped (all are listed).
    """
    return transformer_from(read_tensors(path, name), f"{name}={path}", patch_nums)


def load_autoencoder(path: Path, name: str = "vae") -> Autoencoder:
    """Load a VQ-VAE checkpoint, sizes inferred. Raises `InputError` as `load_transformer` does."""
    return autoencoder_from(read_tensors(path, name), f"{name}={path}")


def transformer_from(
    tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None = None
) -> Transformer:
    """Build a transformer from a state dict; `source` is ``name=value`` for the error."""
    config = _infer_transformer(tensors, source, patch_nums)
    shapes = transformer.transformer_shapes(config)
    _check_names(tensors, shapes, transformer.buffer_shapes(config), source)
    _check_buffers(tensors, config.pyramid, source)
    return Transformer(config, {key: tensors[key] for key in shapes})


def autoencoder_from(tensors: Mapping[str, Tensor], source: str) -> Autoencoder:
    """Build a VQ-VAE from a state dict; `source` is ``name=value`` for the error."""
    config = _infer_autoencoder(tensors, source)
    shapes = autoencoder.autoencoder_shapes(config)
    hits = tensors.get("quantize.ema_vocab_hit_SV")
    buffers: dict[str, Shape] = {} if hits is None else {"quantize.ema_vocab_hit_SV": (*hits.shape[:1], config.V)}
    _check_names(tensors, shapes, buffers, source)
    return Autoencoder(config, {key: tensors[key] for key in shapes})


def _refuse(source: str, rule: str, remedy: str) -> InputError:
    name, _, value = source.partition("=")
    return InputError(name, value, rule, remedy)


def _check_names(
    tensors: Mapping[str, Tensor], shapes: dict[str, Shape], buffers: dict[str, Shape], source: str
) -> None:
    wrong = [f"missing {key}" for key in shapes if key not in tensors]
    wrong += [f"unknown {key}" for key in tensors if key not in shapes and key not in buffers]
    for key, shape in (shapes | buffers).items():
        if key in tensors and tuple(tensors[key].shape) != shape:
            wrong.append(f"shape of {key} is {tuple(tensors[key].shape)}, not {shape}")
        if key in shapes and key in tensors and not tensors[key].is_floating_point():
            wrong.append(f"dtype of {key} is {tensors[key].dtype}, not floating point")
    if wrong:
        raise _refuse(
            source, f"{len(wrong)} tensors do not fit: " + ", ".join(wrong), "pass the file of one whole model"
        )


def _check_buffers(tensors: Mapping[str, Tensor], pyramid: ScalePyramid, source: str) -> None:
    """Derived tensors must hold what they are derived from."""
    levels = torch.tensor(pyramid.levels())
    expected = {"lvl_1L": levels[None]}
    visible = levels[:, None] >= levels[None, :]
    expected["attn_bias_for_masking"] = torch.zeros(visible.shape).masked_fill(~visible, -math.inf)[None, None]
    for key, tensor in tensors.items():
        value = torch.zeros_like(tensor) if key.endswith("zero_k_bias") else expected.get(key)
        if value is not None and not torch.equal(tensor.to(value.dtype), value):
            raise _refuse(source, f"{key} does not hold its derived value", "export the checkpoint again")


def _vote(tensors: Mapping[str, Tensor], sources: list[tuple[str, int]], what: str, origin: str) -> int:
    """Return the size that most of the named axes agree on, so that one bad tensor does not condemn the others."""
    sizes = [tensors[key].shape[axis] for key, axis in sources if key in tensors and tensors[key].dim() > axis]
    if not sizes:
        raise _refuse(
            origin, f"{what} cannot be inferred: none of {[key for key, _ in sources]} is there", "is it a VAR model?"
        )
    return Counter(sizes).most_common(1)[0][0]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many of the indices 0, 1, … `pattern` finds in the names without a gap; 0 when it finds none."""
    indices = {int(match.group(1)) for key in tensors if (match := re.match(pattern, key))}
    return next(index for index in range(len(indices) + 1) if index not in indices)


def _infer_transformer(
    tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None
) -> TransformerConfig:
    D = _vote(
        tensors,
        [("word_embed.weight", 0), ("class_emb.weight", 1), ("pos_start", 2), ("pos_1LC", 2), ("lvl_embed.weight", 1)]
        + [("head.weight", 1), ("blocks.0.attn.proj.bias", 0)],
        "width D",
        source,
    )
    muls = [t for key, t in tensors.items() if re.fullmatch(r"blocks\.\d+\.attn\.scale_mul_1H11", key) and t.dim() == 4]
    H = Counter(m.shape[1] for m in muls).most_common(1)[0][0] if muls else D // HEAD_DIM
    if H < 1 or D % H:
        raise _refuse(source, f"D={D} is not a multiple of H={H} heads", "is it a VAR model?")
    classes = _vote(tensors, [("class_emb.weight", 0)], "number of classes", source) - 1
    if classes < 1:
        raise _refuse(source, "class_emb.weight has no class besides the unconditional one", "is it a VAR model?")
    return TransformerConfig(
        pyramid=_infer_pyramid(tensors, source, patch_nums),
        depth=_count(tensors, r"blocks\.(\d+)\."),
        D=D,
        H=H,
        V=_vote(tensors, [("head.weight", 0), ("head.bias", 0)], "codebook size V", source),
        C=_vote(tensors, [("word_embed.weight", 1)], "code channels C", source),
        classes=classes,
        shared_adaln=any(key.startswith("shared_ada_lin.") or key.endswith(".ada_gss") for key in tensors),
        l2_norm=bool(muls),
    )


def _infer_pyramid(tensors: Mapping[str, Tensor], source: str, patch_nums: tuple[int, ...] | None) -> ScalePyramid:
    wanted = ScalePyramid(patch_nums) if patch_nums else None
    if "lvl_1L" in tensors:
        counts = torch.unique(tensors["lvl_1L"].flatten(), return_counts=True)[1].tolist()
        sides = tuple(math.isqrt(count) for count in counts)
        if any(side * side != count for side, count in zip(sides, counts, strict=True)):
            raise _refuse(source, f"lvl_1L counts {counts} are not squares", "export the checkpoint again")
        pyramid: ScalePyramid | None = ScalePyramid(sides)
    else:
        S = _vote(tensors, [("lvl_embed.weight", 0)], "number of scales S", source)
        L = _vote(tensors, [("pos_1LC", 1)], "number of positions L", source)
        pyramid = next((p for p in (wanted, *KNOWN_PYRAMIDS) if p and (p.S, p.L) == (S, L)), None)
        if pyramid is None:
            raise _refuse(source, f"no known pyramid has S={S} scales and L={L} positions", "pass --patch-nums 1,2,3,…")
    assert pyramid is not None
    if wanted and wanted != pyramid:
        raise _refuse(source, f"its patch_nums are {pyramid.patch_nums}, not {wanted.patch_nums}", "drop --patch-nums")
    return pyramid


def _infer_autoencoder(tensors: Mapping[str, Tensor], source: str) -> AutoencoderConfig:
    levels = _count(tensors, r"decoder\.up\.(\d+)\.")
    if levels == 0:
        raise _refuse(source, "multipliers cannot be inferred: no decoder.up.* is there", "is it a VQ-VAE checkpoint?")
    widths = [
        _vote(
            tensors,
            [(f"decoder.up.{i}.block.{j}.{part}", 0) for j in range(9) for part in ("conv1.bias", "conv2.bias")],
            f"width of level {i}",
            source,
        )
        for i in range(levels)
    ]
    # Without an encoder only the products ch·multiplier are told; the published ones have multiplier 1 at level 0.
    bias = tensors.get("encoder.conv_in.bias")
    ch = widths[0] if bias is None else bias.numel()
    if ch < 1 or any(width % ch for width in widths):
        raise _refuse(source, f"level widths {widths} are not multiples of ch={ch}", "is it a VQ-VAE checkpoint?")
    shared = _count(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    per_scale = _count(tensors, r"quantize\.quant_resi\.(\d+)\.")
    one = any(key.startswith("quantize.quant_resi.qresi.") for key in tensors)
    layout = "shared" if shared else "per-scale" if per_scale else "one" if one else ""
    if not layout:
        raise _refuse(source, "no φ convolution (quantize.quant_resi.*) is there", "is it a VQ-VAE checkpoint?")
    return AutoencoderConfig(
        V=_vote(tensors, [("quantize.embedding.weight", 0)], "codebook size V", source),
        C=_vote(tensors, [("quantize.embedding.weight", 1)], "code channels C", source),
        ch=ch,
        multipliers=tuple(width // ch for width in widths),
        res_blocks=_count(tensors, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        phi=shared or per_scale or 1,
        phi_layout=layout,
        has_encoder=any(key.startswith(("encoder.", "quant_conv.")) for key in tensors),
    )
