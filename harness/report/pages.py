"""Tables in Markdown pages. Promise: what stands between a part's markers is replaced, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.errors import InputError


def replaced(page: Path, parts: Mapping[str, str]) -> str:
    """Return the page with every part between its markers. Raises `InputError` for a page without any."""
    try:
        text = page.read_text() if page.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("into", str(page), f"cannot be read ({error})", "pass a Markdown file") from None
    names = []
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if found and closed:
            names.append(name)
            text = f"{before}{begin}{part}{end}{after}"
    if not names:
        rule = "must hold the lines <!-- scoreboard: begin --> and <!-- scoreboard: end -->, or those of speed"
        raise InputError("into", str(page), rule, "add them")
    return text
