"""Cases side by side. Promise: a case is computed by one thread, so its bits do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_case_a_core(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Give every core a case of its own; on CUDA one at a time.

    The passes of one small case are too short to be shared out: on two busy cores the recorded cases took 274 s of
    processor time with two threads a case, 78 s with one.

    Effects: process-wide, PyTorch computes with one thread meanwhile.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores if device.type == "cpu" else 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)
