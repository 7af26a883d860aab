"""The notebook's cells run, one after the other, and it is kept without outputs."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_the_cells_run_and_their_last_lines_are_worth_showing(capsys: pytest.CaptureFixture[str]):
    """Run the code plainly, as a kernel does: the value of a last expression is what a cell shows."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cell for cell in cells() if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert [page.partition("</strong>")[0].rpartition(">")[2] for page in pages] == ["IDENTICAL", "DEFECT"]
    assert shown[-2][0] == "positions"
    assert shown[-1]["verdict"] == "DEFECT"
    assert "labels" in capsys.readouterr().out


def test_it_is_a_notebook_without_outputs():
    document = json.loads(NOTEBOOK.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
