"""What a page is: a headline, sections, and a few kinds of parts; and how it becomes one file.

A part is a paragraph (a `str`), a `list` of pictures, or one of the records here and in `gallery`, which the template
knows by their names.

Promise: the file needs nothing else, no script and no network; whatever text comes from a user or a decoder is text
there, never markup; no information is in colour alone.
"""

import shlex
import sys
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from harness import wording
from harness.decoders import OWN_DECODER
from harness.errors import check_installed, shortened
from harness.judge import Verdict
from harness.provenance import versions
from harness.rounding import precision
from harness.runs import code_of

MOST_TEXT = 4000  # characters of one text: the message of somebody else's crash may have any length
number = partial(wording.number, none="–")
counted = partial(wording.count_of, form=",")  # `1,200 images`
date_of = wording.date_of
TONES = {"good": "✓", "bad": "✕", "open": "?"}  # what a headline wears besides its colour


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


WORDS: dict[str, dict[str, str]] = _read("words.toml")
PAGES = _read("pages.toml")
MEANS, VERDICTS, COMPARED, COMPONENTS = (WORDS[name] for name in ("contracts", "verdicts", "compared", "components"))
TONE = dict.fromkeys(Verdict, "good") | {Verdict.DEFECT: "bad", Verdict.INCONCLUSIVE: "open"}
MARKS: dict[str, tuple[str, str, str]] = {mark: tuple(words) for mark, words in PAGES["marks"].items()}


@dataclass(frozen=True)
class Line:
    """A command line, or other text to be copied, with what it is for."""

    text: str
    label: str


class Text(Line):
    """Lines as a program printed them, with what they are."""


@dataclass(frozen=True)
class Bullets:
    """A list: (word, explanation)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Numbers that matter most: (what, number, what it means)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class State:
    """What a cell that is a letter and a colour says: class of the style, letter, and the letter's meaning."""

    name: str
    letter: str
    word: str


@dataclass(frozen=True)
class Sheet:
    caption: str  # what it shows
    head: Sequence[str]  # of the columns
    rows: Sequence[Sequence[str | State]]  # as many cells as columns
    texts: int = 1  # how many columns, from the first one on, hold words; the others hold numbers
    bad: Collection[int] = ()  # indices of rows that tell of something wrong; their first cell must say so, too
    kind: str = ""  # "grid" where states make a picture of it, "grid upright" where their heads are words on end

    @property
    def is_wide(self) -> bool:
        """Whether a phone has no room for its columns, and shows a card a row."""
        return not self.kind and (len(self.head) > 4 or self.texts > 2)

    def without(self, heads: Collection[str]) -> Self:
        """Return the table without columns of numbers, or of words but the first, that have these heads."""
        kept = [k for k, head in enumerate(self.head) if head not in heads]
        rows = [[row[k] for k in kept] for row in self.rows]
        return replace(self, head=[self.head[k] for k in kept], rows=rows, texts=sum(k < self.texts for k in kept))

    def filled(self) -> Self:
        """Return the table without columns that hold nothing but dashes."""
        return self.without([head for k, head in enumerate(self.head) if all(row[k] == "–" for row in self.rows)])


@dataclass(frozen=True)
class Drawing:
    """A picture: its kind, SVG markup of `plots`, what it shows in words, and its numbers where no other table has."""

    kind: str
    svg: str
    caption: str
    sheet: Sheet | None = None


@dataclass(frozen=True)
class Fold:
    """Parts that are shown when they are asked for."""

    summary: str
    parts: Sequence[object]


@dataclass(frozen=True)
class Section:
    """A headed part of a page: `id` is its anchor, `lead` says for a newcomer what is to be seen."""

    id: str
    title: str
    lead: str
    parts: Sequence[object]


def sections_of(page: str, words: Mapping[str, object], /, **parts: Sequence[object]) -> list[Section]:
    """Return the sections of a page of pages.toml, with their parts by id; `words` fill its braces."""
    return [
        Section(name, title.format(**words), lead.format(**words), parts[name])
        for name, (title, lead) in PAGES["sections"][page].items()
    ]


def sheet_of(table: str, rows: Sequence[Sequence[str]], bad: Collection[int] = (), /, **words: object) -> Sheet:
    """Return a table of pages.toml with its rows, those wrong at `bad`; `words` fill its braces."""
    known = PAGES["sheets"][table]
    head = [text.format(**words) for text in known["head"]]
    return Sheet(known["caption"].format(**words), head, rows, known.get("texts", 1), bad)


def check_page(path: Path | None, name: str = "html") -> None:
    """Refuse a page where nothing makes one. Raises `InputError`."""
    for library in ("Jinja2", "matplotlib"):
        if path is not None:
            check_installed(library.lower(), "report", name, str(path), f"is made by {library}")


@dataclass(frozen=True)
class Made:
    """What a page is of: when that was done, by which command, on which code."""

    date: str
    command: str  # empty where no command line did it
    code: str  # its name and commit

    @classmethod
    def here(cls) -> Self:
        program = "sdvar-harness" if Path(sys.argv[0]).stem in ("__main__", "sdvar-harness") else Path(sys.argv[0]).name
        code = code_of(OWN_DECODER).title.replace(OWN_DECODER, f"sdvar-harness {versions()['harness']}")
        return cls(date_of(time.time()), shlex.join([program, *sys.argv[1:]]), code)


@dataclass(frozen=True)
class Head:
    """What stands above the sections of a page."""

    title: str  # what the page is of
    word: str  # the verdict
    tone: str  # one of `TONES`
    headline: str  # the verdict in a sentence
    notes: Sequence[str] = ()  # which qualify it: interrupted, unverified
    parts: Sequence[object] = ()  # what a reader wants first
    made: Made | None = None  # None = by this process, now


def as_html(head: Head, sections: Sequence[Section]) -> bytes:
    """Return a page as one HTML file, UTF-8; sections without parts are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # asked for where a page is made

    loader = PackageLoader("harness.report.html")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=printable, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = templates.get_template("page.html.j2").render(
        head=head, made=head.made or Made.here(), mark=TONES[head.tone], versions=versions(),
        sections=[each for each in sections if each.parts], style=loader.get_source(templates, "style.css")[0],
    )  # fmt: skip
    return text.encode(errors="backslashreplace")


def printable(value: object) -> object:
    """Return a text without what no page can show: control characters and halves of surrogate pairs are spelled out."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = shortened(value, MOST_TEXT)
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def share(part: float, whole: float) -> str:
    """Return a percentage; a dash of nothing, and never 0 % or 100 % of what is not none or all."""
    if not whole:
        return "–"
    if 0 < part < whole:
        return f"{min(99.99, max(0.01, 100 * part / whole)):.4g} %"
    return "100 %" if part else "0 %"


def size(count: int) -> str:
    """Return a number of bytes in words; a dash of none."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} B" if count else "–"


def origin(text: str) -> Section:
    """Return the last section of a page of what was done just now: a paragraph, versions and precision."""
    rows = flat_rows({"versions": versions(), "precision": precision()})
    return Section("provenance", "Provenance", "", [text, sheet_of("made", rows)])


def flat_rows(values: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows of a name and a text; what is empty is left out."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat_rows(value, f"{before}{name} ")
        elif value not in ("", None):
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            rows.append((f"{before}{name}".replace("_", " "), text))
    return rows
