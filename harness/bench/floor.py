"""The time that no implementation can go below on a machine: bytes over bandwidth, or operations over rate.

Promise: counted from the sizes of a pass and measured on the machine itself, never taken from a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.clock import median_ms
from harness.models.network import Network

COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS = 10
GB, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """What a device can do, in the dtype and mode of a run.

    Args:
        name: of the device.
        bandwidth: bytes a second, read plus written, of a large copy.
        rate: floating-point operations a second of a large matrix product.
    """

    name: str
    bandwidth: float
    rate: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        """Measure a copy of 1 GiB and a product of two 8192×8192 matrices (smaller on a CPU); medians of ten."""
        source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        side = SIDE[device.type]
        # random numbers: products of constants run faster than real ones
        generator = torch.Generator(device=device).manual_seed(0)
        a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        copy_s = median_ms(lambda: target.copy_(source), REPEATS, device) / 1e3
        product_s = median_ms(lambda: torch.mm(a, b, out=out), REPEATS, device) / 1e3
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return cls(name, 2 * len(source) / copy_s, 2 * side**3 / product_s)

    def __str__(self) -> str:
        return f"{self.name}: {self.bandwidth / GB:.0f} GB/s copied, {self.rate / TERA:.1f} TFLOP/s in matrix products"

    def pass_ms(self, network: Network, R: int, begin: int, first: int, last: int) -> float:
        """Return the floor of one pass over scales begin..last of R guidance rows, with logits from `first` on."""
        config, pyramid, width = network.config, network.pyramid, network.dtype.itemsize
        n, end = pyramid.end(last) - pyramid.begin(begin), pyramid.end(last)
        judged = end - pyramid.begin(first)
        blocks, head = config.depth * 12 * config.D**2 + config.C * config.D, config.V * config.D
        # keys and values: those of earlier scales are read, those of the pass written and read
        moved = (blocks + head) * width + 2 * R * config.depth * config.D * (end + n) * width
        moved += R * judged * config.V * 4  # logits in float32
        attended = sum(pyramid.tokens(si) * pyramid.end(si) for si in range(begin, last + 1))
        operations = 2 * R * (n * blocks + judged * head) + 4 * R * attended * config.D * config.depth
        return 1e3 * max(moved / self.bandwidth, operations / self.rate)
