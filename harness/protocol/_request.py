"""What to sample.

Promise: a `Request` is frozen; with the weights, their dtype and device, and whether tokens are drawn or the most
likely ones are taken (`Settings.greedy`), it determines every token of a correct decode under contract A, up to ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from harness.errors import InputError

NoiseOrder = Literal["image", "batch"]
ORDERS: tuple[NoiseOrder, ...] = ("image", "batch")
MOST_CFG = 1e6


@dataclass(frozen=True)
class Request:
    """Labels, seed and sampling parameters of one batch.

    Args:
        labels: class of every image, 0..classes (``classes`` itself is the unconditional class); None = drawn.
        seed: seed of all randomness, >= 0.
        cfg: guidance value, finite; 0 switches guidance off.
        top_k: keep the k largest logits; 0 switches the filter off; at most V.
        top_p: nucleus mass in [0, 1]; 0 switches the filter off.
        more_smooth: replace code vectors by a soft mixture (visualisation only, spec §7).
        order: "image" gives every image its own stream from (seed, image); "batch" is the published order, one
            generator for the whole batch.
        images: address of every image in "image" order; None = 0, 1, 2, …
        count: number of images when `labels` is None.
        seeds: seed of every image in "image" order, where a batch mixes several; None = `seed` for all.

    Raises:
        InputError: a parameter is outside its range.
    """

    labels: tuple[int, ...] | None
    seed: int = 0
    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    more_smooth: bool = False
    order: NoiseOrder = "image"
    images: tuple[int, ...] | None = None
    count: int = 0
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(int(label) for label in self.labels))
            object.__setattr__(self, "count", len(self.labels))
        if self.count < 1:
            raise InputError("labels", self.labels, "must name at least one image", "pass --labels 0 or --labels all")
        if self.images is not None and len(self.images) != self.count:
            raise InputError("images", self.images, f"must hold one address per image ({self.count})", "drop it")
        if self.labels is None and self.order == "image":
            raise InputError("labels", None, "drawn labels exist in the published order only", 'use order="batch"')
        if self.order not in ORDERS:
            raise InputError("order", self.order, "must be image or batch", "pass --noise image or --noise batch")
        if self.seeds is not None:
            self._check_seeds(self.seeds)
        for seed in (self.seed, *(self.seeds or ())):
            if not 0 <= seed < 2**63:
                raise InputError("seed", seed, "must lie in 0..2^63-1", "pass a non-negative seed")
        if not math.isfinite(self.cfg):
            raise InputError("cfg", self.cfg, "must be finite", "pass --cfg 1.5")
        if abs(self.cfg) > MOST_CFG:
            raise InputError("cfg", self.cfg, f"must lie in ±{MOST_CFG:g}: beyond it logits overflow", "pass --cfg 1.5")
        if self.top_k < 0:
            raise InputError("top_k", self.top_k, "must lie in 0..V", "pass --top-k 0 to switch the filter off")
        if not 0.0 <= self.top_p <= 1.0:
            raise InputError("top_p", self.top_p, "must lie in [0, 1]", "pass --top-p 0 to switch the filter off")

    def _check_seeds(self, seeds: tuple[int, ...]) -> None:
        if self.order != "image":
            raise InputError("seeds", seeds, "a batch in the published order has one seed", 'use order="image"')
        if len(seeds) != self.count:
            raise InputError("seeds", seeds, f"must hold one seed per image ({self.count})", "drop it")

    @property
    def B(self) -> int:
        """Number of images."""
        return self.count

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Address of every image: what its noise stream depends on besides the seed."""
        return self.images if self.images is not None else tuple(range(self.B))

    @property
    def addresses(self) -> tuple[tuple[int, int], ...]:
        """(seed, image) of every image: all that its noise depends on in "image" order."""
        return tuple(zip(self.seeds or (self.seed,) * self.B, self.image_ids, strict=True))

    def where(self, b: int) -> dict[str, int]:
        """Return seed and image of the image at row `b`, as a `Divergence` names them."""
        seed, image = self.addresses[b]
        return {"seed": seed, "image": image}

    def check_against(self, classes: int, V: int) -> None:
        """Refuse labels and filters that the networks do not have.

        Args:
            classes: number of classes of the networks; the label `classes` itself is unconditional.
            V: codebook size.

        Raises:
            InputError: a label or top_k is out of range.
        """
        for label in self.labels or ():
            if not 0 <= label <= classes:
                raise InputError(
                    "labels", label, f"must lie in 0..{classes} ({classes} is unconditional)", "pass --labels all"
                )
        if self.top_k > V:
            raise InputError("top_k", self.top_k, f"must lie in 0..V={V}", f"pass --top-k {V} or less, 0 for off")

    def only(self, rows: list[int]) -> Request:
        """Return the request for the images at `rows` alone, their noise addresses kept ("image" order).

        Raises:
            InputError: in "batch" order, where an image's noise depends on the whole batch.
        """
        if self.order != "image" or self.labels is None:
            raise InputError("order", self.order, "an image stands alone in image order only", "pass --noise image")
        labels, ids = self.labels, self.image_ids
        seeds = None if self.seeds is None else tuple(self.seeds[b] for b in rows)
        return replace(
            self,
            labels=tuple(labels[b] for b in rows),
            images=tuple(ids[b] for b in rows),
            seed=seeds[0] if seeds else self.seed,
            seeds=seeds,
        )


def request_values(request: Request) -> dict[str, object]:
    """Return a request as JSON values."""
    return asdict(request)


def request_of(values: Mapping[str, object]) -> Request:
    """Return the request of values that `request_values` gave to JSON. Raises `TypeError` for other names."""
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Request(**words)  # type: ignore[arg-type]  # which values they are is checked by their users
