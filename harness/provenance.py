"""What a stored result was made with. Promise: nothing heavy is imported to say it, and nothing of it is executed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from harness.version import __version__

if TYPE_CHECKING:
    import torch


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    numbers = {  # its own word where a package is imported, else that of its metadata
        name: str(sys.modules[name].__version__) if name in sys.modules else metadata.version(name)
        for name in ("torch", "numpy")
    }
    return {"harness": __version__, "python": platform.python_version(), **numbers}


def device_name(device: torch.device) -> str:
    """Return the name of a device's model, or its class where it has none, e.g. cpu."""
    if device.type != "cuda":
        return device.type
    import torch  # noqa: PLC0415  # `--version` needs none

    return torch.cuda.get_device_name(device)


GIT_S = 10.0
# A repository's own configuration may name programs: hooks, a watcher of files, filters of their content, what fetches.
PLAIN_GIT = ("git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "core.pager=cat")
QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_EXTERNAL_DIFF": ""}


def git_says(folder: Path, *words: str) -> str:
    """Return what git says of a folder, executing nothing of its own. Raises `OSError` or `SubprocessError`."""
    environment = {**os.environ, **QUIET}

    def said(*more: str) -> str:
        command = [*PLAIN_GIT, "-C", str(folder), *more]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_S, env=environment)
        return done.stdout.strip()

    try:
        pattern = r"^filter\..*\.(clean|smudge|process|required)$"
        filters = said("config", "--name-only", "--get-regexp", pattern).split("\n")
    except subprocess.CalledProcessError:  # there are none
        filters = []
    off = [word for name in filters for word in ("-c", f"{name}={'false' * name.endswith('.required')}")]
    return said(*off, *words)
