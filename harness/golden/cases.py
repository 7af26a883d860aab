"""One recorded case: what was asked of which sampler on which networks.

Promise: a case is understood whole or refused by name; nothing in it is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.pair import ModelPair, load_digits
from harness.models.sizes import filled_weights
from harness.models.transformer import Transformer, TransformerConfig
from harness.noise import SeededNoise
from harness.pyramid import ScalePyramid
from harness.reference import handoff, sequential
from harness.reference.handoff import HandOff
from harness.request import NoiseOrder, Request
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.trace import Trace

SAMPLERS = ("sequential", "test3", "speculative")
SIZES = ("patch_nums", "V", "C", "phi", "vae_ch", "vae_mult", "depth", "D", "H", "shared_adaln", "l2_norm", "classes")
LOGITS_STEP, LOGITS_DENSE = 16, 5  # digits: from scale 5 on every 16th position is kept
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Case:
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
    hand_off: HandOff = HandOff(0)
    options: Options = Options()
    f_hats: bool = False
    logits: str = "none"

    def in_dtype(self, dtype: torch.dtype) -> Case:
        """Return the case with networks of another dtype."""
        return replace(self, models=self.models.to(self.models.device, dtype))

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

    def sides(self) -> tuple[Transformer, ...]:
        """Networks that decide tokens."""
        if self.sampler == "test3":
            return self.models.draft, self.models.target
        return (self.models.draft if self.network == "draft" else self.models.target,)

    def logits_positions(self, si: int) -> slice:
        """Positions within scale `si` whose logits are recorded."""
        return slice(None, None, LOGITS_STEP if self.logits == "some" and si >= LOGITS_DENSE else 1)

    def shapes(self) -> Shapes:
        """Return dtype and shape of every tensor of the case but `rounds`, whose length the decode decides."""
        pyramid, vae, B = self.models.pyramid, self.models.vae.config, self.request.B
        side = pyramid.P * vae.downsampling
        map_shape = (B, vae.C, pyramid.P, pyramid.P)
        shapes: Shapes = {
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


def parse(case: dict[str, Any], models_name: str, device: torch.device) -> Case:
    """Understand one case.

    Args:
        case: plain values of the file's metadata.
        models_name: "digits" or "filled".
        device: where to run it.

    Raises:
        InputError: a key is missing, or a value does not fit; the case is named.
    """
    name = str(case.get("id", "without id"))
    try:
        return _parse(case, name, models_name, device)
    except InputError as error:
        raise InputError(f"case {name}: {error.name}", error.value, error.rule, error.remedy) from None
    except KeyError as error:
        raise InputError(f"case {name}", "metadata", f"lacks {error}", "record it again") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"case {name}", "metadata", f"has a value of a wrong type ({error})", "record it") from None


def _parse(case: dict[str, Any], name: str, models_name: str, device: torch.device) -> Case:
    if case["sampler"] not in SAMPLERS:
        raise InputError("sampler", case["sampler"], f"must be one of {', '.join(SAMPLERS)}", "record it again")
    models = networks(case, models_name).to(device)
    labels = case["labels"]
    count = case.get("count", case.get("B", 0)) if labels is None else 0
    request = Request(
        None if labels is None else tuple(labels), int(case["seed"]), float(case["cfg"]), int(case["top_k"]),
        float(case["top_p"]), bool(case["more_smooth"]), cast(NoiseOrder, case.get("order", "batch")), count=count,
    )  # fmt: skip
    request.check_against(models.target.config.classes, models.target.config.V)
    parsed = Case(name, case["sampler"], request, models, f_hats=bool(case.get("deep", False)))
    default = "all" if models_name == "filled" else "some" if parsed.f_hats else "none"
    parsed = replace(parsed, logits=case.get("logits", default))
    if parsed.sampler == "sequential":
        network = case.get("model", "target") if models_name == "filled" else case["model"]
        if network not in ("draft", "target"):
            raise InputError("model", network, "must be draft or target", "record it again")
        return replace(parsed, network=network)
    if parsed.sampler == "test3":
        mode = case.get("mode", "recorded")
        return replace(parsed, hand_off=HandOff(int(case["entry_num"]), int(case["sd_mask"]), mode))
    return replace(parsed, options=Options(int(case["draft_len"]), bool(case["bonus"])))


def networks(case: dict[str, Any], models_name: str) -> ModelPair:
    """Return the float32 CPU networks of a case. Raises `InputError` for unknown models or sizes that do not fit."""
    if models_name == "digits":
        return _digits()
    if models_name != "filled":
        raise InputError("models", models_name, "must be digits or filled", "pass a recording of known networks")
    draft = (int(case.get("draft_depth", case["depth"])), int(case.get("draft_D", case["D"])))
    values = tuple(tuple(case[key]) if isinstance(case[key], list) else case[key] for key in SIZES)
    return filled(values, *draft, int(case.get("draft_H", case["H"])))


_digits = cache(load_digits)


@cache
def filled(values: tuple[Any, ...], draft_depth: int, draft_D: int, draft_H: int) -> ModelPair:
    """Return networks filled by formula; `values` in the order of `SIZES`."""
    v = dict(zip(SIZES, values, strict=True))
    target = TransformerConfig(
        ScalePyramid(v["patch_nums"]), v["depth"], v["D"], v["H"], v["V"], v["C"], v["classes"], v["shared_adaln"],
        v["l2_norm"],
    )  # fmt: skip
    draft = replace(target, depth=draft_depth, D=draft_D, H=draft_H)
    if v["phi"] == "one a scale":
        phi, layout = target.pyramid.S, "per-scale"
    else:
        number, _, word = str(v["phi"]).partition(" ")
        if word != "shared" or not number.isdigit() or number == "0":
            raise InputError("phi", v["phi"], 'must read "N shared" or "one a scale"', "record it again")
        phi, layout = int(number), "one" if number == "1" else "shared"
    vae = AutoencoderConfig(v["V"], v["C"], v["vae_ch"], v["vae_mult"], phi=phi, phi_layout=layout)
    return ModelPair(
        Transformer(draft, filled_weights(transformer.parameter_shapes(draft))),
        Transformer(target, filled_weights(transformer.parameter_shapes(target))),
        Autoencoder(vae, filled_weights(autoencoder.parameter_shapes(vae))),
        "filled",
    )
