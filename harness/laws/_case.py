"""One situation in which a law is tested, as plain numbers, and its tiny networks of random weights.

Promise: a `Case` is frozen and its repr is Python, so whatever broke in it can be replayed from the printed line; the
networks are a function of the case alone, and nothing in them is negligible: a wrong position, scale, label or token
moves every logit by far more than rounding. A draft is as near to its target as its word says.

One module: a case and the networks of its two families are read together, since one is a function of the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, Self

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import Condition, ModelPair, Network, TransformerConfig
from harness.models.infinity.autoencoder import InfinityAutoencoder, binary_config, infinity_autoencoder_shapes
from harness.models.infinity.transformer import InfinityConfig, InfinityTransformer, infinity_shapes
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_shapes
from harness.models.var.sizes import random_weights
from harness.models.var.transformer import Transformer, transformer_shapes
from harness.protocol import Guidance, NoiseOrder, Request, Rows, ScaleGuidance, Settings, Trace
from harness.protocol.noise import SeededNoise
from harness.protocol.pyramid import PATCH_NUMS_256, ScalePyramid
from harness.reference import FamilySteps, family_of, sample_sequential

QUALITIES = ("near", "close", "far", "adversarial", "identical", "single")
# Relative size of the change from the target's weights to the draft's; chosen so that full acceptance, partial
# acceptance and first-scale rejection all happen often (tests/meta/test_strategies.py counts them).
_CHANGE = {"close": 0.03, "near": 0.15, "single": 0.03}  # the last one where no weight is a position's
_C, CLASSES = 4, 3

# All pyramids of 1 to 5 scales with sides to 6, fewest tokens first.
SMALL = tuple(
    sorted(
        ((1, *sides) for count in range(5) for sides in combinations(range(2, 7), count)),
        key=lambda sides: sum(side * side for side in sides),
    )
)
# What the fields of a case are drawn from, simplest first; a value that is listed twice is drawn twice as often.
CHOICES: dict[str, Sequence[Any]] = {
    "patch_nums": SMALL,
    "V": (3, 5, 8, 13),
    "D": (16, 32),
    "depth": (1, 2),
    "shared_adaln": (False, True),
    "l2_norm": (True, False),
    "weights": range(6),
    "draft": (*QUALITIES, "close", "near", "single", "close"),
    "labels": ((0,), (2,), (3,), (0, 1), (1, 1), (0, 1, 2), (2, 3, 0)),
    "seed": range(1000),
    "cfg": (1.5, 0.0, 0.7071067811865476, 4.142135623730951, -0.5772156649015329, 40.333333333333336),
    "top_k": (0, 0, 1, 3),
    "top_p": (0.0, 0.0, 0.5, 0.9, 0.999),
    "order": ("image", "batch"),
    "draft_len": (1, 2, 3, 2, 1, 2, 3, 5),
    "bonus": (False, True, True, True),
    "policy": (
        "coupled", "rejection", "coupled", "rejection", "coupled", "rejection", "code:2", "rejection", "greedy",
        "match:0.5", "match:0.5+partial", "coupled-match:0.7", "topk-match:2:0.6", "topk-match:2:0.6+partial", "kl:0.1",
        "kl:0.3+partial", "handoff:1", "handoff:2", "collaborative:1", "collaborative:2", "coupled-match:0.4+partial",
        "middle:1:2",
    ),
    "dtype": ("float64", "float32", "bfloat16"),
    "draft_dtype": ("", "float32", "bfloat16"),
}  # fmt: skip
NINE = tuple(range(1, 10))
PYRAMIDS = (*SMALL, PATCH_NUMS_256)  # the real one is one in 32: a decode of 680 tokens takes some twenty times as long


@dataclass(frozen=True)
class Case:
    """Networks, request and settings, small enough to try hundreds of."""

    patch_nums: tuple[int, ...] = (1, 2)  # sides of the scales
    V: int = 5  # codebook size
    D: int = 16  # width of the target; two heads
    depth: int = 1  # blocks of the target
    shared_adaln: bool = False  # as in the largest published network
    l2_norm: bool = True  # attention on unit vectors
    weights: int = 0  # seed of all weights
    draft: str = "near"  # one of `QUALITIES`: from the target itself to one whose favourite is the target's last choice
    labels: tuple[int, ...] = (0,)  # classes 0..3; 3 is the unconditional one
    seed: int = 0  # of the request
    cfg: float = 1.5  # guidance value
    top_k: int = 0  # filter, 0 = off
    top_p: float = 0.0  # filter, 0 = off
    order: NoiseOrder = "image"  # whose noise streams (`Request.order`)
    draft_len: int = 2  # scales proposed per round; cut to the number of scales
    bonus: bool = False  # submit the scale after the drafted ones too
    policy: str = "coupled"  # coupling and acceptance rule, for decoders that offer several
    dtype: str = "float64"  # of the networks, one of `MODES`; most laws take float64 whatever it says (`Law.wide`)
    draft_dtype: str = ""  # of the draft, where it is another
    device: str = "cpu"  # of the networks
    exact: bool = True  # False: every law takes networks of `dtype`, and rounding is allowed for (`allowed`)
    family: str = "var"  # of the networks, one of `FAMILIES`

    def __post_init__(self) -> None:
        if (known := FAMILIES.get(self.family)) and known.V:
            object.__setattr__(self, "V", known.V)
            object.__setattr__(self, "top_k", min(self.top_k, known.V))

    def __repr__(self) -> str:
        """Name what differs from the defaults, so that a minimal case is a short line."""
        named = [(field, getattr(self, field.name)) for field in fields(self)]
        shown = [f"{field.name}={value!r}" for field, value in named if value != field.default]
        return f"Case({', '.join(shown)})"

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""
        return FAMILIES[self.family].pyramid(self)

    @property
    def models(self) -> ModelPair:
        """The networks; built once per process."""
        names = (
            "patch_nums", "V", "D", "depth", "shared_adaln", "l2_norm", "weights", "draft", "dtype", "draft_dtype",
            "device", "family",
        )  # fmt: skip
        return _models(Case(**{name: getattr(self, name) for name in names}))

    @property
    def request(self) -> Request:
        """What to sample."""
        return FAMILIES[self.family].request(self)

    def asked(self, request: Request, cfg: float) -> Request:
        """Return a request with the guidance of another value of `cfg`."""
        other = replace(self, cfg=cfg).request
        return replace(request, cfg=other.cfg, scale_guidance=other.scale_guidance)

    def guidance(self, cfg: float, pyramid: ScalePyramid) -> Guidance:
        """Return the guidance that a value of `cfg` stands for."""
        return FAMILIES[self.family].guidance(self, cfg, pyramid)

    @property
    def steps(self) -> FamilySteps:
        """What the reference does with the networks."""
        return family_of(self.models.target)

    def condition(self, network: Network) -> Condition:
        """Return the condition of the case's guidance rows."""
        return family_of(network).condition(network, self.request, self.labels_B)

    @property
    def settings(self) -> Settings:
        """How to speculate."""
        return Settings(self.length, self.bonus, self.policy)

    @property
    def length(self) -> int:
        """Scales proposed per round: `draft_len`, or all scales where there are fewer."""
        return min(self.draft_len, len(self.patch_nums))

    @property
    def B(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def at(self) -> torch.device:
        """Where the networks live."""
        return torch.device(self.device)

    @property
    def labels_B(self) -> Tensor:
        """Labels on the networks' device."""
        return torch.tensor(self.labels, device=self.at)

    @property
    def windows(self) -> list[tuple[int, int]]:
        """Every window (first, last) of scales; on pyramids of more than 120 tokens those that end early."""
        pyramid = self.pyramid
        return [(a, b) for b in pyramid for a in range(b + 1) if pyramid.end(b) <= 120]

    @property
    def long(self) -> Self:
        """The case on a pyramid of nine scales, smallest networks: it has long windows after the first scales."""
        return replace(self, patch_nums=NINE, V=min(self.V, 5), D=16, depth=1, labels=self.labels[:2])

    @property
    def long_windows(self) -> list[tuple[int, int]]:
        """Windows of seven scales and more that begin after scale 0, of a long case."""
        return [(a, b) for b in self.pyramid for a in range(1, b - 5)]

    @property
    def every_window(self) -> list[tuple[ScalePyramid, int, int]]:
        """Every window of the case's pyramid, and the long ones of a long one."""
        return [
            *((self.pyramid, *window) for window in self.windows),
            *((self.long.pyramid, *window) for window in self.long.long_windows),
        ]

    def without(self, declines: Sequence[str]) -> Self:
        """Return the case without what a decoder declines, of what the fields of a case can ask."""
        plainer: dict[str, dict[str, Any]] = {
            "bonus": {"bonus": False}, "several images": {"labels": self.labels[:1]}, "top_k": {"top_k": 0},
            "top_p": {"top_p": 0.0}, "guidance": {"cfg": 0.0}, "batch order": {"order": "image"},
        }  # fmt: skip
        return replace(self, **{name: value for word in declines for name, value in plainer.get(word, {}).items()})

    def at_least(self, scales: int) -> Self:
        """Return the case, on a pyramid of so many scales if it has fewer."""
        return self if len(self.patch_nums) >= scales else replace(self, patch_nums=tuple(range(1, scales + 1)))

    def wide(self) -> Self:
        """Return the case with float64 networks: no two computations of one logit differ in more than 1e-10."""
        return replace(self, dtype="float64", draft_dtype="")

    def noise(self, request: Request | None = None) -> SeededNoise:
        """Return fresh numbers for one decode."""
        return self.models.noise(request or self.request)

    def sequential(self, request: Request | None = None) -> Trace:
        """Return the sequential decode of the case's request, or of another one."""
        request, models = request or self.request, self.models
        return sample_sequential(models.target, models.vae, request, self.noise(request), greedy=self.settings.greedy)

    def generator(self) -> torch.Generator:
        """Return a CPU generator of the law's own, so that a case always tries the same numbers."""
        return torch.Generator().manual_seed(self.seed * 7919 + self.weights)

    def normal(self, *shape: int) -> Tensor:
        """Return float64 numbers ~ N(0, 1) on the networks' device, the same ones at every call."""
        return torch.randn(shape, generator=self.generator(), dtype=torch.float64).to(self.at)

    def random_tokens(self) -> Tensor:
        """Return tokens_BL of every draw, uniform over the codebook."""
        return torch.randint(self.V, (self.B, self.pyramid.draws.L), generator=self.generator()).to(self.at)


def forget_models() -> None:
    """Make all networks anew when they are next asked for: they are shared between cases."""
    _models.cache_clear()


@lru_cache(maxsize=64)
def _models(case: Case) -> ModelPair:
    return FAMILIES[case.family].models(case).in_mode(case.at, case.dtype, case.draft_dtype)


def _of_var(case: Case) -> ModelPair:
    config = TransformerConfig(
        case.pyramid, case.depth, case.D, 2, case.V, _C, CLASSES, shared_adaln=case.shared_adaln, l2_norm=case.l2_norm
    )
    return random_models(config, case.weights, case.draft)


@dataclass(frozen=True)
class CaseFamily:
    """What the fields of a case mean in a family."""

    pyramid: Callable[[Case], ScalePyramid]
    models: Callable[[Case], ModelPair]  # float64 or float32, on the CPU
    request: Callable[[Case], Request]
    guidance: Callable[[Case, float, ScalePyramid], Guidance]  # that a value of `cfg` stands for
    V: int = 0  # of every case; 0 = the case's own


# Of Infinity: bits a position, or a quarter where patchified, and texts of unequal lengths, 128 wide as pool heads are.
# The last text is what an unconditional row beside it reads, as the last label is no class in VAR.
_BITS, _LENGTHS, _A = 2, (3, 5, 1, 2), 128
_ROWS_TA = torch.randn(sum(_LENGTHS), _A, generator=torch.Generator().manual_seed(0)).split(_LENGTHS)


def _rectangles(case: Case) -> ScalePyramid:
    """Return standing and lying rectangles in turns, patchified where there are several and networks are deep."""
    patchified = case.depth > 1 and len(case.patch_nums) > 2
    both = [(pn, max(pn - 1, 1)) for pn in case.patch_nums]
    sides = tuple((w, h) if k % 2 else (h, w) for k, (h, w) in enumerate(both))
    return ScalePyramid(sides=sides, channels=_BITS * (4 if patchified else 1))


def _of_infinity(case: Case) -> ModelPair:
    h, w = case.pyramid.sides[-1]
    config = InfinityConfig(
        case.pyramid, 2 * case.depth, case.D, 2, _BITS, _A, max(_LENGTHS), ffn=256, pool_heads=1, chunks=2,
        full=(h + 3, w + 2), shared_adaln=case.shared_adaln, l2_norm=case.l2_norm, levels_once=case.shared_adaln,
        ca_gamma=case.weights % 2 == 1, norm0_ve=case.weights % 3 == 1, two_layer_head=case.weights % 3 == 2,
    )  # fmt: skip
    target, sizes = (
        _told_apart(InfinityTransformer, infinity_shapes, config, 1000 * case.weights),
        binary_config(_BITS, 32, (1,), res_blocks=0, has_encoder=False),
    )
    vae = InfinityAutoencoder(sizes, random_weights(infinity_autoencoder_shapes(sizes), 1000 * case.weights + 2))
    return ModelPair(_draft_of(target, case.draft, 1000 * case.weights), target, vae)


def _request_of_texts(case: Case) -> Request:
    texts = tuple(map(Rows, _ROWS_TA))
    negative = (*texts[1:3], texts[0], texts[3]) if case.order == "batch" else ()
    return Request(
        case.labels, case.seed, top_k=case.top_k, top_p=case.top_p, order=case.order, texts=texts,
        negative_texts=negative, scale_guidance=_by_scale(case, case.cfg, case.pyramid),
    )  # fmt: skip


def _by_scale(case: Case, cfg: float, pyramid: ScalePyramid) -> ScaleGuidance:
    """Return weights that grow from 1 on but for one scale, where guidance is off, and temperatures that differ."""
    weights = tuple(1.0 if si == 1 else 1 + cfg * (si + 1) / pyramid.S for si in pyramid)
    places = ((0,), (0, -1), (-1,), (1 - 2 * case.depth, 0))[case.seed % 4]  # the last: after the first of all blocks
    return ScaleGuidance(weights, tuple(1.0 + 0.25 * (si % 3) for si in pyramid), places)


FAMILIES = {
    "var": CaseFamily(
        lambda case: ScalePyramid(case.patch_nums),
        _of_var,
        lambda case: Request(case.labels, case.seed, case.cfg, case.top_k, case.top_p, order=case.order),
        lambda case, cfg, pyramid: cfg,
    ),
    "infinity": CaseFamily(_rectangles, _of_infinity, _request_of_texts, _by_scale, V=2),
}
_TELLING = ("pos_1LC", "pos_start", "lvl_embed.weight", "class_emb.weight")


def _told_apart(network: Any, shapes: Callable[[Any], Any], config: Any, seed: int) -> Any:
    """Return a network of random weights whose positions, scales and labels move every logit far beyond rounding."""
    weights = random_weights(shapes(config), seed)
    for name in weights.keys() & _TELLING:
        weights[name] = weights[name] / weights[name].std().clamp_min(1e-3)
    if "cfg_uncond" in weights:
        weights["cfg_uncond"] = torch.cat((_ROWS_TA[-1], _ROWS_TA[0]))
    last = "head.2.weight" if "head.2.weight" in weights else "head.weight"
    weights[last] = 1.5 * weights[last]
    return network(config, weights)


def _draft_of(target: Any, quality: str, seed: int) -> Any:
    """Return a draft of one of `QUALITIES`. Raises `InputError` for another word."""
    like = type(target), transformer_shapes if isinstance(target, Transformer) else infinity_shapes
    if quality == "identical":
        return target
    if quality == "far":
        return _told_apart(*like, replace(target.config, depth=getattr(target.config, "chunks", 1)), seed + 1)
    if quality == "adversarial":
        last = "head.2." if "head.2.weight" in target.weights else "head."
        negated = {name: -w if name.startswith(last) else w for name, w in target.weights.items()}
        return replace(target, weights=negated)
    if quality == "single" and "pos_1LC" in target.weights:
        return replace(target, weights=_few_positions_moved(target, seed))
    if quality not in _CHANGE:
        raise InputError("draft", quality, f"must be one of {', '.join(QUALITIES)}", "pass near")
    other = _told_apart(*like, target.config, seed + 1).weights
    share = _CHANGE[quality]
    mixed = {name: w * math.sqrt(1 - share * share) + share * other[name] for name, w in target.weights.items()}
    return replace(target, weights=mixed)


def _few_positions_moved(target: Transformer, seed: int) -> dict[str, Tensor]:
    """Move at most eight positions of one of the last two scales: a token or two is wrong there, hardly another."""
    pyramid = target.config.pyramid
    si = max(0, pyramid.S - 1 - seed // 1000 % 2)
    n = pyramid.tokens(si)
    # of more than 512 one or two: a share of wrong tokens so small is none in bfloat16
    count = 2 if n > 512 else min(8, max(1, n // 32))
    at = [pyramid.begin(si) + (seed // 1000 * 7 + n // count * k) % n for k in range(count)]
    pos_1LC = target.weights["pos_1LC"].clone()
    pos_1LC[:, at] *= -4
    return {**target.weights, "pos_1LC": pos_1LC}


def random_models(config: TransformerConfig, seed: int, quality: str) -> ModelPair:
    """Return a target, a draft of one of `QUALITIES`, and a quantiser whose φ layout goes with the seed."""
    target = _told_apart(Transformer, transformer_shapes, config, 1000 * seed)
    layout, phi = (("shared", 4), ("one", 1), ("per-scale", config.pyramid.S))[seed % 3]
    vae_config = AutoencoderConfig(
        config.V, config.C, 32, (1,), res_blocks=0, phi=phi, phi_layout=layout, has_encoder=False
    )
    vae_weights = random_weights(autoencoder_shapes(vae_config), 1000 * seed + 2)
    vae_weights["quantize.embedding.weight"] *= 2
    return ModelPair(_draft_of(target, quality, 1000 * seed), target, Autoencoder(vae_config, vae_weights))
