"""Machines whose kernels follow a rule: every number of rows alike, or one of them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ATTENTION = F.scaled_dot_product_attention


class RowByRow(TorchFunctionMode):
    """Computes every row of a product, every query and every image of a map by itself: no width changes a bit."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, *rest = args
            rows = [F.linear(_alone(row), *rest, **kwargs) for row in x.flatten(0, -2)]
            return torch.stack(rows).unflatten(0, x.shape[:-1])
        if func is ATTENTION:
            q, k, v, *rest = args
            mask = rest[0] if rest else None
            return torch.stack([_queries(*each, mask, kwargs) for each in zip(q, k, v, strict=True)])
        if func in (F.conv2d, F.interpolate):
            x, *rest = args
            images = (_alone(image) for image in x.split(1))
            return torch.cat([func(image, *rest, **kwargs) for image in images])
        return func(*args, **kwargs)


def _alone(x: Tensor) -> Tensor:
    """Return a copy whose layout and place in memory say nothing of where it comes from."""
    return x.clone(memory_format=torch.contiguous_format)


def _queries(q_Hnc: Tensor, k_HKc: Tensor, v_HKc: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    out = []
    for i in range(q_Hnc.shape[1]):
        seen = slice(None) if mask is None else mask[0, 0, i] == 0
        query, keys, values = (_alone(each[None]) for each in (q_Hnc[:, i : i + 1], k_HKc[:, seen], v_HKc[:, seen]))
        out.append(ATTENTION(query, keys, values, **kwargs)[0])
    return torch.cat(out, 1)


@dataclass
class Apart(TorchFunctionMode):
    """Computes one operation in two halves at one number of rows: a product's sums, or an attention's keys.

    `weight` is the product's; None splits every attention.
    """

    rows: int
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.weight is not None and func is F.linear and args[1].data_ptr() == self.weight.data_ptr():
            x, w, *bias = args
            if len(x.flatten(0, -2)) == self.rows:
                half = w.shape[1] // 2
                return F.linear(x[..., :half], w[:, :half]) + F.linear(x[..., half:], w[:, half:], *bias)
        if self.weight is None and func is ATTENTION and len(args[0]) * args[0].shape[2] == self.rows:
            return _tiled(*args, **kwargs)
        return func(*args, **kwargs)


def _tiled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Attend to two blocks of keys with a running maximum and sum, as flash attention does."""
    mask = q.new_zeros(1, 1, q.shape[2], k.shape[2]) if mask is None else mask
    most, total, out = q.new_full((*q.shape[:3], 1), -1e30), torch.zeros(()), torch.zeros(())
    for block in torch.arange(k.shape[2]).chunk(2):
        scores = scale * q @ k[:, :, block].mT + mask[..., block]
        higher = torch.maximum(most, scores.amax(-1, keepdim=True))
        weights, kept = (scores - higher).exp(), (most - higher).exp()
        total, out = total * kept + weights.sum(-1, keepdim=True), out * kept + weights @ v[:, :, block]
        most = higher
    return out / total
