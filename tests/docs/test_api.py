"""The API reference is what the docstrings say today, and every public name is in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import harness
from harness import laws
from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "api"


def test_the_pages_are_what_the_docstrings_say():
    code = "import json, api; print(json.dumps(api.pages()))"
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'scripts'); {code}"]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = json.loads(made)
    assert pages.keys() == {path.name for path in FOLDER.glob("*")}
    stale = [name for name, text in pages.items() if (FOLDER / name).read_text() != text]
    assert stale == [], f"docs/api/{', '.join(stale)}: run python scripts/api.py"


@pytest.mark.parametrize("module", [harness, laws], ids=lambda module: module.__name__)
def test_every_public_name_has_an_entry_with_words(module):
    text = (FOLDER / f"{module.__name__}.md").read_text()
    entries = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert entries.keys() == {name for name in module.__all__ if not name.startswith("__")}
    assert [name for name, part in entries.items() if len(part.rpartition("```")[2].strip() or part) < 20] == []


def test_a_fields_unit_stands_beside_it():
    text = (FOLDER / "harness.md").read_text()
    entry = text.partition("\n## Verification\n")[2].partition("\n## ")[0]
    assert "    wall_seconds: float = 0.0  # from the first task to the last\n" in entry
