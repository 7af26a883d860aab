"""What a recording's metadata says of a case: records, read whole at once.

Promise: what a case says is understood or refused by name, and nothing in it is guessed; sizes far beyond any recording
are refused from its text alone, before anything of that size is made. A record written is the text that it was read
from, but for keys that no field has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from harness.errors import InputError
from harness.models.network import TransformerConfig
from harness.models.var.autoencoder import GROUPS, AutoencoderConfig
from harness.protocol import ORDERS, NoiseOrder
from harness.protocol.pyramid import ScalePyramid

SAMPLERS = ("sequential", "test3", "speculative")
SIDES = ("draft", "target")
LOGITS = ("none", "some", "all")
# Largest values of single sizes; the published networks have depth 36, width 2304, 2240 tokens, 10 scales.
MOST = {"V": 2**16, "C": 2**12, "vae_ch": 2**12, "depth": 128, "D": 2**14, "H": 2**10, "classes": 2**16}
MOST |= {"draft_depth": MOST["depth"], "draft_D": MOST["D"], "draft_H": MOST["H"]}
MOST_LISTED = {"patch_nums": (64, 128), "vae_mult": (8, 64)}  # length, largest entry
SWITCHES = ("shared_adaln", "l2_norm")
PHI = re.compile(r"[1-9][0-9]? shared|one a scale")
MOST_TOKENS = 2**13
MOST_NUMBERS = 2**28  # of one tensor, or of all weights of a network: 1 GiB in float32
REMEDY = "record it again"
# What a case says by key: how it draws, which it must say; words of a list, and other values, which it may say.
DRAWING = {"seed": int, "cfg": float, "top_k": int, "top_p": float, "more_smooth": bool}
WORDS = {"model": SIDES, "logits": LOGITS, "order": ORDERS}
STATED = {"deep": bool, "count": int, "entry_num": int, "sd_mask": int, "mode": str, "draft_len": int, "bonus": bool}


@dataclass(frozen=True)
class DrawSettings:
    """How a case draws its tokens: seed, guidance value and filters."""

    seed: int
    cfg: float
    top_k: int = 0
    top_p: float = 0.0
    more_smooth: bool = False


@dataclass(frozen=True)
class Recipe:
    """Networks that are filled by formula, in the words of the recordings' README; a size of the draft that is None is
    the target's."""

    patch_nums: tuple[int, ...]
    V: int
    C: int
    phi: str
    vae_ch: int
    vae_mult: tuple[int, ...]
    depth: int
    D: int
    H: int
    shared_adaln: bool
    l2_norm: bool
    classes: int
    draft_depth: int | None = None
    draft_D: int | None = None
    draft_H: int | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Self:
        """Read the sizes of a case. Raises `InputError`, and `KeyError` for a size that is missing."""
        check_sizes(values)
        needed = [size.name for size in fields(cls) if size.name in values or not size.name.startswith("draft_")]
        stated = {name: values[name] for name in needed}
        listed = {name: tuple(size) if isinstance(size, list) else size for name, size in stated.items()}
        return cls(**listed)  # type: ignore[arg-type]  # `check_sizes` has seen their types


@dataclass(frozen=True)
class GoldenCase:
    """What one case asks for; None = its metadata does not say."""

    id: str  # first part of the names of its tensors
    sampler: str  # one of `SAMPLERS`
    labels: tuple[int, ...] | None  # of the images; None = drawn ones
    drawing: DrawSettings  # how tokens are drawn
    model: str | None = None  # which network decides, one of `SIDES` (`sequential`)
    deep: bool | None = None  # f_hat after every scale is recorded too
    logits: str | None = None  # one of `LOGITS`
    order: NoiseOrder | None = None  # of the noise
    count: int | None = None  # images, where labels are drawn
    entry_num: int | None = None  # of `test3`, with `sd_mask` and `mode`
    sd_mask: int | None = None
    mode: str | None = None
    draft_len: int | None = None  # of `speculative`, with `bonus`
    bonus: bool | None = None
    recipe: Recipe | None = None  # of networks that are filled by formula

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Self:
        """Read one case of a file. Raises `InputError`, which names it, where a key is missing or a value unfit."""
        with naming(str(values["id"])):
            return cls(
                str(values["id"]),
                _one_of("sampler", values["sampler"], SAMPLERS),
                _labels(values["labels"]),
                DrawSettings(**{key: _value(values, key, kind) for key, kind in DRAWING.items()}),
                **{key: _one_of(key, values[key], words) for key, words in WORDS.items() if key in values},
                **{key: _value(values, key, kind) for key, kind in STATED.items() if key in values},
                recipe=Recipe.from_values(values) if "patch_nums" in values else None,
            )

    def as_values(self) -> dict[str, object]:
        flat = asdict(self)
        flat |= {**flat.pop("drawing"), **(flat.pop("recipe") or {})}
        return {key: value for key, value in flat.items() if value is not None or key == "labels"}


@contextmanager
def naming(case_id: str) -> Iterator[None]:
    """Name the case in every `InputError`, and make one of a `KeyError`: what it lacks."""
    try:
        yield
    except InputError as error:
        raise InputError(f"case {case_id}: {error.name}", error.value, error.rule, error.remedy) from None
    except KeyError as error:
        raise InputError(f"case {case_id}", "metadata", f"lacks {error}", REMEDY) from None


def _labels(labels: object) -> tuple[int, ...] | None:
    if labels is None:
        return None
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise InputError("labels", labels, "must be a list of integers, or null for drawn ones", REMEDY)
    return tuple(labels)


def _one_of(key: str, value: object, words: tuple[str, ...]) -> Any:
    """Return the word that a case says. Raises `InputError` where it is none of these."""
    for word in words:
        if word == value:
            return word
    raise InputError(key, value, f"must be one of {', '.join(words)}", REMEDY)


def _value(values: Mapping[str, object], key: str, kind: type[Any]) -> Any:
    """Return ``values[key]``, of exactly this kind; an integer may stand for a float. Raises `InputError`."""
    value = values[key]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise InputError(key, value, f"must be of type {kind.__name__}", REMEDY)
    try:
        return kind(value)
    except OverflowError:  # an integer of hundreds of digits
        raise InputError(key, value, "must be a number that a float holds", REMEDY) from None


def check_sizes(values: Mapping[str, object]) -> None:
    """Refuse single sizes that no recording has. Raises `InputError`, and `KeyError` where one lacks."""
    for key, most in MOST.items():
        if key in values and not _is_size(values[key], most):
            raise _refused({key: values[key]}, f"must be a whole number in 1..{most}")
    for key, (length, most) in MOST_LISTED.items():
        sizes = values[key]
        if not isinstance(sizes, list) or not (1 <= len(sizes) <= length and all(_is_size(v, most) for v in sizes)):
            shown = f"{key} of {len(sizes)} entries" if isinstance(sizes, list) else f"{key} {sizes!r}"
            raise _refused(shown, f"must list 1..{length} whole numbers in 1..{most}")
        if key == "patch_nums" and (tokens := sum(pn * pn for pn in sizes)) > MOST_TOKENS:
            raise _refused(f"patch_nums of {tokens} tokens", f"must have at most {MOST_TOKENS}")
    for key in SWITCHES:
        if type(values[key]) is not bool:
            raise _refused({key: values[key]}, "must be true or false")
    if not isinstance(phi := values["phi"], str) or not PHI.fullmatch(phi):
        raise InputError("phi", phi, 'must read "N shared" (N in 1..99) or "one a scale"', REMEDY)


def check_fit(transformers: Iterable[TransformerConfig], vae: AutoencoderConfig) -> None:
    """Refuse sizes that are right one by one and make no networks together. Raises `InputError`."""
    for config in transformers:
        if config.D % config.H:
            raise _refused(f"D={config.D} and H={config.H}", "D must be a multiple of H")
    for multiplier in vae.multipliers:
        if vae.ch * multiplier % GROUPS:
            raise _refused(f"vae_ch={vae.ch} times {multiplier}", f"must be a multiple of {GROUPS}")


def _refused(shown: object, rule: str) -> InputError:
    return InputError("sizes", shown, rule, REMEDY)


def _is_size(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def check_weights(numbers: int) -> None:
    if numbers > MOST_NUMBERS:
        raise _refused(f"{numbers} weights", f"must be at most {MOST_NUMBERS} a network")


def check_batch(images: int, pyramid: ScalePyramid, config: TransformerConfig, downsampling: int) -> None:
    side = pyramid.P * downsampling
    numbers = images * max(2 * pyramid.L * config.V, 2 * config.H * pyramid.L**2, 3 * side * side)
    if numbers > MOST_NUMBERS:
        rule = f"must make tensors of at most {MOST_NUMBERS} numbers, not {numbers}"
        raise InputError("images", images, rule, REMEDY)
