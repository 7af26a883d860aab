"""What a recording may ask for.

Promise: sizes far beyond any recording are refused from its text alone, before anything of that size is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.errors import InputError
from harness.models.autoencoder import GROUPS, AutoencoderConfig
from harness.models.network import TransformerConfig
from harness.protocol.pyramid import ScalePyramid

# Largest values of single sizes; the published networks have depth 36, width 2304, 2240 tokens, 10 scales.
MOST = {"V": 2**16, "C": 2**12, "vae_ch": 2**12, "depth": 128, "D": 2**14, "H": 2**10, "classes": 2**16}
MOST |= {"draft_depth": MOST["depth"], "draft_D": MOST["D"], "draft_H": MOST["H"]}
MOST_LISTED = {"patch_nums": (64, 128), "vae_mult": (8, 64)}  # length, largest entry
SWITCHES = ("shared_adaln", "l2_norm")
PHI = re.compile(r"[1-9][0-9]? shared|one a scale")
MOST_TOKENS = 2**13
MOST_NUMBERS = 2**28  # of one tensor, or of all weights of a network: 1 GiB in float32
REMEDY = "record it again"


def check_sizes(case: Mapping[str, Any]) -> None:
    """Refuse single sizes that no recording has.

    Raises:
        InputError: one is too large, or of another kind.
        KeyError: a list, a switch or `phi` is missing; a missing number is met elsewhere.
    """
    for key, most in MOST.items():
        if key in case and not _is_size(case[key], most):
            raise _refused({key: case[key]}, f"must be a whole number in 1..{most}")
    for key, (length, most) in MOST_LISTED.items():
        values = case[key]
        if not isinstance(values, list) or not (1 <= len(values) <= length and all(_is_size(v, most) for v in values)):
            shown = f"{key} of {len(values)} entries" if isinstance(values, list) else f"{key} {values!r}"
            raise _refused(shown, f"must list 1..{length} whole numbers in 1..{most}")
    for key in SWITCHES:
        if type(case[key]) is not bool:
            raise _refused({key: case[key]}, "must be true or false")
    if not isinstance(case["phi"], str) or not PHI.fullmatch(case["phi"]):
        raise InputError("phi", case["phi"], 'must read "N shared" (N in 1..99) or "one a scale"', REMEDY)
    tokens = sum(pn * pn for pn in case["patch_nums"])
    if tokens > MOST_TOKENS:
        raise _refused(f"patch_nums of {tokens} tokens", f"must have at most {MOST_TOKENS}")


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
    """Refuse a network of too many weights. Raises `InputError`."""
    if numbers > MOST_NUMBERS:
        raise _refused(f"{numbers} weights", f"must be at most {MOST_NUMBERS} a network")


def check_batch(images: int, pyramid: ScalePyramid, config: TransformerConfig, downsampling: int) -> None:
    """Refuse a batch whose logits, attention or pixels are too many. Raises `InputError`."""
    side = pyramid.P * downsampling
    numbers = images * max(2 * pyramid.L * config.V, 2 * config.H * pyramid.L**2, 3 * side * side)
    if numbers > MOST_NUMBERS:
        rule = f"must make tensors of at most {MOST_NUMBERS} numbers, not {numbers}"
        raise InputError("images", images, rule, REMEDY)
