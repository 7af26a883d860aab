"""What several tests need: tiny networks of any layout, the shipped pair, recorded files, planted verifications."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from harness.implementations import Factory, Settings
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.pair import ModelPair, load_digits
from harness.models.sizes import filled_weights, random_weights
from harness.models.transformer import Transformer, TransformerConfig
from harness.pyramid import ScalePyramid
from harness.request import Request
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.verification import Verification, verify

RECORDED = Path(__file__).parent / "regression" / "recorded"
V, C, CLASSES = 11, 4, 3


@dataclass(frozen=True)
class Layout:
    """One way of building the networks; every field is a name in a checkpoint or not."""

    patch_nums: tuple[int, ...] = (1, 2, 3)
    shared_adaln: bool = False
    l2_norm: bool = True
    phi: int = 4
    phi_layout: str = "shared"
    depth: int = 2
    H: int = 2
    D: int = 16


LAYOUTS = {
    "plain": Layout(),
    "shared-adaln": Layout(shared_adaln=True),
    "no-l2norm": Layout(l2_norm=False, D=64, H=1),
    "one-phi": Layout((1, 2, 4), phi=1, phi_layout="one"),
    "phi-per-scale": Layout((1, 2, 3, 5), phi=4, phi_layout="per-scale"),
    "two-phi": Layout((1, 3, 4), phi=2),
    "one-scale": Layout((1,), depth=1),
}


def transformer_config(layout: Layout, depth: int | None = None) -> TransformerConfig:
    return TransformerConfig(
        ScalePyramid(layout.patch_nums), depth or layout.depth, layout.D, layout.H, V, C, CLASSES,
        layout.shared_adaln, layout.l2_norm,
    )  # fmt: skip


def autoencoder_config(layout: Layout, has_encoder: bool = True) -> AutoencoderConfig:
    return AutoencoderConfig(V, C, 32, (1, 2), 1, layout.phi, layout.phi_layout, has_encoder)


def random_transformer(config: TransformerConfig, seed: int) -> Transformer:
    return Transformer(config, random_weights(transformer.parameter_shapes(config), seed))


def random_autoencoder(config: AutoencoderConfig, seed: int) -> Autoencoder:
    return Autoencoder(config, random_weights(autoencoder.parameter_shapes(config), seed))


@lru_cache(maxsize=64)
def tiny(layout: Layout = Layout(), kin: float = 0.05, seed: int = 0) -> ModelPair:
    """Return a pair with random weights: the draft is the target moved by `kin`, so that it is right now and then.

    Args:
        layout: of all three networks.
        kin: standard deviation of what the draft's weights are away from the target's; inf = a stranger, 0 = a twin.
        seed: of the weights.
    """
    config = transformer_config(layout)
    target = random_transformer(config, seed)
    other = random_transformer(config, seed + 1)
    draft = other
    if kin != float("inf"):
        draft = Transformer(config, {name: w + kin * other.weights[name] for name, w in target.weights.items()})
    return ModelPair(draft, target, random_autoencoder(autoencoder_config(layout), seed + 2), "tiny")


@lru_cache(maxsize=1)
def digits() -> ModelPair:
    """Return the shipped pair, loaded once a process; callers must not write into its weights."""
    return load_digits()


def twins(models: ModelPair) -> ModelPair:
    """Return the pair whose draft is its target."""
    return replace(models, draft=models.target)


def with_weight(network: Transformer, name: str, change: Callable[[Tensor], Tensor]) -> Transformer:
    """Return a copy of a network with one tensor changed."""
    return replace(network, weights={**network.weights, name: change(network.weights[name].clone())})


def decoder_factory(parts: Parts = PARTS) -> Factory:
    """Return a factory of speculative decoders composed of `parts`."""
    return lambda models, settings: SpeculativeDecoder(models, Options(settings.draft_len, settings.bonus), parts)


def verified(
    models: ModelPair, request: Request, parts: Parts = PARTS, draft_len: int = 2, bonus: bool = False
) -> Verification:
    """Verify the speculative decoder composed of `parts` on one request."""
    return verify(models, decoder_factory(parts), [Settings(draft_len, bonus)], [request])


@lru_cache(maxsize=8)
def recorded(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of ``recorded-{name}.safetensors``."""
    with safe_open(RECORDED / f"recorded-{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118  # not a dict


def recorded_cases(name: str, sampler: str) -> list[dict[str, object]]:
    """Return the cases of one sampler, without reading the tensors."""
    with safe_open(RECORDED / f"recorded-{name}.safetensors", "pt") as file:
        cases = json.loads(file.metadata()["cases"])
    return [case for case in cases if case["sampler"] == sampler]


def recorded_request(case: dict) -> Request:
    """Return the request of a recorded case, in the published order of the numbers."""
    words = {word: case[word] for word in ("seed", "cfg", "top_k", "top_p", "more_smooth")}
    return Request(tuple(case["labels"]), **words, order="batch")


@lru_cache(maxsize=8)
def filled_pair(
    patch_nums: tuple[int, ...], depth: int, D: int, H: int, sizes: tuple[int, int, int], layout: tuple[bool, bool, str]
) -> ModelPair:
    """Return networks filled by the recordings' formula, draft and target the same.

    Args:
        patch_nums: of the pyramid.
        depth: of the transformer.
        D: its width.
        H: its heads.
        sizes: V, C, classes.
        layout: shared AdaLN, l2-norm, and φ as a recorded case words it.
    """
    (codes, channels, classes), (shared_adaln, l2_norm, phi) = sizes, layout
    config = TransformerConfig(ScalePyramid(patch_nums), depth, D, H, codes, channels, classes, shared_adaln, l2_norm)
    count, kind = {
        "4 shared": (4, "shared"),
        "2 shared": (2, "shared"),
        "1 shared": (1, "one"),
        "one a scale": (len(patch_nums), "per-scale"),
    }[phi]
    vae_config = AutoencoderConfig(codes, channels, 32, (1, 2), 2, count, kind)
    network = Transformer(config, filled_weights(transformer.parameter_shapes(config)))
    vae = Autoencoder(vae_config, filled_weights(autoencoder.parameter_shapes(vae_config)))
    return ModelPair(network, network, vae, "filled")


def pair_of_case(case: dict) -> ModelPair:
    """Return the networks of a recorded variant."""
    assert (case["vae_ch"], case["vae_mult"]) == (32, [1, 2])
    sizes = (case["V"], case["C"], case["classes"])
    layout = (case["shared_adaln"], case["l2_norm"], case["phi"])
    return filled_pair(tuple(case["patch_nums"]), case["depth"], case["D"], case["H"], sizes, layout)
