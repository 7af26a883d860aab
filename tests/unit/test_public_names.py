"""The package's face: every public name is there, where type checkers find it, and nothing is imported for the rest."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import harness

FACE = Path(harness.__file__)


def test_every_public_name_is_there():
    assert all(getattr(harness, name) is not None for name in harness.__all__)
    assert set(harness.__all__) <= set(dir(harness))
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'nothing'"):
        _ = harness.nothing


def test_type_checkers_find_each_name_where_it_lives():
    ifs = [node for node in ast.parse(FACE.read_text()).body if isinstance(node, ast.If)]
    block = next(node for node in ifs if ast.unparse(node.test) == "TYPE_CHECKING")
    declared = {
        node.module.removeprefix("harness."): tuple(alias.name for alias in node.names)
        for node in block.body if isinstance(node, ast.ImportFrom)
    }  # fmt: skip
    assert declared == harness._HOMES
    assert sorted([*(name for names in declared.values() for name in names), "__version__"]) == harness.__all__


def test_importing_the_package_imports_nothing_heavy():
    said = "import sys, harness; print({'torch', 'numpy', 'rich'} & set(sys.modules), harness.__version__)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == f"set() {harness.__version__}\n"
