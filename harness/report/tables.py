"""Tables for a terminal of any width, and in pages of Markdown.

Promise: no number and no name is ever cut. Where a row has no room, its first column goes on a line of its own; where
it still has none, columns are left out, the least important first, and named below; what may not be left out is
stacked as `name value` pairs. Prose is broken between words alone. In a page what stands between a part's markers is
replaced, and nothing else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.errors import InputError
from harness.wording import spelled

SHY = "\u00ad"  # where the word of a header may be broken
LEAST_PROSE = 32  # columns; prose with less room stands below its row
NOTHING = ("", "-")
HEAD_LINES = 2  # of a header, where there is room
GAP, INDENT = "  ", "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        head: words that stand above it, with the unit; broken between words, and at `SHY`.
        spare: 0 = it is always shown; the largest is left out first.
        right: numbers stand on the right, names on the left.
        prose: text of any length: broken between words, below its row where it has little room.
    """

    head: str
    spare: int = 0
    right: bool = True
    prose: bool = False


def name_column(head: str, spare: int = 0) -> Column:
    """Return a column of names."""
    return Column(head, spare, right=False)


def prose_column(head: str) -> Column:
    """Return a column of prose."""
    return Column(head, right=False, prose=True)


def print_table(console: Console, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the console at most; nothing where there are no rows."""
    if rows:
        kind = console.encoding
        shown = [replace(column, head=_head(column.head, kind)) for column in columns]
        cells = [[spelled(cell, kind) for cell in row] for row in rows]
        lines = table_lines(spelled(title, kind), shown, cells, console.width)
        console.print(Text("\n".join([*lines, ""])), soft_wrap=True)


def table_lines(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table.

    Args:
        title: stands above it; may be empty.
        columns: the first one names the row.
        rows: a cell a column; `-` where there is nothing.
        width: columns of the terminal. A single word that is longer makes its line longer.
    """
    shown = [k for k, column in enumerate(columns) if not column.prose]
    below = [k for k, column in enumerate(columns) if column.prose]
    least = _least(columns, rows, below)
    taken = _total([_width(columns[k], [row[k] for row in rows]) for k in shown], False) + len(GAP)
    beside = below.pop() if len(below) == 1 and taken + least <= width else -1
    left_out: list[str] = []
    head = wrapped(title, width) if title else []
    while True:
        for stacked in (False, True):
            grid = shown[1:] if stacked else shown
            widths = [_width(columns[k], [row[k] for row in rows]) for k in grid]
            if _total(widths, stacked) <= width and not (stacked and not grid):
                room = width - _total(widths, stacked) - (len(GAP) + least) * (beside >= 0)
                widths = _with_flat_heads([columns[k] for k in grid], widths, room)
                lines = _grid(columns, rows, (grid, widths, beside, width), below, shown[0] if stacked else -1)
                return head + lines + _note(left_out, width)
        spare = max(columns[k].spare for k in shown)
        if not spare:
            return head + _listed(columns, rows, shown + below, width) + _note(left_out, width)
        gone = [k for k in shown if columns[k].spare == spare][-1]
        shown.remove(gone)
        left_out.insert(0, columns[gone].head.replace(SHY, ""))


def wrapped(text: str, width: int, indent: str = INDENT) -> list[str]:
    """Break a text between words; later lines are indented. A word that is too long is left whole."""
    made = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return made or [""]


def _head(head: str, encoding: str) -> str:
    """Return a header in an encoding; `SHY` is never printed, so it stays."""
    return SHY.join(spelled(part, encoding) for part in head.split(SHY))


def _least(columns: Sequence[Column], rows: Sequence[Sequence[str]], prose: list[int]) -> int:
    """Return the room that prose needs to stand beside its row."""
    longest = [cell_len(text) for k in prose for text in (columns[k].head, *(row[k] for row in rows))]
    return min(LEAST_PROSE, max(longest, default=0))


def _width(column: Column, cells: Sequence[str]) -> int:
    pieces = [len(piece) + hyphen for word in column.head.split(" ") for piece, hyphen in _pieces(word)]
    return max([*map(cell_len, cells), *pieces])


def _pieces(word: str) -> list[tuple[str, bool]]:
    """Return what the word of a header may be broken into, and whether a hyphen follows."""
    parts = word.split(SHY)
    return [(part, k + 1 < len(parts)) for k, part in enumerate(parts)]


def _total(widths: Sequence[int], stacked: bool) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1) + len(INDENT) * stacked


def _with_flat_heads(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """Return widths that spend room on headers of more than `HEAD_LINES`."""
    widths = list(widths)
    while room > 0:
        heights = [len(_heading(column, width)) for column, width in zip(columns, widths, strict=True)]
        tallest = heights.index(max(heights))
        if heights[tallest] <= HEAD_LINES:
            break
        widths[tallest] += 1
        room -= 1
    return widths


def _heading(column: Column, width: int) -> list[str]:
    """Return the lines of a header."""
    words = []
    for word in column.head.split(" "):
        whole = word.replace(SHY, "")
        words += [whole] if len(whole) <= width else [part + "-" * hyphen for part, hyphen in _pieces(word)]
    return wrapped(" ".join(words), width, "")


def _grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    form: tuple[list[int], list[int], int, int],
    below: list[int],
    lead: int,
) -> list[str]:
    """Return head, rule and rows; `lead` is the column on a line of its own, -1 = none is."""
    grid, widths, beside, width = form
    indent = INDENT if lead >= 0 else ""
    heads = [_heading(columns[k], w) for k, w in zip(grid, widths, strict=True)]
    used = _total(widths, lead >= 0)
    room = width - used - len(GAP)
    if beside >= 0:
        heads.append([columns[beside].head])
    lines = [columns[lead].head] if lead >= 0 else []
    for depth in range(height := max(map(len, heads))):
        cells = [head[depth - height + len(head)] if depth >= height - len(head) else "" for head in heads]
        lines.append(indent + _joined(columns, grid, widths, cells))
    lines.append("─" * (width if beside >= 0 or below else max(used, *map(cell_len, lines))))
    for row in rows:
        texts = wrapped(row[beside], room, "") if beside >= 0 else []
        lines += wrapped(row[lead], width) if lead >= 0 else []
        lines.append(indent + _joined(columns, grid, widths, [*(row[k] for k in grid), *texts[:1]]))
        lines += [" " * (used + len(GAP)) + text for text in texts[1:]]
        for k in below:
            lines += _prose(columns[k].head, row[k], width)
    return [line.rstrip() for line in lines]


def _prose(head: str, text: str, width: int) -> list[str]:
    """Return prose below its row; nothing where there is none."""
    return [] if text in NOTHING else wrapped(f"{INDENT}{head}: {text}", width, INDENT * 2)


def _joined(columns: Sequence[Column], grid: list[int], widths: list[int], cells: list[str]) -> str:
    """Return one line of cells; what is more than the grid holds follows as it is."""
    made = []
    for k, width, cell in zip(grid, widths, cells, strict=False):
        space = " " * (width - cell_len(cell))
        made.append(space + cell if columns[k].right else cell + space)
    return GAP.join([*made, *cells[len(grid) :]])


def _listed(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: list[int], width: int) -> list[str]:
    """Return the rows as a name and `head value` pairs below it, as many on a line as have room."""
    lines = [columns[shown[0]].head, "─" * width]
    for row in rows:
        lines += wrapped(row[shown[0]], width)
        line = ""
        for k in shown[1:]:
            pair = f"{columns[k].head.replace(SHY, '')} {row[k]}"
            if columns[k].prose:
                lines += [INDENT + line] if line else []
                line = ""
                lines += _prose(columns[k].head, row[k], width)
            elif line and cell_len(f"{INDENT}{line} · {pair}") > width:
                lines.append(f"{INDENT}{line}")
                line = pair
            else:
                line = f"{line} · {pair}" if line else pair
        lines += [INDENT + line] if line else []
    return lines


def _note(left_out: list[str], width: int) -> list[str]:
    return wrapped(f"no room for: {', '.join(left_out)}; a wider terminal or a pipe has it", width) if left_out else []


def replaced_parts(page: Path, parts: Mapping[str, str]) -> str:
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
