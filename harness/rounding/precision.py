"""What may make a device inexact or a repeat differ: switched off unless asked for, and stated in every result.

Promise: after `set_precision(False)` float32 means float32 on every device, and a repeat gives the same bits.
"""

from __future__ import annotations

import torch


def set_precision(tf32: bool) -> dict[str, bool]:
    """Switch TF32 on or off, non-deterministic convolution kernels off.

    Args:
        tf32: allow CUDA to round the operands of float32 products to 10 bits of mantissa.

    Returns:
        What is on and off; see `precision`.

    Effects: process-wide PyTorch settings; PyTorch itself allows TF32 in convolutions by default.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return precision()


def precision() -> dict[str, bool]:
    """Return the process-wide settings that decide how exact and how repeatable a run is."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "deterministic_convolution": torch.backends.cudnn.deterministic,
    }
