"""The settings of the covering design on the shipped digits, as cases with names; and which are known to fail.

Promise: every name in the file of known failures is a law or a case of this version, and has a reason.
"""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from harness.errors import InputError, text_of
from harness.files import check_readable
from harness.laws import LAWS
from harness.models import CLOSE_NOISE, ModelPair, load_digits
from harness.protocol import Settings
from harness.runs import covering

# Few that between them draft short and long, mostly wrong and mostly right, with a bonus scale and without.
USUAL = ("digits[own-1]", "digits[close-2]", "digits[close-5]", "digits[close-10+bonus]")


@dataclass(frozen=True)
class DigitsCase:
    """One setting on the shipped digits."""

    name: str  # of the item
    settings: Settings  # the decoder's
    draft_noise: float | None = None  # of the draft; None = the pair's own


@cache
def pair(device: str = "cpu") -> ModelPair:
    return load_digits().to(torch.device(device))


@cache
def design() -> dict[str, DigitsCase]:
    cases = {}
    for block, (word, noise) in zip(covering(pair()), (("own", None), ("close", CLOSE_NOISE)), strict=True):
        for setting in block.settings:
            name = f"digits[{word}-{setting.draft_len}{'+bonus' if setting.bonus else ''}]"
            cases[name] = DigitsCase(name, setting, noise)
    return cases


NAME = "sdvar-known-failures"
EXAMPLE = 'write "masks.future" = "why it fails"'


def read_known(path: Path) -> dict[str, str]:
    """Return law or case -> reason, of a TOML file of one flat table. Raises `InputError`."""
    check_readable(path, NAME, "pass a TOML file")
    try:
        reasons = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not UTF-8 is a ValueError, too
        raise InputError(NAME, str(path), f"is no TOML ({text_of(error)})", EXAMPLE) from None
    names = {law.id for law in LAWS} | set(design())
    for name, reason in reasons.items():
        if isinstance(reason, dict):
            raise InputError(NAME, f"{path}: {name}", "is a table, or a name without quotes", EXAMPLE)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]}?" if near else "see pytest --collect-only"
            raise InputError(NAME, f"{path}: {name}", "is no law and no case", remedy)
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(NAME, f"{path}: {name}", "needs a reason", EXAMPLE)
    return reasons
