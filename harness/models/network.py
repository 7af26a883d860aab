"""What the samplers need of a network, and the records that go in and out of one.

Promise: whatever meets `Network` can be sampled, verified and observed: the transformer of a checkpoint, a table-driven
toy, a network under a watch. Nothing here computes.

Source: spec §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer, in the letters of the spec page; `classes` excludes the unconditional class."""

    pyramid: ScalePyramid
    depth: int
    D: int
    H: int
    V: int
    C: int
    classes: int
    shared_adaln: bool = False
    l2_norm: bool = True


class Cache(Protocol):
    """Where keys and values of earlier positions live."""

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Append one step's keys and values; return those of all positions so far, (R,H,K+n,c) each."""


Modulation = tuple[Tensor, ...]  # γ1, γ2, 1 + scale1, 1 + scale2, shift1, shift2 of a block, (R,1,D) each


@dataclass(frozen=True)
class Condition:
    """All that depends on the label: six (R,1,D) vectors a block, two for the head, and the class embedding.

    The scales of the modulated layer norms are kept as 1 + scale, the factor that every pass multiplies with.
    """

    cond_RD: Tensor
    blocks: tuple[Modulation, ...]
    head: tuple[Tensor, Tensor]

    def rows(self, rows: Tensor) -> Condition:
        """Return the condition of the guidance rows `rows` (int64 indices into R)."""
        blocks = tuple(tuple(vector[rows] for vector in block) for block in self.blocks)
        return Condition(self.cond_RD[rows], blocks, (self.head[0][rows], self.head[1][rows]))


class Network(Protocol):
    """One network as a sampler sees it."""

    @property
    def config(self) -> TransformerConfig:
        """Sizes."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Every tensor by name."""

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    @property
    def start_1D(self) -> Tensor:
        """Added to the class embedding at scale 0."""

    @property
    def pos_LD(self) -> Tensor:
        """Embedding of every position."""

    @property
    def lvl_SD(self) -> Tensor:
        """Embedding of every scale."""

    def bytes(self) -> int:
        """Return how much memory the weights fill."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Network:
        """Return a copy with the weights on `device` in `dtype`."""

    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return a scale's raw input as (B,n,D), without its position term."""

    def condition(self, labels_R: Tensor) -> Condition:
        """Compute what depends on the label alone; `labels_R` is int64, `classes` the unconditional one."""

    def hidden(self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None) -> Tensor:
        """Return h_RnD of n new positions; extends the cache. A mask of None lets everything be visible."""

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV of hidden states, in float32 at least."""
