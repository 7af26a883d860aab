"""A recording that can be tampered with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

NAMES = ("shared-adaln-0", "shared-adaln-5", "shared-adaln-6", "no-l2norm-0", "no-l2norm-5")
PLAIN, FILTERED, SMOOTH, OTHER, SHORT = NAMES


@dataclass
class Content:
    """A recording that can be tampered with."""

    tensors: dict[str, Tensor]
    cases: list[dict[str, Any]]
    metadata: dict[str, str]

    def save(self, path: Path) -> Path:
        save_file(self.tensors, path, {**self.metadata, "cases": json.dumps(self.cases)})
        return path

    def swap(self, a: str, b: str) -> None:
        for name in [name.removeprefix(f"{a}/") for name in self.tensors if name.startswith(f"{a}/")]:
            one, other = f"{a}/{name}", f"{b}/{name}"
            self.tensors[one], self.tensors[other] = self.tensors[other], self.tensors[one]


def other_token(content: Content) -> None:
    tokens = content.tensors[f"{PLAIN}/tokens"]
    tokens[1, 17] = (tokens[1, 17] + 1) % 32


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ")
    return captured.err
