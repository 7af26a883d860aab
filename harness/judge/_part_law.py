"""What came of a law of one part of a decoder, and how a law says that it is broken.

Promise: laws of the harness's own parts and of published code end in the same record, so that one table shows both.
"""

from dataclasses import dataclass
from enum import StrEnum


class PartVerdict(StrEnum):
    """How a law of a part ended; told is for what is no law, but worth knowing."""

    HELD = "held"
    BROKEN = "BROKEN"
    CRASHED = "CRASHED"
    ABSENT = "not there"
    TOLD = "told"


class Broken(Exception):  # noqa: N818
    """Raised inside a law: what was found, one clause, and the part that it names, if it names one."""

    def __init__(self, found: str, part: str = "") -> None:
        super().__init__(found)
        self.part = part


@dataclass(frozen=True)
class PartLaw:
    """What one law of one part found."""

    part: str  # the method, as the code names it
    law: str  # family and word
    statement: str  # what must hold
    verdict: PartVerdict  # how it ended
    found: str = ""  # what is wrong with the numbers; empty where nothing is


def require(holds: bool, found: str, part: str = "") -> None:
    """Raise `Broken` with what was found, and the part that it names, unless it holds."""
    if not holds:
        raise Broken(found, part)
