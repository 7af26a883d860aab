"""The page about the laws lists the laws."""

from __future__ import annotations

import re
from pathlib import Path

from harness.laws import LAWS

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


def test_the_page_lists_every_law_and_no_other():
    listed = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and "." in cells[0]:
            listed[cells[0].strip("`")] = (cells[1], cells[2].replace("`", ""))
    assert listed == {law.id: (law.statement, ", ".join(law.watches)) for law in LAWS}


def test_every_law_has_an_id_of_its_own_a_statement_and_a_docstring():
    assert len({law.id for law in LAWS}) == len(LAWS)
    assert all(law.statement.endswith(".") and law.watches and law.test.__doc__ for law in LAWS)


def test_other_pages_know_how_many_laws_there_are():
    for name in ("commands.md", "glossary.md"):
        counts = re.findall(r"(\d+) (?:laws|held)\b", PAGE.with_name(name).read_text(encoding="utf-8"))
        assert counts, name
        assert set(counts) == {str(len(LAWS))}, name
