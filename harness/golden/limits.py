"""What a recording may ask for.

Promise: sizes far beyond any recording are refused from its text alone, before anything of that size is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import InputError
from harness.models.network import TransformerConfig
from harness.protocol.pyramid import ScalePyramid

# Largest values of single sizes; the published networks have depth 36, width 2304, 2240 tokens, 10 scales.
MOST = {"V": 2**16, "C": 2**12, "vae_ch": 2**12, "depth": 128, "D": 2**14, "H": 2**10, "classes": 2**16}
MOST |= {"draft_depth": MOST["depth"], "draft_D": MOST["D"], "draft_H": MOST["H"]}
MOST_LISTED = {"patch_nums": (64, 128), "vae_mult": (8, 64)}  # length, largest entry
MOST_TOKENS = 2**13
MOST_NUMBERS = 2**28  # of one tensor, or of all weights of a network: 1 GiB in float32
REMEDY = "record it again"


def check_sizes(case: Mapping[str, Any]) -> None:
    """Refuse single sizes that no recording has. Raises `InputError` by name; a missing size is met elsewhere."""
    for key, most in MOST.items():
        if key in case and not _is_size(case[key], most):
            raise InputError("sizes", {key: case[key]}, f"must be a whole number in 1..{most}", REMEDY)
    for key, (length, most) in MOST_LISTED.items():
        values = case.get(key, [1])
        if not isinstance(values, list) or len(values) > length or not all(_is_size(value, most) for value in values):
            shown = f"{key} of {len(values)} entries" if isinstance(values, list) else f"{key} {values!r}"
            rule = f"must list at most {length} whole numbers in 1..{most}"
            raise InputError("sizes", shown, rule, REMEDY)
    tokens = sum(pn * pn for pn in case.get("patch_nums", []))
    if tokens > MOST_TOKENS:
        raise InputError("sizes", f"patch_nums of {tokens} tokens", f"must have at most {MOST_TOKENS}", REMEDY)


def _is_size(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def check_weights(numbers: int) -> None:
    """Refuse a network of too many weights. Raises `InputError`."""
    if numbers > MOST_NUMBERS:
        raise InputError("sizes", f"{numbers} weights", f"must be at most {MOST_NUMBERS} a network", REMEDY)


def check_batch(images: int, pyramid: ScalePyramid, config: TransformerConfig, downsampling: int) -> None:
    """Refuse a batch whose logits, attention or pixels are too many. Raises `InputError`."""
    side = pyramid.P * downsampling
    numbers = images * max(2 * pyramid.L * config.V, 2 * config.H * pyramid.L**2, 3 * side * side)
    if numbers > MOST_NUMBERS:
        rule = f"must make tensors of at most {MOST_NUMBERS} numbers, not {numbers}"
        raise InputError("images", images, rule, REMEDY)
