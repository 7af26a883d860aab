"""What to sample.

Promise: a `Request` is frozen; with the weights, their dtype and device, and whether tokens are drawn or the most
likely ones are taken (`Settings.greedy`), it determines every token of a correct decode under contract A, up to ties.
What a family may be asked with besides labels and a guidance value are values, frozen and comparable, that JSON holds
without loss; what they mean is the family's to say, and what a family does not read it refuses (`Request.check_for`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from harness.errors import InputError
from harness.protocol.pyramid import ScalePyramid
from harness.schema import record_of


@dataclass(frozen=True, eq=False)
class Rows:
    """A condition of T >= 1 rows, such as an encoded text. Raises `InputError`: they are no finite float32 numbers."""

    numbers_TA: Tensor  # float32, on the CPU; nobody may write into it

    def __post_init__(self) -> None:
        numbers = self.numbers_TA
        if numbers.dtype != torch.float32 or numbers.dim() != 2 or not numbers.numel() or not numbers.isfinite().all():
            shape = f"{numbers.dtype} {tuple(numbers.shape)}"
            raise InputError("texts", shape, "must be finite float32 numbers (T, A)", "pass one row or more")

    @cached_property
    def _key(self) -> tuple[tuple[int, ...], bytes]:
        return tuple(self.numbers_TA.shape), self.numbers_TA.cpu().contiguous().numpy().tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Self:
        return cls(torch.tensor(values, dtype=torch.float32))


@dataclass(frozen=True)
class ScaleGuidance:
    """Guidance of a family whose weights are a list: w·conditional + (1−w)·unconditional, over a temperature; 1 is off.

    Raises `InputError`: a number is not finite, or a temperature not positive.
    """

    weights: tuple[float, ...]  # one a scale
    temperatures: tuple[float, ...] = ()  # one a scale, by which logits are divided; empty = 1
    places: tuple[int, ...] = (0,)  # where it acts: 0 the logits, -k what comes out of the k-th block from the last

    def __post_init__(self) -> None:
        for name in ("weights", "temperatures", "places"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(math.isfinite(number) for number in (*self.weights, *self.temperatures)):
            raise InputError("scale_guidance", self.weights, "must hold finite numbers", "drop it")
        if not all(tau > 0 for tau in self.temperatures):
            raise InputError("temperatures", self.temperatures, "must be positive", "drop them")

    @property
    def guided(self) -> bool:
        """Whether any scale is guided: unconditional rows run only then."""
        return any(w != 1 for w in self.weights)

    def temperature(self, si: int) -> float:
        return self.temperatures[si] if self.temperatures else 1.0


Guidance = float | ScaleGuidance  # VAR's is one number, whose weight t = cfg·ramp grows along the scales


def unguided(guidance: Guidance) -> Guidance:
    """Return guidance that is switched off at every scale; temperatures stay."""
    if isinstance(guidance, ScaleGuidance):
        return replace(guidance, weights=(1.0,) * len(guidance.weights))
    return 0.0


def guidance_text(guidance: Guidance) -> str:
    if isinstance(guidance, ScaleGuidance):
        return f"weights {', '.join(f'{w:g}' for w in guidance.weights)}"
    return f"cfg {abs(guidance):g}"


def growth(guidance: Guidance, ramp: float, si: int) -> float:
    """Return by how much guidance of the logits makes an error of a row larger at most, at scale `si`.

    `ramp` is si/(S-1). (1+t)·c − t·u moves by 1 + 2·|t| errors, (w·c + (1−w)·u)/τ by (|w| + |1−w|)/τ.
    """
    if isinstance(guidance, ScaleGuidance):
        w = guidance.weights[si]
        return (abs(w) + abs(1 - w)) / guidance.temperature(si)
    return 1 + 2 * abs(guidance * ramp)


def largest_factor(guidance: Guidance, ramp: float, si: int) -> float:
    """Return the largest number that a row is multiplied with in a usual form of the formula; `ramp` as in `growth`."""
    if isinstance(guidance, ScaleGuidance):
        w = guidance.weights[si]
        return max(1.0, abs(w), abs(1 - w)) / guidance.temperature(si)
    return 1 + abs(guidance * ramp)


NoiseOrder = Literal["image", "batch"]
ORDERS: tuple[NoiseOrder, ...] = ("image", "batch")
MOST_CFG = 1e6
OF_SOME = ("texts", "negative_texts", "scale_guidance", "more_smooth")  # what not every family reads
# in JSON only where they say something: older files have no such names
_LATER = ("texts", "negative_texts", "scale_guidance", "filters")
_TEXTS = ("texts", "negative_texts")


class Sizes(Protocol):
    """What a request must fit of a network: scales, V values a draw, classes, and what its family `reads` of it."""

    @property
    def pyramid(self) -> ScalePyramid: ...

    @property
    def V(self) -> int: ...

    @property
    def classes(self) -> int: ...

    @property
    def family(self) -> str: ...

    @property
    def reads(self) -> Collection[str]: ...


@dataclass(frozen=True)
class Request:
    """Labels, seed and sampling parameters of one batch. Raises `InputError`: a parameter is outside its range."""

    # class of every image, 0..classes (`classes` itself is the unconditional class); None = drawn; of texts, which one
    labels: tuple[int, ...] | None
    seed: int = 0  # of all randomness, >= 0
    cfg: float = 1.5  # guidance value, finite; 0 switches guidance off
    top_k: int = 0  # keep the k largest logits; 0 switches the filter off; at most V
    top_p: float = 0.0  # nucleus mass in [0, 1]; 0 switches the filter off
    more_smooth: bool = False  # replace code vectors by a soft mixture (visualisation only, spec §7)
    # "image" gives every image its own stream from (seed, image); "batch" is the published order, one generator for all
    order: NoiseOrder = "image"
    images: tuple[int, ...] | None = None  # address of every image in "image" order; None = 0, 1, 2, …
    count: int = 0  # number of images when `labels` is None
    seeds: tuple[int, ...] | None = None  # of every image in "image" order, where a batch mixes several; None = `seed`
    texts: tuple[Rows, ...] = ()  # conditions of packed rows, which labels number, for a family that reads them
    negative_texts: tuple[Rows, ...] = ()  # what unconditional rows read in place of the family's own, one a text
    scale_guidance: ScaleGuidance | None = None  # guidance by scale in place of `cfg`, for a family that reads it
    filters: tuple[tuple[int, float], ...] = ()  # (top_k, top_p) of every scale in place of those of all

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(int(label) for label in self.labels))
            object.__setattr__(self, "count", len(self.labels))
        if self.count < 1:
            raise InputError("labels", self.labels, "must name at least one image", "pass --labels 0 or --labels all")
        if self.images is not None and len(self.images) != self.count:
            raise InputError("images", self.images, f"must hold one number per image ({self.count})", "drop it")
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
        for top_k, top_p in ((self.top_k, self.top_p), *self.filters):
            _check_filter(top_k, top_p)

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
    def R(self) -> int:
        """Number of guidance rows that run: 2B, or B where guidance by scale is off at every scale."""
        guidance = self.scale_guidance
        return self.B if guidance is not None and not guidance.guided else 2 * self.B

    def rows_of(self, *images: int) -> list[int]:
        """Return the guidance rows of some images: the conditional ones, then the unconditional ones."""
        return [first + image for first in range(0, self.R, self.B) for image in images]

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Address of every image: what its noise stream depends on besides the seed."""
        return self.images if self.images is not None else tuple(range(self.B))

    @property
    def addresses(self) -> tuple[tuple[int, int], ...]:
        """(seed, image) of every image: all that its noise depends on in "image" order."""
        return tuple(zip(self.seeds or (self.seed,) * self.B, self.image_ids, strict=True))

    @property
    def guidance(self) -> Guidance:
        """What the family's formula of guidance takes."""
        return self.scale_guidance if self.scale_guidance is not None else self.cfg

    @property
    def is_guided(self) -> bool:
        """Whether any scale is guided."""
        return self.cfg != 0 if self.scale_guidance is None else self.scale_guidance.guided

    @property
    def every_filter(self) -> tuple[tuple[int, float], ...]:
        """(top_k, top_p) of every scale, or the one of all."""
        return self.filters or ((self.top_k, self.top_p),)

    def filter(self, si: int) -> tuple[int, float]:
        """Return top_k and top_p of scale `si`."""
        return self.filters[si] if self.filters else (self.top_k, self.top_p)

    def at(self, si: int) -> Self:
        """Return the request with the filter of scale `si` for all."""
        if not self.filters:
            return self
        top_k, top_p = self.filter(si)
        return replace(self, top_k=top_k, top_p=top_p, filters=())

    def conditions(self, classes: int) -> int:
        """Return how many conditions labels number, without the unconditional one: its texts, or else `classes`."""
        return len(self.texts) or classes

    def where(self, b: int) -> dict[str, int]:
        """Return seed and image of the image at row `b`, as a `Divergence` names them."""
        seed, image = self.addresses[b]
        return {"seed": seed, "image": image}

    def check_against(self, classes: int, V: int) -> None:
        """Refuse labels above `classes`, the unconditional one, and a top_k above V. Raises `InputError`."""
        for label in self.labels or ():
            if not 0 <= label <= classes:
                rule = f"must lie in 0..{classes} ({classes} is unconditional)"
                raise InputError("labels", label, rule, "pass --labels all")
        top_k = max((self.top_k, *(top_k for top_k, _ in self.filters)))
        if top_k > V:
            raise InputError("top_k", top_k, f"must lie in 0..V={V}", f"pass --top-k {V} or less, 0 for off")

    def check_for(self, config: Sizes) -> None:
        """Refuse what networks of these sizes do not have, and what their family does not read. Raises `InputError`."""
        self.check_against(self.conditions(config.classes), config.V)
        S, guidance = config.pyramid.S, self.scale_guidance
        for name in OF_SOME:
            if getattr(self, name) and name not in config.reads:
                raise InputError(name, "given", f"is nothing that the family {config.family} reads", "drop it")
        if guidance is not None and guidance.places != (0,) and "places" not in config.reads:
            rule = f"guides elsewhere than the family {config.family} does, which is at the logits"
            raise InputError("places", guidance.places, rule, "drop them")
        lists: dict[str, tuple[Any, ...]] = {"filters": self.filters}
        if guidance is not None:
            lists |= {"weights": guidance.weights, "temperatures": guidance.temperatures}
        for name, values in lists.items():
            if len(values) not in ((S,) if name == "weights" else (0, S)):
                raise InputError(name, values, f"must hold one entry a scale ({S})", "pass as many, or drop it")

    def only(self, rows: list[int]) -> Self:
        """Return the request for the images at `rows` alone, their noise addresses kept ("image" order).

        Raises `InputError`: in "batch" order, where an image's noise depends on the whole batch.
        """
        if self.order != "image" or self.labels is None:
            raise InputError("order", self.order, "an image stands alone in image order only", "pass --noise image")
        labels, ids = self.labels, self.image_ids
        seeds = None if self.seeds is None else tuple(self.seeds[b] for b in rows)
        return replace(
            self, labels=tuple(labels[b] for b in rows), images=tuple(ids[b] for b in rows),
            seed=seeds[0] if seeds else self.seed, seeds=seeds,
        )  # fmt: skip


def _check_filter(top_k: int, top_p: float) -> None:
    if top_k < 0:
        raise InputError("top_k", top_k, "must lie in 0..V", "pass --top-k 0 to switch the filter off")
    if not 0.0 <= top_p <= 1.0:
        raise InputError("top_p", top_p, "is a share, and must lie in [0, 1]", "pass --top-p 0.9, or 0 for no filter")


def request_values(request: Request) -> dict[str, object]:
    """Return a request as JSON values; what only some families read stands there where it says something."""
    without = asdict(replace(request, texts=(), negative_texts=()))
    values = {name: value for name, value in without.items() if value or name not in _LATER}
    texts = {name: getattr(request, name) for name in _TEXTS}
    return values | {name: [rows.numbers_TA.tolist() for rows in listed] for name, listed in texts.items() if listed}


def request_of(values: Mapping[str, object]) -> Request:
    """Return the request of values that `request_values` gave to JSON. Raises `TypeError` for others."""
    words: dict[str, Any] = {**values}
    for name in words.keys() & set(_TEXTS):
        words[name] = tuple(map(Rows.of, words[name]))
    return record_of(Request, words)
