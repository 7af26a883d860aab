"""Tables for a terminal of any width, and in pages of Markdown.

Promise: no number and no name is ever cut. Where a row has no room, its first column goes on a line of its own; where
it still has none, columns are left out, the least important first, and named below; what may not be left out is
stacked as `name value` pairs. Prose is broken between words alone.
"""

import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.wording import spelled

LEAST_PROSE = 32  # columns; prose with less room stands below its row
NOTHING = ("", "-")
HEAD_LINES = 2  # of a header, where there is room
GAP, INDENT = "  ", "  "
TABLES = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Column:
    head: str  # words that stand above it, with the unit; broken between words
    spare: int = 0  # 0 = it is always shown; the largest is left out first
    right: bool = True  # numbers stand on the right, names on the left
    prose: bool = False  # text of any length: broken between words, below its row where it has little room


def name_column(head: str) -> Column:
    return Column(head, right=False)


def prose_column(head: str) -> Column:
    return Column(head, right=False, prose=True)


def columns_of(table: str) -> tuple[Column, ...]:
    return tuple(Column(**values) for values in TABLES[table]["columns"])


def print_table(console: Console, title: str, columns: Sequence[Column], rows: Rows) -> None:
    """Print a table as wide as the console at most; nothing where there are no rows."""
    if rows:
        kind = console.encoding
        spelled_columns = [replace(column, head=spelled(column.head, kind)) for column in columns]
        cells = [[spelled(cell, kind) for cell in row] for row in rows]
        lines = table_lines(spelled(title, kind), spelled_columns, cells, console.width)
        console.print(Text("\n".join([*lines, ""])), soft_wrap=True)


def table_lines(title: str, columns: Sequence[Column], rows: Rows, width: int) -> list[str]:
    """Return the lines of a table, whose first column names the row, in a terminal of so many columns."""
    shown = [k for k, column in enumerate(columns) if not column.prose]
    below = [k for k, column in enumerate(columns) if column.prose]
    # prose stands beside its row where it has room
    longest = [cell_len(text) for k in below for text in (columns[k].head, *(row[k] for row in rows))]
    least = min(LEAST_PROSE, max(longest, default=0))
    taken = _total([_width(columns[k], [row[k] for row in rows]) for k in shown]) + len(GAP)
    beside = below.pop() if len(below) == 1 and taken + least <= width else -1
    left_out: list[str] = []
    head = wrapped(title, width) if title else []
    while True:
        for lead in (-1, shown[0]):
            grid = shown if lead < 0 else shown[1:]
            widths = [_width(columns[k], [row[k] for row in rows]) for k in grid]
            used = _total(widths) + (len(INDENT) if lead >= 0 else 0)
            if used <= width and (grid or lead < 0):
                room = width - used - (len(GAP) + least if beside >= 0 else 0)
                widths = _with_flat_heads([columns[k] for k in grid], widths, room)
                lines = _Grid(columns, grid, widths, lead, beside, below).lines(rows, width)
                return head + lines + _note(left_out, width)
        spare = max(columns[k].spare for k in shown)
        if not spare:
            return head + _listed(columns, rows, shown + below, width) + _note(left_out, width)
        gone = [k for k in shown if columns[k].spare == spare][-1]
        shown.remove(gone)
        left_out.insert(0, columns[gone].head)


def wrapped(text: str, width: int, indent: str = INDENT) -> list[str]:
    """Break a text between words; later lines are indented. A word that is too long is left whole."""
    lines = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _width(column: Column, cells: Sequence[str]) -> int:
    """Return the room that a column needs: its longest cell, or word of its header."""
    return max([*map(cell_len, cells), *map(len, column.head.split(" "))])


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _with_flat_heads(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """Return widths that spend room on headers of more than `HEAD_LINES`."""
    widths = list(widths)
    while room > 0:
        heights = [len(wrapped(column.head, width, "")) for column, width in zip(columns, widths, strict=True)]
        tallest = heights.index(max(heights))
        if heights[tallest] <= HEAD_LINES:
            break
        widths[tallest] += 1
        room -= 1
    return widths


@dataclass(frozen=True)
class _Grid:
    columns: Sequence[Column]  # all of the table
    grid: list[int]  # indices of those side by side
    widths: list[int]  # theirs
    lead: int  # the column on a line of its own above them; -1 = none is
    beside: int  # the column of prose on their right; -1 = none is
    below: list[int]  # the columns of prose below them

    def lines(self, rows: Rows, width: int) -> list[str]:
        columns, indent = self.columns, INDENT if self.lead >= 0 else ""
        heads = [wrapped(columns[k].head, w, "") for k, w in zip(self.grid, self.widths, strict=True)]
        used = len(indent) + _total(self.widths) + len(GAP)
        heads += [[columns[self.beside].head]] if self.beside >= 0 else []
        height = max(map(len, heads))
        heads = [[""] * (height - len(head)) + head for head in heads]
        lines = [columns[self.lead].head] if self.lead >= 0 else []
        lines += [indent + self._joined(cells) for cells in zip(*heads, strict=True)]
        lines.append("─" * (width if self.beside >= 0 or self.below else max(used - len(GAP), *map(cell_len, lines))))
        for row in rows:
            texts = wrapped(row[self.beside], width - used, "") if self.beside >= 0 else []
            lines += wrapped(row[self.lead], width) if self.lead >= 0 else []
            lines.append(indent + self._joined([*(row[k] for k in self.grid), *texts[:1]]))
            lines += [" " * used + text for text in texts[1:]]
            for k in self.below:
                lines += _prose_lines(columns[k].head, row[k], width)
        return [line.rstrip() for line in lines]

    def _joined(self, cells: Sequence[str]) -> str:
        """Return one line of cells; what is more than the grid holds follows as it is."""
        padded = []
        for k, width, cell in zip(self.grid, self.widths, cells, strict=False):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if self.columns[k].right else cell + space)
        return GAP.join([*padded, *cells[len(self.grid) :]])


def _prose_lines(head: str, text: str, width: int) -> list[str]:
    """Return prose below its row; nothing where there is none."""
    return [] if text in NOTHING else wrapped(f"{INDENT}{head}: {text}", width, INDENT * 2)


def _listed(columns: Sequence[Column], rows: Rows, shown: list[int], width: int) -> list[str]:
    """Return the rows as a name and `head value` pairs below it, as many on a line as have room."""
    lines = [columns[shown[0]].head, "─" * width]
    for row in rows:
        lines += wrapped(row[shown[0]], width)
        line = ""
        for k in shown[1:]:
            pair = f"{columns[k].head} {row[k]}"
            if line and (columns[k].prose or cell_len(f"{INDENT}{line} · {pair}") > width):
                lines.append(INDENT + line)
                line = ""
            if columns[k].prose:
                lines += _prose_lines(columns[k].head, row[k], width)
            else:
                line = f"{line} · {pair}" if line else pair
        lines += [INDENT + line] if line else []
    return lines


def _note(left_out: list[str], width: int) -> list[str]:
    return wrapped(f"no room for: {', '.join(left_out)}; a wider terminal or a pipe has it", width) if left_out else []
