"""Stand-in for the published `dist`: which device a module's generator lives on."""

import torch


def get_device():
    """Return the device that building chooses, not that of the weights."""
    return "cuda" if torch.cuda.is_available() else "cpu"
