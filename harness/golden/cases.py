"""One recorded case: what was asked of which sampler on which networks.

Promise: a case is understood whole or refused by name; nothing in it is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden.limits import REMEDY, check_batch
from harness.golden.networks import networks
from harness.models.network import Network
from harness.models.pair import ModelPair
from harness.protocol.request import ORDERS, Request
from harness.protocol.trace import Trace
from harness.reference import handoff, sequential
from harness.reference.handoff import HandOff
from harness.speculative.sampler import Options, SpeculativeDecoder

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
            return handoff.sample(models, self.request, noise, self.hand_off, forced_BL)
        if self.sampler == "speculative" and forced_BL is None:
            return SpeculativeDecoder(models, self.options).decode(self.request, noise)
        return sequential.sample(self.sides()[0], models.vae, self.request, noise, forced_BL)

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
