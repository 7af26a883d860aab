"""What a stored result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy
import torch


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    return {
        "harness": _own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _own_version() -> str:
    try:
        return version("sdvar-harness")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "not installed"
