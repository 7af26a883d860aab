"""The path of a decode in docs/architecture.md is the one that a verification takes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness import Request, Settings, Terms, Verdict, verify
from tests.helpers import Layout, tiny

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def on_the_page(text: str) -> list[str]:
    """Return the functions of the list, in order."""
    section = text.split("## The path of a decode")[1].split("\n**`", maxsplit=1)[0]
    return re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE)


def called() -> list[str]:
    """Return the package's functions in the order of their first calls, of a verification that meets a wrong token."""
    models, names = tiny(Layout((1, 2, 3))), dict[str, None]()

    def record(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("harness."):
            names[f"{module.removeprefix('harness.').replace('._', '.')}.{frame.f_code.co_qualname}"] = None

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        result = verify(models, "tests.doors:wrong_token", Settings(2), Request((0, 1)), terms=Terms(in_process=True))
        assert result.verdict is Verdict.DEFECT
    finally:
        sys.setprofile(before)
    return list(names)


def in_order(wanted: list[str], names: list[str]) -> list[str]:
    """Return what is called before its predecessor on the page, or never."""
    places = [names.index(name) if name in names else -1 for name in wanted]
    return [name for k, name in enumerate(wanted) if places[k] <= max(places[:k], default=-1)]


def test_the_path_is_the_one_that_is_taken():
    wanted = on_the_page(PAGE.read_text())
    assert len(wanted) >= 15
    # the oracle runs for the first time when the budget is measured, before any decode
    names = [name for name in called() if name != "reference.sequential.sample_sequential"]
    assert in_order([name for name in wanted if name != "reference.sequential.sample_sequential"], names) == []


@pytest.mark.parametrize("swap", [(0, 1), (6, 7)])
def test_another_order_is_seen(swap: tuple[int, int]):
    wanted = on_the_page(PAGE.read_text())
    a, b = swap
    wanted[a], wanted[b] = wanted[b], wanted[a]
    assert in_order(wanted, on_the_page(PAGE.read_text())) != []
