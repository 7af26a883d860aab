"""State dicts of Infinity and of its autoencoder: sizes from shapes, the rest as told, what does not fit refused.

Promise: as for VAR's: loaded whole, in float32, or refused in one line. What a schedule is called, in the published
table or as people type it, says its scales and its full sides. Source: the Infinity page, §1 (schedules), §2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from harness.errors import InputError
from harness.files import check_readable
from harness.models import ModelPair
from harness.models.infinity.autoencoder import InfinityAutoencoder, binary_config, infinity_autoencoder_shapes
from harness.models.infinity.transformer import InfinityConfig, InfinityTransformer, infinity_shapes
from harness.models.state_dicts import Kind, load_network, tensors_of
from harness.models.var import checkpoint as var
from harness.numerals import whole
from harness.protocol import Rows, ScalePyramid

TRANSFORMER = Kind(
    "Infinity transformer", ("text_norm.weight", "text_proj_for_ca.0.weight", "cfg_uncond"), ("zero_k_bias",)
)
# A file's convolutions and norms may lie in modules of that name; that of a resizing module is its own.
INNER = re.compile(r"(?<!upsample)(?<!downsample)\.(conv|norm)(?=\.(weight|bias)$)")
AUTOENCODER = Kind("binary autoencoder", ("decoder.conv_in.weight", "decoder.conv_out.weight"), ("mask",), INNER)
AXES = {"word_embed.weight": 2, "cfg_uncond": 2, "text_proj_for_sos.ca.mat_q": 3, "head_nm.ada_lin.1.weight": 2}
NEGATIVE = "negative/"  # begins the names of negative texts
FIRST = "block_chunks.0.module.0."

SHIPPED = Path(str(files("harness.models") / "digits-bits"))
SHIPPED_SIDES = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class Told:
    """What no tensor of a transformer tells."""

    sides: tuple[tuple[int, int], ...]  # (h, w) of every scale
    full: tuple[int, int] = (0, 0)  # full sides; zeros = the last scale's
    C: int = 0  # channels of the map, a quarter of a position's bits where patchified; 0 = as many as these
    heads: int = 0  # where there is no l2-norm
    rule: int = 2  # of positions
    levels_once: bool = True  # else before every chunk
    rounds: bool = True  # cross-attention rounds to bfloat16


def load_infinity(draft: Path | str, target: Path | str, vae: Path | str, told: Told) -> ModelPair:
    """Load three checkpoints, as `load_pair` those of VAR; one that is draft and target once. Raises as it does."""
    codec, said_of_vae = load_network(vae, "vae", (AUTOENCODER, TRANSFORMER), autoencoder_from)
    build, kinds = partial(transformer_from, told=replace(told, C=codec.config.C)), (TRANSFORMER, var.TRANSFORMER)
    large, said_of_target = load_network(target, "target", kinds, build)
    small, said_of_draft = (large, "") if draft == target else load_network(draft, "draft", kinds, build)
    taken = tuple(filter(None, (said_of_draft, said_of_target, said_of_vae)))
    return ModelPair(small, large, codec, taken=taken)


def load_digits_bits(folder: Path = SHIPPED) -> ModelPair:
    """Load the trained pair of bits that ships (MNIST; 7 scales, 155 positions of 8 bits, a text a digit).

    Its texts are numbered by the digits: `ModelPair.conditioned` gives them to a request. `folder` holds other files of
    these names and scales, as scripts/bits.py writes them.
    """
    draft, target, vae, texts = (folder / f"{name}.safetensors" for name in ("draft", "target", "vae", "texts"))
    models = load_infinity(draft, target, vae, Told(SHIPPED_SIDES))
    return replace(models, name="digits-bits", texts=load_texts(texts)[0])


def transformer_from(tensors: Mapping[str, Tensor], source: str, told: Told) -> InfinityTransformer:
    """Build a transformer from a state dict; `source` is ``name=value`` for the error."""
    for key, axes in (AXES | {f"{FIRST}ffn.fc1.weight": 2}).items():
        if key not in tensors or tensors[key].dim() != axes:
            raise var.refused(source, f"has no {key} of {axes} axes", "is it an Infinity transformer?")
    D, N = tensors["word_embed.weight"].shape
    X, A = tensors["cfg_uncond"].shape
    muls = tensors.get(f"{FIRST}sa.scale_mul_1H11")
    heads = told.heads if muls is None else muls.numel()
    if heads < 1 or (told.heads and told.heads != heads):
        raise var.refused(source, f"has {heads} heads, where {told.heads} are told", "tell the number of heads")
    chunks = var.count_indices(tensors, r"block_chunks\.(\d+)\.")
    blocks = var.count_indices(tensors, r"block_chunks\.0\.module\.(\d+)\.")
    config = InfinityConfig(
        ScalePyramid(sides=told.sides, channels=N), chunks * blocks, D, heads, told.C or N, A, X,
        ffn=len(tensors[f"{FIRST}ffn.fc1.weight"]), pool_heads=tensors["text_proj_for_sos.ca.mat_q"].shape[1],
        chunks=chunks, full=told.full, rule=told.rule, shared_adaln="shared_ada_lin.1.weight" in tensors,
        l2_norm=muls is not None, ca_gamma=f"{FIRST}ca_gamma" in tensors, norm0_ve="norm0_ve.weight" in tensors,
        two_layer_head="head.0.weight" in tensors, levels_once=told.levels_once, rounds=told.rounds,
    )  # fmt: skip
    shapes = infinity_shapes(config)
    zeros = {name.replace("v_bias", "zero_k_bias") for name in shapes if name.endswith(".v_bias")}
    var.check_names(tensors, shapes, zeros, source)
    var.check_buffers(tensors, config.pyramid, source)
    return InfinityTransformer(config, {key: tensors[key] for key in shapes})


def autoencoder_from(tensors: Mapping[str, Tensor], source: str) -> InfinityAutoencoder:
    """Build an autoencoder from a state dict without the inner parts of names; what is no coder's is not read."""
    if "quantize.embedding.weight" in tensors:
        raise var.refused(source, "is a VQ-VAE of VAR, whose codes are no bits", "pass networks of one family")
    ch, multipliers, res_blocks = var.infer_levels(tensors, source)
    kernel = tensors["decoder.conv_in.weight"]
    has_encoder = any(key.startswith("encoder.") for key in tensors)
    config = binary_config(kernel.shape[1] if kernel.dim() == 4 else 0, ch, multipliers, res_blocks, has_encoder)
    shapes = infinity_autoencoder_shapes(config)
    unread = {key for key in tensors if not key.startswith(("encoder.", "decoder."))}
    var.check_names(tensors, shapes, unread, source)
    return InfinityAutoencoder(config, {key: tensors[key] for key in shapes})


def load_texts(file: Path) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """Return the texts of a file, in the order of their names, shorter ones first, and negative ones beside them.

    Raises `InputError`: it holds something else.
    """
    check_readable(file, "texts", "pass a .safetensors file")
    rows = {name: Rows(tensor) for name, tensor in tensors_of(file, "texts").items()}
    names = sorted((name for name in rows if not name.startswith(NEGATIVE)), key=lambda name: (len(name), name))
    against = [rows[NEGATIVE + name] for name in names if NEGATIVE + name in rows]
    if not names or len(names) + len(against) != len(rows) or len(against) not in (0, len(names)):
        rule = f"must hold texts, and {NEGATIVE}NAME beside every NAME or beside none"
        raise InputError("texts", str(file), rule, "save (T, A) tensors by name")
    return tuple(rows[name] for name in names), tuple(against)


SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # scales
# (h, w) of all scales after (1, 1), by height over width; the others are these with h and w exchanged.
_TALL = {
    "1.0": "2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    "1.25": "2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    "1.333": "2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    "1.5": "2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    "1.75": "2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    "2.0": "2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    "2.5": "2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    "3.0": "2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}
_WIDE = dict(zip(("0.8", "0.75", "0.666", "0.571", "0.5", "0.4", "0.333"), list(_TALL)[1:], strict=True))
Sides = tuple[tuple[int, int], ...]


def parse_schedule(text: str) -> Told:
    """Return a schedule: RATIO/SIZE of the table, or 1x1,2x2,… with /HxW for other full sides. Raises `InputError`."""
    first, _, second = text.partition("/")
    whole_table = _table(first)
    if whole_table:
        if second not in SIZES:
            raise _no_schedule(text, f"must end in one of {', '.join(SIZES)}")
        return Told(whole_table[: SIZES[second]], whole_table[-1])
    if "x" not in first:
        raise _no_schedule(text, f"must begin with one of {', '.join((*_TALL, *_WIDE))}, or with sides")
    try:
        texts = first.split(",") + [second] * bool(second)
        pairs = [tuple(whole(side) for side in pair.split("x")) for pair in texts]
        sides = tuple((h, w) for h, w in pairs)
    except ValueError:
        raise _no_schedule(text, "must list sides as 1x1,2x2,3x4") from None
    return Told(sides[:-1] if second else sides, sides[-1])


def _table(ratio: str) -> Sides:
    """Return all 13 scales of a ratio; none of one that is not in the table."""
    if ratio in _WIDE:
        return tuple((w, h) for h, w in _table(_WIDE[ratio]))
    pairs = (pair.split(",") for pair in _TALL.get(ratio, "").split())
    sides = tuple((int(h), int(w)) for h, w in pairs)
    return ((1, 1), *sides) if sides else ()


def _no_schedule(text: str, rule: str) -> InputError:
    return InputError("schedule", text, rule, "pass --schedule 1.0/1M, or 1x1,2x2,4x4")
