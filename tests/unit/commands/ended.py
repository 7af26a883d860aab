"""The one line that a command ends with, and a recording whose sizes are odd."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from tests.helpers import recorded


def the_line(err: str) -> str:
    """Return what stderr holds: one line without control characters, of at most 500 characters."""
    assert err.endswith("\n")
    line = err[:-1]
    assert line.isprintable()
    assert len(line) <= 500
    return line


def recording(path: Path, changes: dict[str, object]) -> None:
    """Write one case of a recording of other sizes than it has."""
    tensors, metadata = recorded("variants-cpu")
    case = next(case for case in json.loads(metadata["cases"]) if case["id"] == "shared-adaln-0")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("shared-adaln-0/")}
    save_file(kept, path, {**metadata, "cases": json.dumps([{**case, **changes}])})
