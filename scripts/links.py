"""See that every link of README and docs leads somewhere: to a file of this repository, and to a heading in it.

    python scripts/links.py [FOLDER-OF-HTML]

Promise: links to other sites are left alone, since nobody here can ask them; with a folder, its pages are seen, too.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def broken_in_pages(root: Path = ROOT) -> list[str]:
    """List the links of Markdown pages that lead nowhere."""
    found = []
    for page in sorted((*root.glob("*.md"), *(root / "docs").rglob("*.md"))):
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            target = link[0] or link[1]
            if not re.match(r"[a-z]+:", target) and not _leads(page, target):
                found.append(f"{page.relative_to(root)}: {target}")
    return found


def _leads(page: Path, target: str) -> bool:
    path, _, heading = target.partition("#")
    there = (page.parent / unquote(path)).resolve() if path else page
    return there.exists() and (not heading or there.suffix != ".md" or heading in headings(there))


@cache
def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", line).lower() for line in lines)
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in plain}


class Page(HTMLParser):
    """The anchors and links of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what an element brings."""
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}  # type: ignore[misc]
        self.links += [values["href"]] if tag == "a" and values.get("href") else []  # type: ignore[list-item]


def broken_in_html(folder: Path) -> list[str]:
    """List the links of HTML pages that lead nowhere."""
    pages = {path.resolve(): Page(path.read_text()) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            there = (path.parent / unquote(target)).resolve() if target else path
            if re.match(r"[a-z]+:", link) or (there in pages and (not anchor or unquote(anchor) in pages[there].ids)):
                continue
            if not (there.exists() and there not in pages):
                found.append(f"{path.name}: {link}")
    return found


if __name__ == "__main__":
    broken = broken_in_pages() + (broken_in_html(Path(sys.argv[1])) if len(sys.argv) > 1 else [])
    print("\n".join(broken) or "every link leads somewhere")
    sys.exit(bool(broken))
