"""What a recording's metadata says of a case: records, read whole at once.

Promise: what a case says is understood or refused by name, and nothing in it is guessed; sizes far beyond any recording
are refused from its text alone, before anything of that size is made. A record written is the text that it was read
from, but for keys that no field has.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from harness.errors import InputError
from harness.models.network import TransformerConfig
from harness.models.var.autoencoder import GROUPS, AutoencoderConfig
from harness.protocol import ORDERS, NoiseOrder, ScalePyramid

SAMPLERS = ("sequential", "test3", "speculative")
SIDES = ("draft", "target")
LOGITS = ("none", "some", "all")
MOST_LISTED = 64
MOST_TOKENS = 2**13
MOST_NUMBERS = 2**28  # of one tensor, or of all weights of a network: 1 GiB in float32
REMEDY = "record it again"
# Rules of what metadata may say: a type, a whole number of a range, one of some words, a text of a pattern; in a list,
# so many of one rule, `MOST_LISTED` where no number stands there. The largest sizes are far beyond the published ones:
# depth 36, width 2304, 2240 tokens, 10 scales.
_DEPTH, _D, _H = range(1, 2**7 + 1), range(1, 2**14 + 1), range(1, 2**10 + 1)
SIZES: dict[str, Any] = {
    "patch_nums": [range(1, 129)], "V": range(1, 2**16 + 1), "C": range(1, 2**12 + 1),
    "phi": re.compile(r"[1-9][0-9]? shared|one a scale"), "vae_ch": range(1, 2**12 + 1), "vae_mult": [range(1, 65), 8],
    "depth": _DEPTH, "D": _D, "H": _H, "shared_adaln": bool, "l2_norm": bool, "classes": range(1, 2**16 + 1),
}  # fmt: skip
DRAFT: dict[str, Any] = {"draft_depth": _DEPTH, "draft_D": _D, "draft_H": _H}  # where they are not the target's
# How a case draws, which it must say, and what else it may say.
DRAWING: dict[str, Any] = {"seed": int, "cfg": float, "top_k": int, "top_p": float, "more_smooth": bool}
STATED: dict[str, Any] = {
    "model": SIDES, "deep": bool, "logits": LOGITS, "order": ORDERS, "count": int, "entry_num": int, "sd_mask": int,
    "mode": str, "draft_len": int, "bonus": bool,
}  # fmt: skip


def check_values(values: Mapping[str, Any], rules: Mapping[str, Any]) -> None:
    """Refuse metadata that says something else. Raises `InputError`, and `KeyError` where it says nothing."""
    for key, rule in rules.items():
        if not _fits(values[key], rule):
            raise InputError(key, values[key], f"must be {_said(rule)}", REMEDY)


def _fits(value: Any, rule: Any) -> bool:
    if isinstance(rule, list):
        each, most = (*rule, MOST_LISTED)[:2]
        return isinstance(value, list) and 0 < len(value) <= most and all(_fits(one, each) for one in value)
    if rule is float:  # which an integer may stand for, where it is one that a float holds
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if isinstance(rule, re.Pattern):
        return isinstance(value, str) and rule.fullmatch(value) is not None
    return type(value) is rule if isinstance(rule, type) else type(value) is type(rule[0]) and value in rule


def _said(rule: Any) -> str:
    if isinstance(rule, list):
        each, most = (*rule, MOST_LISTED)[:2]
        return f"a list of 1..{most}, each {_said(each)}"
    if isinstance(rule, range):
        return f"a whole number in {rule[0]}..{rule[-1]}"
    if isinstance(rule, re.Pattern):
        return f"of the form {rule.pattern}"
    return f"of type {rule.__name__}" if isinstance(rule, type) else f"one of {', '.join(map(str, rule))}"


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
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read the sizes of a case. Raises `InputError`, and `KeyError` for a size that is missing."""
        rules = SIZES | {key: rule for key, rule in DRAFT.items() if key in values}
        check_values(values, rules)
        if (tokens := sum(pn * pn for pn in values["patch_nums"])) > MOST_TOKENS:
            raise _refused(f"patch_nums of {tokens} tokens", f"must have at most {MOST_TOKENS}")
        sizes: dict[str, Any] = {key: tuple(v) if isinstance(v := values[key], list) else v for key in rules}
        return cls(**sizes)


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
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Read one case of a file. Raises `InputError`, which names it, where a key is missing or a value unfit."""
        with naming(str(values["id"])):
            rules = {key: rule for key, rule in STATED.items() if key in values}
            of_labels = {"labels": [int, 2**16]} if values["labels"] is not None else {}
            check_values(values, {"sampler": SAMPLERS, **of_labels, **DRAWING, **rules})
            drawn: dict[str, Any] = {key: rule(values[key]) for key, rule in DRAWING.items()}
            return cls(
                str(values["id"]), values["sampler"], tuple(values["labels"]) if of_labels else None,
                DrawSettings(**drawn), recipe=Recipe.from_values(values) if "patch_nums" in values else None,
                **{key: values[key] for key in rules},
            )  # fmt: skip

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


def check_weights(numbers: int) -> None:
    if numbers > MOST_NUMBERS:
        raise _refused(f"{numbers} weights", f"must be at most {MOST_NUMBERS} a network")


def check_batch(images: int, pyramid: ScalePyramid, config: TransformerConfig, downsampling: int) -> None:
    side = pyramid.P * downsampling
    numbers = images * max(2 * pyramid.L * config.V, 2 * config.H * pyramid.L**2, 3 * side * side)
    if numbers > MOST_NUMBERS:
        rule = f"must make tensors of at most {MOST_NUMBERS} numbers, not {numbers}"
        raise InputError("images", images, rule, REMEDY)
