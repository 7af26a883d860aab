"""What sampling does with a network, by family: looked up once, by the word that the network's sizes say.

Promise: a family is one row of `FAMILIES`, and its functions one module here; nobody else asks which family it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.errors import InputError
from harness.models import ModelPair
from harness.models.network import Condition, Network
from harness.protocol import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference import _infinity as infinity
from harness.reference import _var as var

Other = tuple[str, str, Network, Request]


@dataclass(frozen=True)
class FamilySteps:
    """One function a step; those of VAR state the contracts."""

    condition: Callable[[Network, Request, Tensor], Condition]  # of the guidance rows of images, by their labels_B
    input: Callable[[Network, Condition, Tensor | None, int], Tensor]  # x_RlD of a scale; no raw input at scale 0
    # where the rows of scales first..last sit, for `Network.hidden`; None where the input says it
    positions: Callable[[Network, int, int], Tensor | None]
    guide: Callable[[Tensor, Any, int, int], Tensor]  # guided_BlV of rows_RlV; (rows, `Request.guidance`, si, S)
    # f_hat after a scale; (f_hat, its codes, si, the codebook, scales)
    accumulate: Callable[[Tensor, Tensor, int, Any, ScalePyramid], Tensor]
    next_input: Callable[[Tensor, int, ScalePyramid], Tensor]  # raw_BlC of a scale, from f_hat before it
    resize: str  # how `next_input` resizes f_hat, a mode of `F.interpolate`
    example: Callable[[ModelPair, int, int], Request]  # (models, images, seed): what budgets are measured with
    # the codes of `Request.more_smooth`, (logits_BlV, E', code vectors, si/(S-1)), where the family reads it
    smooth_codes: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    # mistakes of the family's own, as (component, clause, network, request) in the place of right ones;
    # (network, request, label)
    others: Callable[[Network, Request, int], Iterator[Other]] | None = None


VAR = FamilySteps(
    var.condition, var.scale_input, var.positions, var.guide, var.accumulate, var.next_input, "area",
    var.example, var.smooth_codes,
)  # fmt: skip
INFINITY = FamilySteps(
    infinity.condition, infinity.scale_input, infinity.positions, infinity.guide, infinity.accumulate,
    infinity.next_input, "bilinear", infinity.example, others=infinity.others,
)  # fmt: skip
FAMILIES = {"var": VAR, "infinity": INFINITY}


def family_of(network: Network) -> FamilySteps:
    """Return what is done with a network. Raises `InputError` for a family that nobody wrote."""
    name = network.config.family
    if name not in FAMILIES:
        raise InputError("family", name, f"must be one of {', '.join(FAMILIES)}", "pass networks of one of these")
    return FAMILIES[name]
