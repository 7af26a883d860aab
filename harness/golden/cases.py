"""One recorded case: what was asked of which sampler on which networks.

Promise: a case is understood whole or refused by name; nothing in it is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden.limits import check_batch
from harness.golden.networks import networks
from harness.models.network import Network
from harness.models.pair import ModelPair
from harness.protocol.noise import SeededNoise
from harness.protocol.request import ORDERS, NoiseOrder, Request
from harness.protocol.trace import Trace
from harness.reference import handoff, sequential
from harness.reference.handoff import HandOff
from harness.speculative.sampler import Options, SpeculativeDecoder

SAMPLERS = ("sequential", "test3", "speculative")
LOGITS_STEP, LOGITS_DENSE = 16, 5  # digits: from scale 5 on every 16th position is kept
TensorShapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
Number = TypeVar("Number", int, float, bool)


@dataclass(frozen=True)
class RecordedCase:
    """A case that fits its networks.

    Args:
        id: first part of the names of its tensors.
        sampler: one of `SAMPLERS`.
        request: what was drawn.
        models: networks.
        network: "target" or "draft" (`sequential`).
        hand_off: of `test3`.
        options: of `speculative`.
        f_hats: f_hat after every scale is recorded too.
        logits: "none", "some" (digits) or "all" positions.
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
        models = self.models
        noise = SeededNoise(self.request, models.pyramid, models.target.config.V, models.device)
        if self.sampler == "test3":
            return handoff.sample(models, self.request, noise, self.hand_off, forced_BL)
        if self.sampler == "speculative" and forced_BL is None:
            return SpeculativeDecoder(models, self.options).decode(self.request, noise)
        network = models.draft if self.network == "draft" else models.target
        return sequential.sample(network, models.vae, self.request, noise, forced_BL)

    def exact(self, forced_BL: Tensor | None = None) -> Trace:
        """Run in float64, on the same numbers."""
        return replace(self, models=self.models.to(self.models.device, torch.float64)).run(forced_BL)

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
        raise InputError(f"case {name}", "metadata", f"lacks {error}", "record it again") from None


def _parse(case: dict[str, Any], name: str, models_name: str, device: torch.device) -> RecordedCase:
    if case["sampler"] not in SAMPLERS:
        raise InputError("sampler", case["sampler"], f"must be one of {', '.join(SAMPLERS)}", "record it again")
    models = networks(case, models_name, device)
    request = _request(case)
    request.check_against(models.target.config.classes, models.target.config.V)
    check_batch(request.B, models.pyramid, models.target.config, models.vae.config.downsampling)
    deep = _value({"deep": False, **case}, "deep", bool)
    default = "all" if models_name == "filled" else "some" if deep else "none"
    parsed = RecordedCase(name, case["sampler"], request, models, f_hats=deep, logits=case.get("logits", default))
    if parsed.logits not in ("none", "some", "all"):
        raise InputError("logits", parsed.logits, "must be none, some or all", "record it again")
    if parsed.sampler == "sequential":
        network = case.get("model", "target") if models_name == "filled" else case["model"]
        if network not in ("draft", "target"):
            raise InputError("model", network, "must be draft or target", "record it again")
        return replace(parsed, network=network)
    if parsed.sampler == "test3":
        mode = case.get("mode", "recorded")  # the published format knows one behaviour only
        return replace(parsed, hand_off=HandOff(_value(case, "entry_num", int), _value(case, "sd_mask", int), mode))
    options = Options(_value(case, "draft_len", int), _value(case, "bonus", bool))
    SpeculativeDecoder(models, options)  # refuses what does not fit
    return replace(parsed, options=options)


def _request(case: dict[str, Any]) -> Request:
    labels = case["labels"]
    if labels is not None and not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise InputError("labels", labels, "must be a list of integers, or null for drawn ones", "record it again")
    numbers = (_value(case, "cfg", float), _value(case, "top_k", int), _value(case, "top_p", float))
    return Request(
        None if labels is None else tuple(labels), _value(case, "seed", int), *numbers,
        _value(case, "more_smooth", bool), _order(case),
        count=_value(case, "count", int) if labels is None else 0,
    )  # fmt: skip


def _order(case: dict[str, Any]) -> NoiseOrder:
    """Return whose noise streams; those of the batch where a case does not say. Raises `InputError`."""
    named = case.get("order", "batch")
    for order in ORDERS:
        if order == named:
            return order
    raise InputError("order", named, f"must be one of {', '.join(ORDERS)}", "record it again")


def _value(case: dict[str, Any], key: str, kind: type[Number]) -> Number:
    """Return ``case[key]``, of exactly this kind; an integer may stand for a float. Raises `InputError`."""
    value = case[key]
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise InputError(key, value, f"must be of type {kind.__name__}", "record it again")
    try:
        return kind(value)
    except OverflowError:  # an integer of hundreds of digits
        raise InputError(key, value, "must be a number that a float holds", "record it again") from None
