"""Links of README and docs lead somewhere, and those that do not are seen."""

from __future__ import annotations

from pathlib import Path

from scripts.links import broken_in_html, broken_in_pages


def test_every_link_leads_somewhere():
    assert broken_in_pages() == []


def test_links_that_lead_nowhere_are_seen(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A heading: `x`, too\n")
    (tmp_path / "README.md").write_text(
        "[a](docs/a.md) [b](docs/a.md#a-heading-x-too) [c](docs/b.md) [d](docs/a.md#b) [e](#f) [g](https://x.y)\n"
        "```\n[h](nowhere)\n```\n"
    )
    assert broken_in_pages(tmp_path) == ["README.md: docs/b.md", "README.md: docs/a.md#b", "README.md: #f"]


def test_so_are_those_of_html(tmp_path: Path):
    (tmp_path / "a.html").write_text('<h1 id="x">x</h1><a href="#x">1</a><a href="b.html">2</a><a href="#y">3</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#x">1</a><a href="a.html#z">2</a><a href="c.html">3</a>')
    assert sorted(broken_in_html(tmp_path)) == ["a.html: #y", "b.html: a.html#z", "b.html: c.html"]
