"""What tests ask of a page, read with Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "line", "input", "link", "hr"}
SECTIONS = (
    "images", "story", "result", "worst", "tokens", "compared", "scales", "rounds", "cost", "budget", "provenance",
)  # fmt: skip


class Reader(HTMLParser):
    """Every element, the text, and what is not closed.

    Args:
        page: a whole file.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def read(page: bytes) -> Reader:
    """Read a page and require what holds for every one: see the assertions."""
    reader = Reader(page)
    tags = [tag for tag, _ in reader.elements]
    assert not (reader.wrong or reader.open), (reader.wrong, reader.open)
    assert page.startswith(b"<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(tags)
    for tag, attributes in reader.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith(("#", "data:image/")), (tag, value)
    assert "url(http" not in page.decode()
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.elements:
        for name in ("href", "xlink:href", "aria-labelledby"):
            target = attributes.get(name, "").removeprefix("#")
            assert not target or target.startswith("data:") or target in ids, target
    assert all(image["alt"] for image in reader.all("img"))
    assert tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in pairwise(levels)), levels
    assert all("scope" in head for head in reader.all("th"))
    assert tags.count("caption") == tags.count("table")
    return reader
