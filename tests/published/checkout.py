"""Stand-in checkouts with the published interface, written from the interface page alone.

As it stands a checkout is right; `make` writes one with mistakes behind its switches.
"""

from __future__ import annotations

import shutil
from pathlib import Path

HERE = Path(__file__).parent


def make(folder: Path, kind: str, *mistakes: str) -> Path:
    """Write a checkout of `kind` (var, code, sdvar, infinity) into a folder of its own; return it."""
    checkout = folder / "-".join((kind, *mistakes))
    if not checkout.exists():
        ignore = shutil.ignore_patterns("__pycache__")
        if kind != "infinity":
            shutil.copytree(HERE / "common", checkout, ignore=ignore)
        shutil.copytree(HERE / kind, checkout, ignore=ignore, dirs_exist_ok=True)
        switches = f"ON = frozenset({sorted(mistakes)!r})\n"
        package = "infinity" if kind == "infinity" else "models"
        (checkout / package / "switches.py").write_text(f'"""Which mistakes this checkout holds."""\n\n{switches}')
    return checkout


def edited(folder: Path, kind: str, *edits: tuple[str, str], of: str = "models/var.py") -> Path:
    """Write a checkout of `kind` with pieces of one file put otherwise; return it."""
    checkout = make(folder, kind)
    text = (checkout / of).read_text()
    for before, after in edits:
        assert before in text, before
        text = text.replace(before, after)
    (checkout / of).write_text(text)
    return checkout
