"""What holds for every test."""

from __future__ import annotations

import torch

# The package may not be installed where its tests run; where it is, this is the plugin that pytest has loaded already.
pytest_plugins = ("harness.plugin.hooks",)

# xdist already uses every core; more threads than cores only wait for each other (measured: 275 s against 37 s).
torch.set_num_threads(1)
