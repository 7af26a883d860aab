"""Tensors against tensors.

Promise: equality to the bit unless a tolerance is named for a tensor; and it cannot pass by comparing nothing: a
missing, extra or empty tensor, another dtype or shape, and NaN on either side are all differences.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    name: str  # tensor
    kind: str  # missing, extra, dtype, shape, empty, non-finite or value; "nothing" when both sets are empty
    detail: str  # one clause for a person

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def differences(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: Mapping[str, float] | None = None
) -> list[Difference]:
    """List every difference between two sets of named tensors, beyond `atol` by name; without a name, to the bit."""
    if not actual and not expected:
        return [Difference("(all)", "nothing", "nothing was compared: both sides are empty")]
    listed = []
    for name in sorted(actual.keys() | expected.keys()):
        if name not in actual:
            listed.append(Difference(name, "missing", "missing"))
        elif name not in expected:
            listed.append(Difference(name, "extra", "not expected"))
        elif difference := _difference(name, actual[name], expected[name], (atol or {}).get(name, 0.0)):
            listed.append(difference)
    return listed


def _difference(name: str, actual: Tensor, expected: Tensor, atol: float) -> Difference | None:
    if actual.dtype != expected.dtype:
        return Difference(name, "dtype", f"dtype {actual.dtype}, expected {expected.dtype}")
    if actual.shape != expected.shape:
        return Difference(name, "shape", f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.numel() == 0:
        return Difference(name, "empty", "empty: nothing was compared")
    for side, tensor in (("actual", actual), ("expected", expected)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return Difference(name, "non-finite", f"{side} holds NaN or infinity")
    if torch.equal(actual, expected):
        return None
    largest = largest_difference(actual, expected)
    if largest <= atol:
        return None
    many = f"{int((actual != expected).sum())} of {actual.numel()}"
    return Difference(name, "value", f"{many} differ, by {largest:.3g}, allowed {atol:.3g}")


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Return max |actual − expected| in float64; NaN when either side holds NaN, 0 when there is nothing."""
    if actual.numel() == 0:
        return 0.0
    return float((actual.double() - expected.double()).abs().max())
