"""What the samplers need of a network and an autoencoder, and the records that go in and out of them.

Promise: whatever meets `Network` and `Codec` can be sampled, verified and observed: the transformer of a checkpoint, a
table-driven toy, a network under a watch. What a sampler does with them, the network's `family` says: a module of its
own in `reference/` and in `speculative/`. Nothing here computes.

Source: spec §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from harness.models._needs import Codec, NetworkConfig  # noqa: F401  # what else a sampler needs
from harness.protocol import ScaleGuidance, ScalePyramid


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one VAR transformer; `classes` excludes the unconditional class."""

    pyramid: ScalePyramid
    depth: int
    D: int
    H: int
    V: int
    C: int
    classes: int
    shared_adaln: bool = False
    l2_norm: bool = True

    family: ClassVar[str] = "var"
    reads: ClassVar[tuple[str, ...]] = ("more_smooth",)  # conditions are classes, guidance is one number

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape (C,P,P) of an image's latent map."""
        return self.C, *self.pyramid.sides[-1]

    @property
    def raw(self) -> int:
        """Channels of a raw input: those of the map."""
        return self.C


class Cache(Protocol):
    """Where keys and values of earlier positions live."""

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Append one step's keys and values; return those of all positions so far, (R,H,K+n,c) each."""


Modulation = tuple[Tensor, ...]  # γ1, γ2, 1 + scale1, 1 + scale2, shift1, shift2 of a block, (R,1,D) each


@dataclass(frozen=True)
class Condition:
    """All that depends on an image's condition: six (R,1,D) vectors a block, two for the head, and its embedding.

    The scales of the modulated layer norms are kept as 1 + scale, the factor that every pass multiplies with.
    """

    cond_RD: Tensor
    blocks: tuple[Modulation, ...]
    head: tuple[Tensor, Tensor]
    texts: tuple[Tensor, ...] = ()  # of every guidance row the packed rows that it attends to; none in VAR
    guidance: ScaleGuidance | None = None  # that acts between blocks, where its places say so; none in VAR

    def rows(self, rows: Tensor) -> Condition:
        """Return the condition of the guidance rows `rows` (int64 indices into R)."""
        blocks = tuple(tuple(vector[rows] for vector in block) for block in self.blocks)
        texts = tuple(self.texts[row] for row in rows.tolist()) if self.texts else ()
        return Condition(self.cond_RD[rows], blocks, (self.head[0][rows], self.head[1][rows]), texts, self.guidance)


class Network(Protocol):
    """One network as a sampler sees it."""

    @property
    def config(self) -> NetworkConfig:
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
        """Added to the condition's embedding at scale 0."""

    @property
    def pos_LD(self) -> Tensor:
        """What the input says of every position; zeros where the network gets positions otherwise."""

    @property
    def lvl_SD(self) -> Tensor:
        """Embedding of every scale."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Network:
        """Return a copy on `device` in `dtype`; rounding that is of the network's law stays, its oracle's, too."""

    def converted(self, dtype: torch.dtype) -> Network:
        """Return a view in `dtype` that need not hold all weights twice."""

    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return a scale's raw input as (B,n,D), without its position term."""

    def condition(self, labels_R: Any) -> Condition:
        """Compute what depends on the condition of every guidance row alone.

        `labels_R` is int64, `classes` the unconditional one; where the family reads texts it is those of every row.
        """

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return h_RnD of n new positions; extends the cache.

        A mask of None lets everything be visible. `positions` (n,…) says where the rows sit, in the family's own way;
        None where their input says it.
        """

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV of the draws of n positions, position by position, in float32 at least."""


class StoredNetwork:
    """What a network of either family says of itself: what its sizes and weights say."""

    config: Any
    weights: Mapping[str, Tensor]

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales that it was trained on."""
        return self.config.pyramid  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.start_1D.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.start_1D.dtype

    @property
    def start_1D(self) -> Tensor:
        """Added to the condition's embedding at scale 0."""
        return self.weights["pos_start"][0]


@dataclass(frozen=True, eq=False)
class Around:
    """A network that is the one inside it, but for the methods of a class derived from this one."""

    network: Network

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.network, name)
