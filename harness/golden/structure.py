"""The form of a case's tensors. Promise: missing, extra, other dtype, other shape, NaN and tokens outside 0..V-1 are
all told apart, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase


def structure(case: RecordedCase, recorded: Mapping[str, Tensor]) -> list[str]:
    """List what is wrong with the form of a case's tensors; empty when nothing is."""
    shapes = case.shapes()
    with_rounds = {"rounds"} if case.sampler == "speculative" else set()
    found = [f"tensor {name} is missing" for name in sorted((shapes.keys() | with_rounds) - recorded.keys())]
    found += [f"tensor {name} is not expected" for name in sorted(recorded.keys() - shapes.keys() - with_rounds)]
    for name in sorted(recorded.keys() & shapes.keys()):
        tensor, (dtype, shape) = recorded[name], shapes[name]
        if tensor.dtype != dtype:
            found.append(f"{name} has dtype {tensor.dtype}, expected {dtype}")
        elif tuple(tensor.shape) != shape:
            found.append(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        elif dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            found.append(f"{name} holds NaN or infinity")
        elif name == "tokens" and bool(((tensor < 0) | (tensor >= case.models.vae.config.V)).any()):
            found.append(f"tokens lie outside 0..{case.models.vae.config.V - 1}")
    if with_rounds and "rounds" in recorded:
        dtype, shape = recorded["rounds"].dtype, tuple(recorded["rounds"].shape)
        if dtype != torch.int32 or len(shape) != 2 or shape[1] != 7:
            found.append(f"rounds has dtype {dtype} and shape {shape}, expected torch.int32 and (any number, 7)")
    return found
