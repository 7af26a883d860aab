"""In which precision a tie is certified: the cheapest one whose own error is negligible against the budget at hand.

Promise: the certifying network's error is at most `NEGLIGIBLE` of the budget of the network that is judged; its weights
are those of that network, exactly, since a wider dtype holds them all.

Why that share: a budget is `MARGIN` times the largest error of a few dozen images, and fresh images stayed within 1.4
times that error, so 30 % of the budget is free. Every pair below stays far under a sixteenth, by the number of bits
that an operand loses (`EPS`): TF32 rounds operands to 2^-11 where bfloat16 rounds them to 2^-8, an eighth of an error
that is half of a budget. Measured: 2.2 % (d16-d30) and 2.5 % (digits) of bfloat16's budget for TF32, 0.24 % and
0.09 % of TF32's for float32 (`budgets.json`, H200), 2^-29 of float32's for float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from harness.models.autoencoder import Autoencoder
from harness.models.network import Network
from harness.models.pair import ModelPair
from harness.models.transformer import Transformer
from harness.rounding.precision import exact_products, precision

NEGLIGIBLE = 1 / 16  # of the budget, at most
FEWEST = 2.0  # GiB that certifying may take where the device does not say what is free


@dataclass(frozen=True)
class Certifying:
    """A precision to certify in.

    Args:
        dtype: of the certifying network.
        exact: its float32 products are exact, not TF32; means something on CUDA alone.
        share: bound on its error as a share of the budget of the judged network.
    """

    dtype: torch.dtype
    exact: bool
    share: float

    def __str__(self) -> str:
        word = str(self.dtype).removeprefix("torch.")
        return f"{word if self.exact else 'TF32'}, its error below {self.share:.2g} of the budget"


def certifying(models: ModelPair) -> Certifying:
    """Return the precision for these networks in the present mode. Reads the process-wide TF32 setting."""
    dtype, on_cuda = models.target.dtype, models.device.type == "cuda"
    if dtype == torch.bfloat16:  # 8 bits of mantissa against 11 or 24
        return Certifying(torch.float32, not on_cuda, 2.0**-4 if on_cuda else 2.0**-13)
    if dtype == torch.float32 and on_cuda and precision()["tf32_matmul"]:  # 11 against 24, which also rounds its sums
        return Certifying(torch.float32, True, 2.0**-9)
    return Certifying(torch.float64, True, 2.0**-29)


@contextmanager
def wide(models: ModelPair, by: Certifying) -> Iterator[tuple[Network, Autoencoder]]:
    """Lend the target and the quantiser in the certifying precision, that mode switched on.

    Effects: process-wide settings of precision, put back when it ends.
    """
    target = models.target
    network: Network = (
        target.converted(by.dtype) if isinstance(target, Transformer) else target.to(models.device, by.dtype)
    )
    with exact_products(by.exact):
        yield network, models.vae.to(models.device, torch.promote_types(by.dtype, models.vae.dtype))


def images_at_once(models: ModelPair, by: Certifying) -> int:
    """Return how many images fit into a certifying pass: a quarter of the memory that is free, one at least."""
    config, L = models.target.config, models.pyramid.L
    # two rows of: attention weights and their softmax, some twelve activations, logits thrice, all keys and values
    numbers = 3 * config.H * L * L + 12 * L * config.D + 3 * L * config.V + 2 * config.depth * L * config.D
    each = 2 * numbers * torch.finfo(by.dtype).bits // 8
    return max(1, int(_free(models.device) // 4 // each))


def _free(device: torch.device) -> float:
    if device.type != "cuda":
        return FEWEST * 2**30  # a CPU gains nothing from more
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)
