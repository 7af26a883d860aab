"""One recorded case: what was asked of which sampler on which networks.

Promise: a case is understood whole or refused by name; nothing in it is guessed. The same sizes on the same device are
the same networks, so that nothing is built or calibrated twice.

Source: the recordings' README, "Networks without weights files".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden.store import REMEDY, check_batch, check_fit, check_sizes, check_weights
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.network import Network, TransformerConfig
from harness.models.pair import ModelPair, load_digits
from harness.models.sizes import count, filled_weights
from harness.models.transformer import Transformer
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import ORDERS, Request
from harness.protocol.trace import Trace
from harness.reference.handoff import HandOff, sample_handoff
from harness.reference.sequential import sample_sequential
from harness.speculative.sampler import Options, SpeculativeDecoder

SIZES = ("patch_nums", "V", "C", "phi", "vae_ch", "vae_mult", "depth", "D", "H", "shared_adaln", "l2_norm", "classes")
CPU = torch.device("cpu")


def networks(case: dict[str, Any], models_name: str, device: torch.device = CPU) -> ModelPair:
    """Return the float32 networks of a case, the same objects for the same arguments.

    Raises:
        InputError: unknown models, or sizes that do not fit or that no recording has.
    """
    if models_name == "digits":
        return _digits(device)
    if models_name != "filled":
        raise InputError("models", models_name, "must be digits or filled", "pass a recording of known networks")
    check_sizes(case)
    values = tuple(tuple(case[key]) if isinstance(case[key], list) else case[key] for key in SIZES)
    draft = (case.get("draft_depth", case["depth"]), case.get("draft_D", case["D"]), case.get("draft_H", case["H"]))
    return filled(values, draft, device)


@cache
def _digits(device: torch.device) -> ModelPair:
    return load_digits().to(device)


@cache
def filled(values: tuple[Any, ...], draft_sizes: tuple[int, int, int], device: torch.device) -> ModelPair:
    """Return networks filled by formula.

    Args:
        values: in the order of `SIZES`.
        draft_sizes: depth, D and H of the draft.
        device: where they lie.
    """
    v = dict(zip(SIZES, values, strict=True))
    target = TransformerConfig(
        ScalePyramid(v["patch_nums"]), v["depth"], v["D"], v["H"], v["V"], v["C"], v["classes"], v["shared_adaln"],
        v["l2_norm"],
    )  # fmt: skip
    depth, D, H = draft_sizes
    draft = replace(target, depth=depth, D=D, H=H)
    if v["phi"] == "one a scale":
        phi, layout = target.pyramid.S, "per-scale"
    else:
        phi = int(v["phi"].removesuffix(" shared"))
        layout = "one" if phi == 1 else "shared"
    vae = AutoencoderConfig(v["V"], v["C"], v["vae_ch"], v["vae_mult"], phi=phi, phi_layout=layout)
    check_fit((draft, target), vae)
    of_draft, of_target = transformer.parameter_shapes(draft), transformer.parameter_shapes(target)
    of_vae = autoencoder.parameter_shapes(vae)
    for shapes in (of_draft, of_target, of_vae):
        check_weights(count(shapes))
    return ModelPair(
        Transformer(draft, filled_weights(of_draft)),
        Transformer(target, filled_weights(of_target)),
        Autoencoder(vae, filled_weights(of_vae)),
        "filled",
    ).to(device)


SAMPLERS = ("sequential", "test3", "speculative")
SIDES = ("draft", "target")
LOGITS = ("none", "some", "all")
LOGITS_STEP, LOGITS_DENSE = 16, 5  # digits: from scale 5 on every 16th position is kept
TensorShapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
Number = TypeVar("Number", int, float, bool)
Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class RecordedCase:
    """A case that fits its networks.

    Args:
        id: first part of the names of its tensors.
        sampler: one of `SAMPLERS`.
        request: what was drawn.
        models: networks.
        network: one of `SIDES` (`sequential`).
        hand_off: of `test3`.
        options: of `speculative`.
        f_hats: f_hat after every scale is recorded too.
        logits: one of `LOGITS`, "some" positions (digits).
    """

    id: str
    sampler: str
    request: Request
    models: ModelPair
    network: str = "target"
    hand_off: HandOff = field(default_factory=lambda: HandOff(0))
    options: Options = field(default_factory=Options)
    f_hats: bool = False
    logits: str = "none"

    def run(self, forced_BL: Tensor | None = None) -> Trace:
        """Run the sampler; teacher-forced, a speculative decode becomes the sequential one that it must equal."""
        models, noise = self.models, self.models.noise(self.request)
        if self.sampler == "test3":
            return sample_handoff(models, self.request, noise, self.hand_off, forced_BL)
        if self.sampler == "speculative" and forced_BL is None:
            return SpeculativeDecoder(models, self.options).decode(self.request, noise)
        return sample_sequential(self.sides()[0], models.vae, self.request, noise, forced_BL)

    def exact(self, forced_BL: Tensor | None = None) -> Trace:
        """Run in float64, on the same numbers."""
        return replace(self, models=self.models.wide()).run(forced_BL)

    def sides(self) -> tuple[Network, ...]:
        """Networks that decide tokens."""
        if self.sampler == "test3":
            return self.models.draft, self.models.target
        return (self.models.draft if self.network == "draft" else self.models.target,)

    def logits_positions(self, si: int) -> slice:
        """Positions within scale `si` whose logits are recorded."""
        return slice(None, None, LOGITS_STEP if self.logits == "some" and si >= LOGITS_DENSE else 1)

    def shapes(self) -> TensorShapes:
        """Return dtype and shape of every tensor of the case but `rounds`, whose length the decode decides."""
        pyramid, vae, B = self.models.pyramid, self.models.vae.config, self.request.B
        side = pyramid.P * vae.downsampling
        map_shape = (B, vae.C, pyramid.P, pyramid.P)
        shapes: TensorShapes = {
            "tokens": (torch.int16, (B, pyramid.L)),
            "f_hat": (torch.float32, map_shape),
            "image": (torch.float32, (B, 3, side, side)),
        }
        for si in pyramid:
            if self.f_hats:
                shapes[f"f_hat/{si}"] = (torch.float32, map_shape)
            if self.logits != "none":
                kept = len(range(pyramid.tokens(si))[self.logits_positions(si)])
                shapes[f"logits/{si}"] = (torch.float32, (B, kept, vae.V))
        return shapes


def parse(case: dict[str, Any], models_name: str, device: torch.device) -> RecordedCase:
    """Understand one case.

    Args:
        case: plain values of the file's metadata.
        models_name: "digits" or "filled".
        device: where to run it.

    Raises:
        InputError: a key is missing, or a value does not fit; the case is named.
    """
    name = case["id"]
    try:
        return _parse(case, name, models_name, device)
    except InputError as error:
        raise InputError(f"case {name}: {error.name}", error.value, error.rule, error.remedy) from None
    except KeyError as error:
        raise InputError(f"case {name}", "metadata", f"lacks {error}", REMEDY) from None


def _parse(case: dict[str, Any], name: str, models_name: str, device: torch.device) -> RecordedCase:
    sampler = _one_of("sampler", case["sampler"], SAMPLERS)
    models = networks(case, models_name, device)
    request = _request(case)
    request.check_against(models.target.config.classes, models.target.config.V)
    check_batch(request.B, models.pyramid, models.target.config, models.vae.config.downsampling)
    deep, filled = "deep" in case and _value(case, "deep", bool), models_name == "filled"
    default = "all" if filled else "some" if deep else "none"
    logits = _one_of("logits", case.get("logits", default), LOGITS)
    parsed = RecordedCase(name, sampler, request, models, f_hats=deep, logits=logits)
    if sampler == "sequential":
        side = case.get("model", "target") if filled else case["model"]
        return replace(parsed, network=_one_of("model", side, SIDES))
    if sampler == "test3":
        mode = case.get("mode", "recorded")  # the published format knows one behaviour only
        return replace(parsed, hand_off=HandOff(_value(case, "entry_num", int), _value(case, "sd_mask", int), mode))
    options = Options(_value(case, "draft_len", int), _value(case, "bonus", bool))
    SpeculativeDecoder(models, options)  # refuses what does not fit
    return replace(parsed, options=options)


def _request(case: dict[str, Any]) -> Request:
    labels = case["labels"]
    if labels is not None and not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise InputError("labels", labels, "must be a list of integers, or null for drawn ones", REMEDY)
    numbers = (_value(case, "cfg", float), _value(case, "top_k", int), _value(case, "top_p", float))
    return Request(
        None if labels is None else tuple(labels), _value(case, "seed", int), *numbers,
        _value(case, "more_smooth", bool),
        _one_of("order", case.get("order", "batch"), ORDERS),  # the published order
        count=_value(case, "count", int) if labels is None else len(labels),
    )  # fmt: skip


def _one_of(key: str, value: object, words: tuple[Word, ...]) -> Word:
    """Return the word that a case says. Raises `InputError` where it is none of these."""
    for word in words:
        if word == value:
            return word
    raise InputError(key, value, f"must be one of {', '.join(words)}", REMEDY)


def _value(case: dict[str, Any], key: str, kind: type[Number]) -> Number:
    """Return ``case[key]``, of exactly this kind; an integer may stand for a float. Raises `InputError`."""
    value = case[key]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise InputError(key, value, f"must be of type {kind.__name__}", REMEDY)
    try:
        return kind(value)
    except OverflowError:  # an integer of hundreds of digits
        raise InputError(key, value, "must be a number that a float holds", REMEDY) from None
