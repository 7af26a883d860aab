"""What a trace must be before its numbers can be compared: the decoder is somebody else's code.

Promise: whatever a decoder returns, the answer is a clause on what is wrong with its form, or None; nothing is raised.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from harness.judge.verdict import Divergence
from harness.models.pair import ModelPair
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Round, Trace

COUNTS = ("target_calls", "target_rows", "draft_calls", "draft_rows")


def malformed(models: ModelPair, request: Request, trace: object) -> str | None:
    """Return what is wrong with the types and lengths of a trace; None where nothing is.

    Args:
        models: give the device and the dtype of f_hat.
        request: gives the number of images.
        trace: what `decode` returned.
    """
    if not isinstance(trace, Trace):
        return f"decode returned {_kind(trace)}, not a Trace"
    tensors: dict[str, object] = {name: getattr(trace, name) for name in ("tokens_BL", "f_hat_BCPP", "scale_writes_BS")}
    if trace.intermediates is not None:
        if not isinstance(trace.intermediates, Intermediates):
            return f"intermediates is {_kind(trace.intermediates)}, not Intermediates or None"
        kept = [field.name for field in fields(Intermediates)]
        tensors |= {f"intermediates.{name}": getattr(trace.intermediates, name) for name in kept}
    for name, tensor in tensors.items():
        if (wrong := _wrong_tensor(tensor, models, name)) is not None:
            return f"{name} {wrong}"
    if trace.f_hat_BCPP.dtype != models.vae.dtype:
        return f"f_hat_BCPP is {trace.f_hat_BCPP.dtype}, not {models.vae.dtype}"
    for name in COUNTS:
        if not _is_list(getattr(trace, name), request.B) or not all(_is_count(n) for n in getattr(trace, name)):
            return f"{name} must be empty or a list of one whole number an image"
    rounds = trace.rounds
    if not _is_list(rounds, request.B) or not all(isinstance(turns, list) for turns in rounds):
        return "rounds must be empty or a list of one list an image"
    for turn in (turn for turns in rounds for turn in turns):
        if not isinstance(turn, Round) or not all(_is_count(getattr(turn, field.name)) for field in fields(Round)):
            return "rounds must hold Round records of whole numbers"
    return None


def _wrong_tensor(tensor: object, models: ModelPair, name: str) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"is {_kind(tensor)}, not a tensor"
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return "is no dense tensor"
    if name != "scale_writes_BS" and tensor.device.type != models.device.type:
        return f"lies on {tensor.device}, not on {models.device}"
    is_integer = not (tensor.is_floating_point() or tensor.is_complex())
    if is_integer != (name in ("tokens_BL", "scale_writes_BS")):
        return f"is {tensor.dtype}"
    return None


def _is_list(value: object, B: int) -> bool:
    return isinstance(value, list) and len(value) in (0, B)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def structure(models: ModelPair, request: Request, actual: Trace) -> list[Divergence]:
    """Shapes, ranges, and that every scale was generated exactly once."""
    pyramid, V = models.pyramid, models.target.config.V
    tokens_BL, f_hat = actual.tokens_BL, actual.f_hat_BCPP
    shape = (request.B, pyramid.L)

    def defect(component: str, detail: str, image: int = -1, scale: int = -1) -> list[Divergence]:
        return [Divergence(component, detail, request.seed, image, scale=scale)]

    if tuple(tokens_BL.shape) != shape or tokens_BL.dtype != torch.int64:
        return defect("scheduling", f"tokens are {tokens_BL.dtype} {tuple(tokens_BL.shape)}, not int64 {shape}")
    for image, scale in actual.missing_scales(pyramid):
        return defect("scheduling", "a scale was not generated exactly once", image, scale)
    outside = torch.nonzero((tokens_BL < 0) | (tokens_BL >= V)).tolist()
    for image, position in outside:
        return defect("scheduling", f"token outside 0..{V - 1}", image, pyramid.level_of(position))
    if f_hat is None or not bool(torch.isfinite(f_hat).all()):
        return defect("f_hat", "f_hat is missing or not finite")
    C, P = models.target.config.C, pyramid.P
    if tuple(f_hat.shape) != (request.B, C, P, P):
        return defect("f_hat", f"f_hat is {tuple(f_hat.shape)}, not {(request.B, C, P, P)}")
    for name, tensor, expected in _kept(models, request, actual):
        if tuple(tensor.shape) != expected:
            return defect("scheduling", f"intermediates.{name} is {tuple(tensor.shape)}, not {expected}")
    for image, rounds in enumerate(actual.rounds):
        covered = [turn.first + k for turn in rounds for k in range(turn.finished)]
        if covered != list(pyramid) or any(turn.finished < 1 for turn in rounds):
            return defect("scheduling", f"rounds finish scales {covered}, not 0..{pyramid.S - 1} once each", image)
    return []


def _kept(models: ModelPair, request: Request, actual: Trace) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, tensor and required shape of the intermediates that the decoder exposes."""
    if actual.intermediates is None:
        return []
    pyramid, config, B = models.pyramid, models.target.config, request.B
    shapes = {
        "x_RLD": (2 * B, pyramid.L, config.D),
        "rows_RLV": (2 * B, pyramid.L, config.V),
        "guided_BLV": (B, pyramid.L, config.V),
        "f_hat_SBCPP": (pyramid.S, B, config.C, pyramid.P, pyramid.P),
    }
    return [(name, tensor, shapes[name]) for name, tensor in actual.intermediates.named().items()]
