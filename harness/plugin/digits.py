"""The settings of the covering design on the shipped digits, as cases with names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from harness.models.pair import CLOSE, ModelPair, load_digits
from harness.protocol.decoder import Settings
from harness.runs.cover import covering

# Few that between them draft short and long, mostly wrong and mostly right, with a bonus scale and without.
USUAL = ("digits[own-1]", "digits[close-2]", "digits[close-5]", "digits[close-10+bonus]")


@dataclass(frozen=True)
class DigitsCase:
    """One setting on the shipped digits.

    Args:
        name: of the item.
        settings: the decoder's.
        draft_noise: of the draft; None = the pair's own.
    """

    name: str
    settings: Settings
    draft_noise: float | None = None

    @property
    def may_be_refused(self) -> bool:
        """Schedules, rules and a bonus scale are not for every decoder; a plain draft length is."""
        return self.settings.bonus or not isinstance(self.settings.draft_len, int)


@cache
def pair(device: str = "cpu") -> ModelPair:
    """Return the shipped pair on a device; loaded once a process."""
    return load_digits().to(torch.device(device))


@cache
def design() -> dict[str, DigitsCase]:
    """Return the cases of the covering design, by name."""
    found = {}
    for block, (word, noise) in zip(covering(pair()), (("own", None), ("close", CLOSE)), strict=True):
        for setting in block.settings:
            name = f"digits[{word}-{setting.draft_len}{'+bonus' if setting.bonus else ''}]"
            found[name] = DigitsCase(name, setting, noise)
    return found
