"""What a stored result was made with. Promise: nothing heavy is imported to say it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from harness.version import __version__

if TYPE_CHECKING:
    import torch


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    numbers = {name: _version(name) for name in ("torch", "numpy")}
    return {"harness": __version__, "python": platform.python_version(), **numbers}


def _version(name: str) -> str:
    """Return a package's version: its own word where it is imported, else that of its metadata."""
    return str(sys.modules[name].__version__) if name in sys.modules else metadata.version(name)


def device_name(device: torch.device) -> str:
    """Return the name of a device's model, or its class where it has none, e.g. cpu."""
    if device.type != "cuda":
        return device.type
    import torch  # noqa: PLC0415  # `--version` needs none

    return torch.cuda.get_device_name(device)
