"""Whether a wrong tensor is the reference's own, computed in fewer bits than both sides were given.

Promise: rounding is named where the reference, rounded so, comes twice as near as the exact one at least, and never
excused. A wrong mask, label or input moves numbers elsewhere, however little, so that no rounding comes nearer.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.judge._evidence import Evidence
from harness.models import Around, Cache, Condition, ModelPair, Network, product_dtype
from harness.protocol import Intermediates, RowsOf
from harness.reference import Progress, family_of, walked

SHORT = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TF32_BITS = 13  # of float32's 23 that TF32 drops of every operand of a product
NEARER = 0.5  # of the exact reference's distance: what a rounded one is away at most, root mean square
MOST_MOVED = 0.25  # of the exact numbers, root mean square: bfloat16 moves logits by some hundredths
PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, F.conv2d, F.scaled_dot_product_attention)


def explains(actual: Tensor, exact: Tensor, other: Tensor) -> bool:
    """Tell whether another computation comes twice as near to a tensor as the exact one; NaN and infinity do not."""
    far, near = ((actual.double() - each.double()).square().mean() for each in (exact, other))
    return bool(near <= NEARER**2 * far) and bool(far > 0) and bool(near.isfinite())


def _is_rounded(actual: Tensor, exact: Tensor, rounded: Tensor) -> bool:
    """Tell whether a rounded computation explains a tensor, and is near enough to the exact one to be its rounding."""
    moved, size = (exact.double() - rounded.double()).square().mean(), exact.double().square().mean()
    return explains(actual, exact, rounded) and bool(moved <= MOST_MOVED**2 * size)


def rounding_of(evidence: Evidence, image: int, si: int, pick: Callable[[Intermediates, int], Tensor]) -> str:
    """Return in which precision the reference gives what the decoder shows of an image; empty where none explains it.

    `pick` takes the tensor in question, of scale `si`, out of intermediates, given the image's place in their batch.
    """
    actual, expected = evidence.actual.shown, evidence.expected.shown
    found, exact = pick(actual, image), pick(expected, image)
    # of the numbers' size: a rounded run that counts is nearer (|found − exact| <= |found − run| + |run − exact|)
    farthest = MOST_MOVED / (1 - NEARER)
    far, size = (each.double().square().mean() for each in (found - exact, exact))
    if evidence.is_exact or not bool(far <= farthest**2 * size):
        return ""
    runs = ((word, pick(run, 0)) for word, run in _rounded_runs(evidence, image, si + 1))
    near = {word: float((found - other).square().mean()) for word, other in runs if _is_rounded(found, exact, other)}
    return min(near, key=lambda word: near[word], default="")


def in_fewer_bits(evidence: Evidence, found: Tensor, exact: Tensor) -> str:
    """Return the precision to which a right tensor was rounded once it was made; empty where none explains it."""
    rounded = ((word, exact.to(dtype).to(exact.dtype)) for word, dtype in SHORT.items() if not evidence.is_exact)
    return next((word for word, each in rounded if _is_rounded(found, exact, each)), "")


def guided_in_fewer_bits(evidence: Evidence, guided_lV: Tensor, rows_2lV: Tensor, si: int) -> str:
    """Return in which precision guidance was combined, where its rows are right and it was not in their own."""
    guide, guidance, S = family_of(evidence.models.target).guide, evidence.request.guidance, evidence.models.pyramid.S
    exact_lV = guide(rows_2lV, guidance, si, S)[0]
    for word, dtype in SHORT.items():
        made_lV = guide(rows_2lV.to(dtype), guidance, si, S)[0].to(exact_lV.dtype)
        if _is_rounded(guided_lV, exact_lV, made_lV):
            return word
    return ""


def _rounded_runs(evidence: Evidence, image: int, scales: int) -> Iterator[tuple[str, Intermediates]]:
    """Yield the reference's first scales along an image's own tokens in every precision below the networks' own."""
    models, numbers = evidence.models, evidence.numbers
    short = product_dtype(models.target) in SHORT.values()
    if short or evidence.request.more_smooth:  # a free run goes its own way then
        return
    labels = tuple(numbers.labels(models.target.config.classes)[[image]].tolist())
    request = replace(evidence.request, labels=labels, images=None, seeds=None)
    row, forced_1L = torch.tensor([image], device=models.device), evidence.actual.tokens_BL[image : image + 1]
    for word, pair, context in _modes(models):
        try:
            with context:
                noise = RowsOf(numbers, row)
                run = walked(Progress(pair.target, pair.vae, request, noise, forced_1L, evidence.greedy), scales)
        except RuntimeError:  # a kernel that this device does not have in this dtype: no decoder ran it either
            continue
        yield word, run.shown


def _modes(models: ModelPair) -> Iterator[tuple[str, ModelPair, Any]]:
    device = models.device
    for word, dtype in SHORT.items():
        short = replace(models, target=models.target.to(device, dtype))
        yield word, short, nullcontext()
        autocast = torch.autocast(device.type, dtype)
        yield f"{word} (autocast)", models, autocast
        passes = cast(Network, _Passes(models.target, autocast))
        yield f"{word} (autocast)", replace(models, target=passes), nullcontext()
        yield word, replace(short, vae=models.vae.to(device, dtype)), nullcontext()
        # at scale 0, of one key, rounded keys do not show: what is said of them there would be a guess
        for what, kept in (("values", (False, True)), ("keys", (True, False)), ("keys and values", (True, True))):
            passes = cast(Network, _Passes(models.target, nullcontext(), dtype, kept))
            yield f"{word} ({what})", replace(models, target=passes), nullcontext()
    yield "TF32", models, _ShortOperands()


@dataclass(frozen=True, eq=False)
class _Passes(Around):
    """A network of which blocks and head run in a context, and what depends on the label alone does not."""

    context: AbstractContextManager[Any]
    dtype: torch.dtype | None = None  # to which keys, values or both are rounded
    kept: tuple[bool, bool] = (False, False)  # whether keys are, and values

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        kept = _ShortCache(cache, self.dtype, self.kept) if self.dtype else cache
        with self.context:
            return self.network.hidden(x_RnD, condition, kept, mask_11nK, positions)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        with self.context:
            return self.network.logits(h_RnD, condition)


@dataclass(frozen=True)
class _ShortCache:
    """A cache of rounded keys, values or both."""

    cache: Cache
    dtype: torch.dtype
    kept: tuple[bool, bool]

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        pair = zip((k_RHnc, v_RHnc), self.kept, strict=True)
        keys, values = (rounded(each, self.dtype) if is_short else each for each, is_short in pair)
        return self.cache.extend(layer, keys, values)


class _ShortOperands(TorchFunctionMode):
    """Rounds the operands of every product as TF32 does, on any device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            args = tuple(_short(each) if isinstance(each, Tensor) else each for each in args)
        return func(*args, **(kwargs or {}))


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of its own dtype in the numbers of a shorter one."""
    return tensor.to(dtype).to(tensor.dtype)


def _short(operand: Tensor) -> Tensor:
    """Round a float32 tensor to TF32's 10 bits of mantissa, to nearest; others stay."""
    if operand.dtype != torch.float32:
        return operand
    half = 1 << (TF32_BITS - 1)
    return ((operand.contiguous().view(torch.int32) + half) & -(1 << TF32_BITS)).view(torch.float32)
