"""What a stored result was made with."""

from __future__ import annotations

import platform

import numpy
import torch

from harness.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    return {
        "harness": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
