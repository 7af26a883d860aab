"""A draft, a target and the VQ-VAE between them.

Promise: the three fit together, or one error says in which size they do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from harness.errors import InputError, NonFiniteError
from harness.models.mode import parse_mode
from harness.models.network import Codec, Network, TransformerConfig
from harness.models.var import autoencoder, check_compiler, load_autoencoder, load_transformer, transformer
from harness.models.var.autoencoder import Autoencoder
from harness.models.var.sizes import PUBLISHED, PUBLISHED_VAE, random_weights
from harness.models.var.transformer import Transformer
from harness.protocol import RecordedNumbers, Request, Rows, ScaleGuidance, ScalePyramid, SeededNoise

# Of the draft of `--models digits-close`: every number of accepted scales from none to all of a window is then common.
DIGITS = Path(str(files("harness.models") / "digits"))  # the trained pair that ships
CLOSE_NOISE = 0.002
MOST_NOISE = 10
# Sizes of the draft that must be the target's.
ALIKE = ("family", "pyramid.patch_nums", "pyramid.sides", "pyramid.channels", "V", "C", "classes")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class ModelPair:
    """The networks of one speculative decoder. Raises `InputError` where patch_nums, V, C or classes differ."""

    draft: Network  # proposes
    target: Network  # decides
    vae: Codec  # turns tokens into f_hat and f_hat into pixels, for both
    name: str = "custom"  # for reports
    random: bool = False  # the weights are those of `random_pair`: error budgets hold for the law, not the draw
    numbers: RecordedNumbers | None = field(default=None, repr=False)  # that a replay takes in place of generated ones
    draft_noise: float | None = None  # how far the draft's weights are from the target's (`close_pair`); None = its own
    texts: tuple[Rows, ...] = field(default=(), repr=False)  # that ship with it, which labels of a request number
    taken: tuple[str, ...] = ()  # what was taken from where in their files, where that is not plain; a line a network

    def __post_init__(self) -> None:
        sizes = [("draft", size) for size in ALIKE] + [("vae", size) for size in ("V", "C")]
        for side, size in sizes:
            theirs, of_target = (attrgetter(size)(network.config) for network in (getattr(self, side), self.target))
            if theirs != of_target:
                rule = f"must equal the target's {of_target}"
                name = f"{side} {size.rpartition('.')[2]}"
                raise InputError(name, theirs, rule, "pass models trained as a pair")
        self.vae.check_for(self.pyramid)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show itself to Hypothesis and IPython as `repr` does: they would spell out every weight."""
        printer.text(repr(self))

    @property
    def title(self) -> str:
        """The name for a person; budgets go by `name`, since they are the target's."""
        if self.draft_noise is None:
            return self.name
        return f"{self.name}, close draft (noise {self.draft_noise:g})"

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales of both transformers."""
        return self.target.config.pyramid

    @property
    def conditions(self) -> int:
        """Number of conditions that it comes with: classes, or texts."""
        return self.target.config.classes or len(self.texts)

    def conditioned(self, request: Request) -> Request:
        """Return the request; one without texts with those that ship, guided at every scale by its cfg (1 is off)."""
        if request.texts or not self.texts:
            return request
        guidance = request.scale_guidance or ScaleGuidance((request.cfg,) * self.pyramid.S)
        return replace(request, texts=self.texts, scale_guidance=guidance)

    @property
    def vqvae(self) -> Autoencoder:
        """The autoencoder of VAR. Raises `InputError` where there is another one."""
        if not isinstance(self.vae, Autoencoder):
            rule = "is not of VAR, which alone has a VQ-VAE"
            raise InputError("models", self.title, rule, "pass networks of VAR")
        return self.vae

    @property
    def device(self) -> torch.device:
        """Where the target lives."""
        return self.target.device

    def noise(self, request: Request) -> SeededNoise:
        """Return fresh numbers for one run of `request` on these networks."""
        return SeededNoise(request, self.pyramid, self.target.config.V, self.device, recorded=self.numbers)

    def to(
        self, device: torch.device | str, dtype: torch.dtype = torch.float32, draft_dtype: torch.dtype | None = None
    ) -> Self:
        """Return a copy on `device`, the transformers in `dtype`, the quantiser in float32 at least (spec §3)."""
        latent = torch.promote_types(dtype, torch.float32)
        draft, target = self.draft.to(device, draft_dtype or dtype), self.target.to(device, dtype)
        return replace(self, draft=draft, target=target, vae=self.vae.to(device, latent))

    def in_mode(self, device: torch.device | str, mode: str, draft_mode: str = "") -> Self:
        """Return a copy on `device` in a mode of `MODES`, the draft in another one where that is named.

        The quantiser's products are computed as the target's; weights keep float32 at least, and pixels are made so.
        Raises `InputError` for another word, and where networks of this family do not compute inside autocast.
        """
        dtype, autocast = parse_mode("dtype", mode)
        draft_dtype, draft_autocast = parse_mode("draft_dtype", draft_mode or mode)
        pair = self.to(device, dtype, draft_dtype)
        if not (autocast or draft_autocast):
            return pair
        draft, target, vae = pair.draft, pair.target, pair.vae
        if not (isinstance(draft, Transformer) and isinstance(target, Transformer) and isinstance(vae, Autoencoder)):
            raise InputError("dtype", mode, "is a mode of networks of VAR alone", "pass --dtype bfloat16")
        draft, target = replace(draft, autocast=draft_autocast), replace(target, autocast=autocast)
        return replace(pair, draft=draft, target=target, vae=replace(vae, autocast=autocast))

    def wide(self) -> Self:
        """Return the pair in float64, where it is: the same numbers, as good as exact."""
        return self.to(self.device, torch.float64)

    def unrounded(self) -> Self:
        """Return the pair without rounding that is of its networks' law; itself where there is none."""
        sides: tuple[Any, Any] = (self.draft, self.target)
        if not any(getattr(network.config, "rounds", False) for network in sides):
            return self
        draft, target = (replace(network, config=replace(network.config, rounds=False)) for network in sides)
        return replace(self, draft=draft, target=target)

    def compiled(self, on: bool = True) -> Self:
        """Return the pair with its transformers' blocks compiled, or not. Raises `InputError` without a compiler."""
        if on:
            check_compiler()
        draft, target = (
            replace(network, compiled=on) if isinstance(network, Transformer) else network
            for network in (self.draft, self.target)
        )
        return replace(self, draft=draft, target=target)

    def first_scales(self, count: int) -> Self:
        """Return the pair on its first 1..S scales, as if made for them. Raises `InputError` where it cannot be cut."""
        if self.vqvae.config.phi_layout == "per-scale":
            raise InputError("scales", count, "cannot be cut: every scale has a φ of its own", "keep all scales")
        draft, target = self.draft, self.target
        if not (isinstance(draft, Transformer) and isinstance(target, Transformer)):
            raise InputError("scales", count, "cannot be cut: the networks are no transformers", "keep all scales")
        name = f"{self.name}, first {count} scales"
        return replace(self, draft=draft.first_scales(count), target=target.first_scales(count), name=name)

    def named_weights(self) -> dict[str, Tensor]:
        """Return every weight of the three, e.g. by ``target.head.weight``."""
        sides = {"draft": self.draft.weights, "target": self.target.weights, "vae": self.vae.weights}
        return {f"{side}.{name}": weight for side, weights in sides.items() for name, weight in weights.items()}

    def check_finite(self) -> None:
        """Refuse weights with NaN or infinity. Raises `NonFiniteError`, which names the first such tensor."""
        for word in ("target", "draft", "vae"):
            for name, tensor in getattr(self, word).weights.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise NonFiniteError(f"{word}.{name}")


def var_config(network: Network) -> TransformerConfig:
    """Return the sizes of a transformer of VAR. Raises `InputError` for a network of another family."""
    if not isinstance(network.config, TransformerConfig):
        raise InputError("family", network.config.family, "is not VAR", "pass networks of VAR")
    return network.config


@torch.inference_mode()
def checksums(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the checksum of every tensor by name: a change of any one number, by however little, changes it.

    Bits as integers, each times an odd number of its own, summed modulo 2^64: an odd factor hides no difference. On the
    tensors' device, since the bytes of a large network would take longer to travel than to add.
    """
    sums = {}
    for name, weight in weights.items():
        bits = weight.detach().contiguous().flatten().view(_BITS[weight.itemsize]).long()
        odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        sums[name] = int((bits * odd).sum())
    return sums


def load_digits(name: str = "digits") -> ModelPair:
    """Load the trained pair that ships with the package (MNIST, 10 scales, 680 tokens, 10 classes).

    `name` is ``digits``, or ``digits-code`` for another draft, which draws well what the target has begun.
    """
    sides = "draft-code" if name == "digits-code" else "draft", "target", "vae"
    draft, target, vae = (DIGITS / f"{each}.safetensors" for each in sides)
    return load_pair(draft, target, vae, name)


@torch.inference_mode()
def close_pair(models: ModelPair, noise: float, seed: int = 0) -> ModelPair:
    """Return the pair with another draft: its target, every weight moved by a stated amount.

    `noise` is the standard deviation of the change, in units of a tensor's root mean square, 0 to 10; 0 is the target.
    It is drawn on the CPU: the same draft on every device. Raises `InputError` for an amount outside its range.
    """
    if not 0 <= noise <= MOST_NOISE:
        raise InputError("draft_noise", noise, f"must lie in [0, {MOST_NOISE}]", f"pass --draft-noise {CLOSE_NOISE}")
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, weight in models.target.weights.items():
        change = torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)
        moved[name] = weight + noise * weight.float().square().mean().sqrt().to(weight.dtype) * change
    target: Any = models.target
    return replace(models, draft=replace(target, weights=moved), draft_noise=noise)


def random_pair(name: str, device: torch.device | str = "cpu", seed: int = 0) -> ModelPair:
    """Make a pair of published sizes, e.g. ``d16-d30``, with random weights, for tests of shape, rounding and speed.

    CPU and CUDA, where they are drawn, give different ones. Raises `InputError` for a size that was never published.
    """
    words = name.split("-")
    if len(words) != 2 or any(word not in PUBLISHED for word in words):
        sizes = ", ".join(PUBLISHED)
        rule = f"must be digits, digits-bits, or DRAFT-TARGET of {sizes}"
        raise InputError("models", name, rule, "pass --models d16-d30")
    sides = [PUBLISHED[word].pyramid.patch_nums for word in words]
    if sides[0] != sides[1]:  # known before the weights are drawn
        raise InputError("models", name, "draft and target must have the same patch_nums", "pass --models d16-d30")
    draft, target = (
        Transformer(PUBLISHED[word], random_weights(transformer.transformer_shapes(PUBLISHED[word]), seed + k, device))
        for k, word in enumerate(words)
    )
    vae = random_weights(autoencoder.autoencoder_shapes(PUBLISHED_VAE), seed + 2, device)
    return ModelPair(draft, target, Autoencoder(PUBLISHED_VAE, vae), f"{name} (random weights)", random=True)


def load_pair(
    draft: Path | str, target: Path | str, vae: Path | str, name: str = "custom",
    patch_nums: tuple[int, ...] | None = None, heads: tuple[int, ...] = (),
) -> ModelPair:  # fmt: skip
    """Load three checkpoints: files, folders of shards, FILE::ENTRY, or hf://OWNER/NAME/FILE (docs/checkpoints.md).

    `patch_nums` are the sides of the scales, where the files do not tell; `heads` are the attention's, where they do
    not tell: of both, or of the draft and of the target; 0 = it tells. Raises `InputError` as `load_transformer` and
    `ModelPair` do, or for another number of `heads`.
    """
    if len(heads) > 2:
        raise InputError("heads", heads, "must be one number, or the draft's and the target's", "pass two at most")
    of_draft, of_target = (*heads, *heads)[:2] if heads else (0, 0)
    small, said_of_draft = load_transformer(draft, "draft", patch_nums, of_draft)
    large, said_of_target = load_transformer(target, "target", patch_nums, of_target)
    codec, said_of_vae = load_autoencoder(vae)
    taken = tuple(filter(None, (said_of_draft, said_of_target, said_of_vae)))
    return ModelPair(small, large, codec, name, taken=taken)
