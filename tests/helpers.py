"""What several tests need: tiny networks of any layout, the shipped pair, recorded files, planted verifications."""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

from harness.__main__ import main
from harness.decoders._factory import Factory
from harness.decoders._runner import Terms
from harness.laws import LAWS, Law
from harness.models._pair import ModelPair, load_digits
from harness.models.network import TransformerConfig
from harness.models.var import autoencoder, transformer
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.var.sizes import random_weights
from harness.models.var.transformer import Transformer
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference import _steps as families
from harness.reference import sequential
from harness.runs import _database as seals
from harness.runs._result import Verification
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from harness.verification import verify

RECORDED = Path(__file__).parent / "regression" / "recorded"
V, C, CLASSES = 11, 4, 3


@contextmanager
def hearing(number: int = signal.SIGINT) -> Iterator[None]:
    """Hear a signal as Python does, however this run of tests was started: behind `nohup`, or a shell's `&`, too."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def seal_anew(base: sqlite3.Connection) -> None:
    """Make all seals of a run file anew, as somebody does who knows how."""
    places = [place for (place,) in base.execute("SELECT place FROM seals ORDER BY number")]
    contents, before = dict(seals._rows(base)), seals.BEGIN
    base.execute("DELETE FROM seals")
    for place in dict.fromkeys([*(place for place in places if place in contents), *contents]):
        before = seals._digest(f"{before} {place} {contents[place]}")
        base.execute("INSERT INTO seals (place, content, digest) VALUES (?, ?, ?)", (place, contents[place], before))


def some(n: int, items: Sequence[Any]) -> list[Any]:
    """Return parameters of which every n-th is tried every time, and all of them in `tox -e slow`."""
    return [
        item if k % n == 0 else pytest.param(*_values(item), marks=pytest.mark.slow) for k, item in enumerate(items)
    ]


def _values(item: Any) -> Sequence[Any]:
    return item if isinstance(item, tuple) else (item,)


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
    return Transformer(config, random_weights(transformer.transformer_shapes(config), seed))


def random_autoencoder(config: AutoencoderConfig, seed: int) -> Autoencoder:
    return Autoencoder(config, random_weights(autoencoder.autoencoder_shapes(config), seed))


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


def laws_of(family: str) -> list[Law]:
    """Return the laws of a family, in order."""
    return [law for law in LAWS if law.family == family]


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
    return lambda models, settings: SpeculativeDecoder(
        models, DecoderOptions(settings.draft_len, settings.bonus), parts
    )


def verify_here(
    models: ModelPair, factory: Factory, settings: Sequence[Settings], requests: Sequence[Request], **terms: Any
) -> Verification:
    """Verify in this process: a process for every tiny network would take longer than the tests."""
    return verify(models, factory, settings, requests, terms=Terms(in_process=True, **terms))


def verified(
    models: ModelPair, request: Request, parts: Parts = PARTS, draft_len: int = 2, bonus: bool = False
) -> Verification:
    """Verify the speculative decoder composed of `parts` on one request."""
    return verify_here(models, decoder_factory(parts), [Settings(draft_len, bonus)], [request])


@lru_cache(maxsize=8)
def recorded(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of ``recorded-{name}.safetensors``."""
    with safe_open(RECORDED / f"recorded-{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118  # not a dict


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["sdvar-harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def bend(monkeypatch: pytest.MonkeyPatch, name: str, thing: object) -> None:
    """Put something else in the place of a step of the reference: one of VAR, or one of every family's."""
    if name in {field.name for field in fields(families.FamilySteps)}:
        monkeypatch.setitem(families.FAMILIES, "var", replace(families.VAR, **{name: thing}))
    else:
        monkeypatch.setattr(sequential, name, thing)
