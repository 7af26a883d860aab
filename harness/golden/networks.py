"""The networks that recordings name: the shipped pair, or layouts filled by formula.

Promise: the same objects for the same sizes and device, so that nothing is built or calibrated twice.

Source: the recordings' README, "Networks without weights files".
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from harness.errors import InputError
from harness.golden.limits import check_fit, check_sizes, check_weights
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.network import TransformerConfig
from harness.models.pair import ModelPair, load_digits
from harness.models.sizes import count, filled_weights
from harness.models.transformer import Transformer
from harness.protocol.pyramid import ScalePyramid

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
