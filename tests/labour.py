"""Work for workers that do not live long: found by name in their processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError


@dataclass(frozen=True)
class Squares:
    """Square numbers; some of them cost the worker its life.

    Args:
        folder: where deaths are counted.
        deadly: number -> how often it kills its worker before it is answered.
        dies_open: the worker dies before it is ready.
    """

    folder: Path
    deadly: dict[int, int]
    dies_open: bool = False

    def open(self) -> Squaring:
        if self.dies_open:
            os.kill(os.getpid(), signal.SIGKILL)
        return Squaring(self)


class Squaring:
    def __init__(self, work: Squares) -> None:
        self.work = work
        self.about: dict[str, Any] = {"pid": os.getpid()}

    def do(self, number: int) -> tuple[int, int]:
        if number < 0:
            raise InputError("number", number, "must be 0 or more", "pass 0")
        deaths = self.work.folder / str(number)
        died = len(deaths.read_text()) if deaths.exists() else 0
        if died < self.work.deadly.get(number, 0):
            deaths.write_text("x" * (died + 1))
            if number % 2:
                raise MemoryError("no room for squares")
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, os.getpid()

    def close(self) -> None:
        pass
