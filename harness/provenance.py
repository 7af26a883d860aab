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


def device_name(device: torch.device) -> str:
    """Return the name of a device's model, or its class where it has none, e.g. cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
