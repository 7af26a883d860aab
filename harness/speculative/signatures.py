"""What each replaceable part is given and returns; `parts` composes the decoder of functions that fit.

Promise: a function of another shape is refused by mypy. Axes: B images, R = 2B guidance rows (conditional ones first),
n positions of scales first..last, l of one scale, K cached positions before them, V tokens, D width, C, P of f_hat.
"""

# ruff: noqa: D102  # what a signature means is said once, by its class
from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from harness.models.network import Condition, Network
from harness.models.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.cache import KVCache


class BuildCombinedQuery(Protocol):
    """(network, condition of R rows, raw_BnC, first, last) -> x_RnD, in the network's dtype."""

    def __call__(self, network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int, /) -> Tensor: ...


class AttentionMask(Protocol):
    """(pyramid, first, last, device, dtype) -> additive mask (1,1,n,K+n): 0 where a row sees, -inf elsewhere."""

    def __call__(
        self, pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype, /
    ) -> Tensor: ...


class Guide(Protocol):
    """(logits_RnV, pyramid, cfg, first, last) -> guided_BnV."""

    def __call__(self, logits_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int, /) -> Tensor: ...


class SplitLogitsByScale(Protocol):
    """(window_BnX, pyramid, first, last) -> (B,l,X) of every scale in order."""

    def __call__(self, window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int, /) -> list[Tensor]: ...


class FilterLogits(Protocol):
    """(logits_BnV, top_k, top_p) -> logits_BnV with -inf where a token is dropped; 0 switches a filter off."""

    def __call__(self, logits_BnV: Tensor, top_k: int, top_p: float, /) -> Tensor: ...


class Draw(Protocol):
    """(probs_BnV, E_BnV) -> int64 tokens_Bn."""

    def __call__(self, probs_BnV: Tensor, E_BnV: Tensor, /) -> Tensor: ...


class KeepDrafted(Protocol):
    """(u_Bn, draft_prob_Bn, target_prob_Bn of the drafted token) -> bool kept_Bn."""

    def __call__(self, u_Bn: Tensor, draft_prob_Bn: Tensor, target_prob_Bn: Tensor, /) -> Tensor: ...


class Residual(Protocol):
    """(draft_probs_BnV, target_probs_BnV) -> probs_BnV that a token which fails is redrawn from."""

    def __call__(self, draft_probs_BnV: Tensor, target_probs_BnV: Tensor, /) -> Tensor: ...


class Accumulate(Protocol):
    """(f_hat_BCPP, int64 idx_Bl, si, quantizer, pyramid) -> f_hat_BCPP after scale si; a tensor of its own."""

    def __call__(
        self, f_hat_BCPP: Tensor, idx_Bl: Tensor, si: int, quantizer: Quantizer, pyramid: ScalePyramid, /
    ) -> Tensor: ...


class NextInput(Protocol):
    """(f_hat_BCPP after the scales before si, si, pyramid) -> raw_BlC of scale si; a tensor of its own."""

    def __call__(self, f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid, /) -> Tensor: ...


class NewCache(Protocol):
    """(network, B) -> an empty cache of 2B rows."""

    def __call__(self, network: Network, B: int, /) -> KVCache: ...


class LatentParts(Protocol):
    """The two parts that making a scale final needs."""

    @property
    def accumulate(self) -> Accumulate: ...

    @property
    def next_input(self) -> NextInput: ...
