"""What may make a device inexact or a repeat differ, and in which precision a tie is certified.

Promise: after `set_precision(False)` float32 means float32 on every device, and a repeat gives the same bits; a decoder
that changes one of these settings is reported with its name, and changes it for itself alone. What certifies is the
cheapest precision whose own error is at most `NEGLIGIBLE` of the budget of the network that is judged; its weights are
those of that network, exactly, since a wider dtype holds them all.

Why that share: a budget is `BUDGET_MARGIN` times the largest error of a few dozen images, and fresh images stayed
within 1.4 times that error, so 30 % of the budget is free. Every pair below stays far under a sixteenth, by the number
of bits that an operand loses (`EPS`): TF32 rounds operands to 2^-11 where bfloat16 rounds them to 2^-8, an eighth of an
error that is half of a budget. Measured: 2.2 % (d16-d30) and 2.5 % (digits) of bfloat16's budget for TF32, 0.24 % and
0.09 % of TF32's for float32 (`budgets.json`, H200; by `SplitProducts` 0.23 %, by float32 itself 0.27 %), 2^-29 of
float32's for float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.models import Codec, ModelPair, Network, product_dtype
from harness.models.var.transformer import queries_at_once

# What the results state, and what else decides how a product rounds; dotted names below `torch.backends`. The first is
# PyTorch's newer switch over all of them (2.9 on): where one is set by both, PyTorch refuses to tell the older one.
STATED = {
    "tf32_matmul": "cuda.matmul.allow_tf32",
    "tf32_convolution": "cudnn.allow_tf32",
    "deterministic_convolution": "cudnn.deterministic",
}
NEWEST = "fp32_precision"
WATCHED = {
    NEWEST: NEWEST,
    **STATED,
    "benchmark_convolution": "cudnn.benchmark",
    "reduced_bfloat16_sums": "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cpu_matmul": "mkldnn.matmul.fp32_precision",
    "cpu_convolution": "mkldnn.conv.fp32_precision",
    "reduced_float16_sums": "cuda.matmul.allow_fp16_reduced_precision_reduction",
}
MATMUL = "float32_matmul_precision"  # a function's, over those of CUDA and CPU
UNREADABLE = "set by two interfaces at once"
NEGLIGIBLE = 1 / 16  # of the budget, at most
ACTIVATIONS = 16  # numbers of a row, in widths of the network, that exist at a time
FEWEST = 2.0  # GiB that certifying may take where the device does not say what is free


def set_precision(tf32: bool) -> dict[str, bool]:
    """Switch TF32 on or off, non-deterministic convolution kernels off; return what is on and off (`precision`).

    TF32 lets CUDA round the operands of float32 products to 10 bits of mantissa. Effects: process-wide PyTorch
    settings; PyTorch itself allows TF32 in convolutions by default.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return precision()


def precision() -> dict[str, bool]:
    """Return the process-wide settings that decide how exact and how repeatable a run is."""
    return {name: bool(_read(path)) for name, path in STATED.items()}


def watched() -> dict[str, object]:
    """Return every process-wide setting that may move a rounded number, those of `precision` among them."""
    settings = {name: _read(path) for name, path in WATCHED.items()}
    try:
        settings[MATMUL] = torch.get_float32_matmul_precision()
    except RuntimeError:
        settings[MATMUL] = UNREADABLE
    return settings


@contextmanager
def precision_unchanged() -> Iterator[list[str]]:
    """Run somebody else's code; what it changed is undone, and listed when it ends, one clause a setting."""
    before, changed = watched(), list[str]()
    try:
        yield changed
    finally:
        now = watched()
        changed += [f"{name} from {before[name]} to {now[name]}" for name in before if now[name] != before[name]]
        if changed:
            readable = {name: value for name, value in before.items() if value != UNREADABLE}
            # the first one sets all the others, and the second those of products
            if now[NEWEST] != before[NEWEST]:
                _write(WATCHED[NEWEST], before[NEWEST])
            if MATMUL in readable:
                torch.set_float32_matmul_precision(str(before[MATMUL]))
            for name in readable.keys() - {NEWEST, MATMUL}:
                _write(WATCHED[name], before[name])


def _read(path: str) -> object:
    try:
        return attrgetter(path)(torch.backends)
    except RuntimeError:
        return UNREADABLE


def _write(path: str, value: object) -> None:
    owner, _, name = f"backends.{path}".rpartition(".")
    setattr(attrgetter(owner)(torch), name, value)


@dataclass(frozen=True)
class Certifying:
    dtype: torch.dtype  # of the certifying network
    exact: bool  # its float32 products are as exact as float32's, not as TF32's; means something on CUDA alone
    share: float  # bound on its error as a share of the budget of the judged network

    def __str__(self) -> str:
        word = str(self.dtype).removeprefix("torch.")
        return f"{word if self.exact else 'TF32'}, its error below {self.share:.2g} of the budget"


def certifying_precision(models: ModelPair) -> Certifying:
    """Return the precision for these networks in the present mode. Reads the process-wide TF32 setting."""
    dtype, on_cuda = product_dtype(models.target), models.device.type == "cuda"
    if dtype == torch.bfloat16:  # 8 bits of mantissa against 11 or 24
        return Certifying(torch.float32, not on_cuda, 2.0**-4 if on_cuda else 2.0**-13)
    is_tf32 = dtype == torch.float32 and on_cuda and precision()["tf32_matmul"]
    if dtype == torch.float16 or is_tf32:  # 11 bits against 24, which also rounds its sums
        return Certifying(torch.float32, True, 2.0**-9)
    return Certifying(torch.float64, True, 2.0**-29)


class SplitProducts(TorchFunctionMode):
    """Compute float32 linear layers as three TF32 products of their operands' high and low bits; nothing else is TF32.

    High bits are those that TF32 keeps, and of what is left it drops what is below 2^-20 of a product: about what
    float32 rounds its sums by, at twice its speed on tensor cores.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or args[0].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        (high_nK, low_nK), (high_MK, low_MK) = (_split(operand) for operand in args[:2])
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            rest_nM = F.linear(low_nK, high_MK).add_(F.linear(high_nK, low_MK))
            return F.linear(high_nK, high_MK, *args[2:], **(kwargs or {})).add_(rest_nM)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def _split(operand: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 operand with the lowest 13 bits of its mantissa at 0, and what that leaves out."""
    high = (operand.contiguous().view(torch.int32) & -(2**13)).view(torch.float32)
    return high, operand - high


@contextmanager
def certifying_networks(models: ModelPair, by: Certifying) -> Iterator[tuple[Network, Codec]]:
    """Lend target and quantiser in the certifying precision; TF32 settings of the process are put back at the end."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    splits = by.exact and by.dtype == torch.float32 and models.device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = not by.exact, False
    try:
        latent = torch.promote_types(by.dtype, models.vae.dtype)
        with SplitProducts() if splits else nullcontext():
            yield models.target.converted(by.dtype), models.vae.to(models.device, latent)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def images_per_certifying_pass(models: ModelPair, by: Certifying) -> int:
    """Return how many images fit into a certifying pass: a quarter of the memory that is free, one at least."""
    free = int(FEWEST * 2**30)  # a CPU gains nothing from more
    if models.device.type == "cuda":
        free = free_on_cuda(models.device)
    return max(1, free // 4 // bytes_of_a_pass(models, by.dtype))


def bytes_of_a_pass(models: ModelPair, dtype: torch.dtype) -> int:
    """Return what the target's pass over all scales of an image takes, in two rows, whose keys are not kept."""
    config, L, drawn = models.target.config, models.pyramid.L, models.pyramid.draws.L
    # the mask, and what it is made of; activations; logits thrice
    numbers = 2 * L * L + 2 * ACTIVATIONS * L * config.D + 6 * drawn * config.V
    if models.device.type == "cuda" and dtype == torch.float64:  # scores, their softmax and what is masked of it
        numbers += 3 * queries_at_once(2 * config.H, L, L) * 2 * config.H * L
    return numbers * dtype.itemsize


def free_on_cuda(device: torch.device) -> int:
    """Return the bytes that are free there, with what PyTorch's allocator keeps unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
