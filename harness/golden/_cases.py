"""One recorded case on its networks, and the run of the sampler that it names.

Promise: a case fits its networks or is refused by name; nothing in it is guessed. The same sizes on the same device are
the same networks, so that nothing is built or calibrated twice.

Source: the recordings' README, "Networks without weights files".
"""

from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden._metadata import GoldenCase, Recipe, check_batch, check_fit, check_weights, naming
from harness.models import ModelPair, load_digits, var_config
from harness.models.network import Network, TransformerConfig
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_shapes
from harness.models.var.sizes import count_scalars, filled_weights
from harness.models.var.transformer import Transformer, transformer_shapes
from harness.protocol import Request, Trace
from harness.protocol.pyramid import ScalePyramid
from harness.reference import HandOff, sample_handoff
from harness.reference.sequential import sample_sequential
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder

CPU = torch.device("cpu")
LOGITS_STEP, LOGITS_DENSE = 16, 5  # digits: from scale 5 on every 16th position is kept
Stated = TypeVar("Stated")
TensorShapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def recorded_networks(case: GoldenCase, models_name: str, device: torch.device = CPU) -> ModelPair:
    """Return the float32 networks of a case, cached. Raises `InputError`, and `KeyError` where it lacks sizes."""
    if models_name == "digits":
        return _digits(device)
    if models_name != "filled":
        raise InputError("models", models_name, "must be digits or filled", "pass a recording of known networks")
    return filled(_needed("patch_nums", case.recipe), device)


@cache
def _digits(device: torch.device) -> ModelPair:
    return load_digits().to(device)


@cache
def filled(recipe: Recipe, device: torch.device) -> ModelPair:
    target = TransformerConfig(
        ScalePyramid(recipe.patch_nums), recipe.depth, recipe.D, recipe.H, recipe.V, recipe.C, recipe.classes,
        recipe.shared_adaln, recipe.l2_norm,
    )  # fmt: skip
    draft = replace(
        target, depth=recipe.draft_depth or target.depth, D=recipe.draft_D or target.D, H=recipe.draft_H or target.H
    )
    if recipe.phi == "one a scale":
        phi, layout = target.pyramid.S, "per-scale"
    else:
        phi = int(recipe.phi.removesuffix(" shared"))
        layout = "one" if phi == 1 else "shared"
    vae = AutoencoderConfig(recipe.V, recipe.C, recipe.vae_ch, recipe.vae_mult, phi=phi, phi_layout=layout)
    check_fit((draft, target), vae)
    shapes = transformer_shapes(draft), transformer_shapes(target), autoencoder_shapes(vae)
    for each in shapes:
        check_weights(count_scalars(each))
    of_draft, of_target, of_vae = map(filled_weights, shapes)
    pair = ModelPair(Transformer(draft, of_draft), Transformer(target, of_target), Autoencoder(vae, of_vae), "filled")
    return pair.to(device)


@dataclass(frozen=True)
class RecordedCase:
    """A case that fits its networks."""

    id: str  # first part of the names of its tensors
    sampler: str  # one of `SAMPLERS`
    request: Request  # what was drawn
    models: ModelPair  # networks
    network: str = "target"  # one of `SIDES` (`sequential`)
    hand_off: HandOff = field(default_factory=lambda: HandOff(0))  # of `test3`
    options: DecoderOptions = field(default_factory=DecoderOptions)  # of `speculative`
    f_hats: bool = False  # f_hat after every scale is recorded too
    logits: str = "none"  # one of `LOGITS`, "some" positions (digits)

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

    def logits_at(self, si: int) -> slice:
        """Positions of scale `si` whose logits are recorded."""
        span, step = self.models.pyramid.span(si), LOGITS_STEP if self.logits == "some" and si >= LOGITS_DENSE else 1
        return slice(span.start, span.stop, step)

    def shapes(self) -> TensorShapes:
        """Return dtype and shape of every tensor of the case but `rounds`, whose length the decode decides."""
        pyramid, vae, B = self.models.pyramid, self.models.vqvae.config, self.request.B
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
                recorded = len(range(pyramid.L)[self.logits_at(si)])
                shapes[f"logits/{si}"] = (torch.float32, (B, recorded, vae.V))
        return shapes


def parse(case: GoldenCase, models_name: str, device: torch.device) -> RecordedCase:
    """Fit one case to its networks. Raises `InputError`, which names the case, where something is missing or unfit."""
    with naming(case.id):
        models, labels = recorded_networks(case, models_name, device), case.labels
        count = len(labels) if labels is not None else _needed("count", case.count)
        order = case.order or "batch"  # the published order
        request = Request(labels, order=order, count=count, **asdict(case.drawing))
        request.check_against(models.target.config.classes, models.target.config.V)
        check_batch(request.B, models.pyramid, var_config(models.target), models.vqvae.config.downsampling)
        filled_ones = models_name == "filled"
        logits = case.logits or ("all" if filled_ones else "some" if case.deep else "none")
        fitted = RecordedCase(case.id, case.sampler, request, models, f_hats=bool(case.deep), logits=logits)
        if case.sampler == "sequential":
            side = case.model or ("target" if filled_ones else None)
            return replace(fitted, network=_needed("model", side))
        if case.sampler == "test3":
            mode: Any = case.mode or "recorded"  # the published format knows one behaviour only
            hand_off = HandOff(_needed("entry_num", case.entry_num), _needed("sd_mask", case.sd_mask), mode)
            return replace(fitted, hand_off=hand_off)
        options = DecoderOptions(_needed("draft_len", case.draft_len), _needed("bonus", case.bonus))
        SpeculativeDecoder(models, options)  # refuses what does not fit
        return replace(fitted, options=options)


def _needed(key: str, value: Stated | None) -> Stated:
    """Return what a case must state. Raises `KeyError`."""
    if value is None:
        raise KeyError(key)
    return value
