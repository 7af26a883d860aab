"""What a page of the documentation is made of: parts between markers, and pictures as SVG.

The same rows give the same bytes under one version of matplotlib.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from harness.errors import InputError

DOCS = Path(__file__).parents[1] / "docs"
SIZE = (9.0, 5.0)


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "sdvar-harness", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def replaced_parts(page: Path, parts: Mapping[str, str]) -> str:
    """Return the page with every part between its markers. Raises `InputError` for a page without any."""
    try:
        text = page.read_text() if page.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("into", str(page), f"cannot be read ({error})", "pass a Markdown file") from None
    replaced = False
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if opened and closed:
            replaced, text = True, f"{before}{begin}{part}{end}{after}"
    if not replaced:
        name = next(iter(parts))
        rule = f"must hold the lines <!-- {name}: begin --> and <!-- {name}: end -->"
        raise InputError("into", str(page), rule, "add them")
    return text


def table(head: str, lines: Sequence[str]) -> str:
    """Return a table of Markdown; columns that end in a colon stand on the right."""
    heads = head.split("|")
    marks = "|".join("---:" if each.endswith(":") else "---" for each in heads)
    return "\n".join((f"| {' | '.join(each.strip(' :') for each in heads)} |", f"|{marks}|", *lines, ""))


def line(*cells: object) -> str:
    """Return a line of a table, and print it."""
    said = f"| {' | '.join(str(cell) for cell in cells)} |"
    print(said, flush=True)
    return said
