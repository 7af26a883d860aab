"""Bugs planted in the toy family's decoder: each is caught, and named by what made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.judge._verdict import Verdict
from harness.models.network import Condition, Network
from harness.mutants._mutant import judgement
from harness.protocol import Request, Settings
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import Acceptance, Proposal, Window
from harness.speculative.parts import Parts
from harness.speculative.sampler import SpeculativeDecoder, build_decoder
from tests.bits.fast import PARTS
from tests.bits.network import N
from tests.bits.plain import TEXTS
from tests.bits.test_decode import FILTERED, REQUEST, UNGUIDED, pair
from tests.helpers import verify_here


def _where(change: Callable[[Tensor, ScalePyramid, int, int], Tensor]) -> Parts:
    """Put rows elsewhere: of the right places of all positions."""

    def positions(network: Network, first: int, last: int) -> Tensor:
        return change(PARTS.positions(network, 0, network.pyramid.S - 1), network.pyramid, first, last)

    return replace(PARTS, positions=positions)


def _from_the_window(where_L2: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    return where_L2[: pyramid.end(last) - pyramid.begin(first)]


def _exchanged(where_L2: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    return where_L2[pyramid.begin(first) : pyramid.end(last)].flip(-1)


def _first_level(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = PARTS.build_combined_query(network, condition, raw_BnC, first, last)
    levels = torch.tensor(network.pyramid.levels()[network.pyramid.begin(first) : network.pyramid.end(last)])
    return x_RnD - network.lvl_SD[levels] + network.lvl_SD[first]


def _guided(change: Callable[[Any, int], Any]) -> Parts:
    def guide(rows: Tensor, pyramid: ScalePyramid, guidance: Any, first: int, last: int) -> Tensor:
        return PARTS.guide(rows, pyramid, change(guidance, first), first, last)

    return replace(PARTS, guide=guide)


def _one_weight(guidance: Any, first: int) -> Any:
    return replace(guidance, weights=(guidance.weights[first],) * len(guidance.weights))


def _area(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return F.interpolate(f_hat, pyramid.sides[si], mode="area").flatten(2).mT


def _nearest(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    return f_hat + F.interpolate(quantizer.codes(idx_Bl, *pyramid.sides[si]), pyramid.sides[-1], mode="nearest")


def _channels_apart(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    """Take bits for N maps, one behind the other."""
    return PARTS.accumulate(f_hat, idx_Bl.unflatten(1, (N, -1)).mT.flatten(1), si, quantizer, pyramid)


def _longest(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Give every unconditional row all there is, whatever its text."""
    nothing = network.weights["nothing"]
    own = [[*(rows.numbers_TA for rows in TEXTS), nothing][label] for label in labels_B.tolist()]
    return network.condition(own + [nothing] * len(own))


def _other_text(network: Network, request: Request, labels_B: Tensor) -> Condition:
    return PARTS.condition_rows(network, request, labels_B.roll(1))


def _one_number(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    """Use a position's first number for all of its channels."""
    first = E_BnV.unflatten(1, (-1, N))[:, :, :1].expand(-1, -1, N, -1)
    return PARTS.draw(probs_BnV, first.flatten(1, 2))


def _any_channel(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
    """Accept a position of which one bit is right."""
    accepted = judged.accepted_bn.unflatten(1, (-1, N)).any(-1, keepdim=True).expand(-1, -1, N).flatten(1)
    return replace(judged, accepted_bn=accepted, whole_bs=window.whole(accepted))


def _by_position(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> list[Tensor]:
    return list(window_BnX.split(pyramid.counts[first : last + 1], 1))


# no image of the unconditional label, to which more than one mistake gives the same
REQUESTS = [replace(request, labels=(0, 1, 2, 1)) for request in (REQUEST, FILTERED)]
# name -> the decoder, and the component that must be named
BUGS: dict[str, tuple[Parts | Any, str]] = {
    "rotation counted from the window": (_where(_from_the_window), "positions"),
    "row and column exchanged": (_where(_exchanged), "positions"),
    "level of a window's first scale": (replace(PARTS, build_combined_query=_first_level), "level"),
    "temperature left out": (_guided(lambda guidance, first: replace(guidance, temperatures=())), "guidance"),
    "weight of a window's first scale": (_guided(_one_weight), "guidance"),
    "another resize of the input": (replace(PARTS, next_input=_area), "resize"),
    "another resize of the codes": (replace(PARTS, accumulate=_nearest), "resize"),
    "channels one after the other": (replace(PARTS, accumulate=_channels_apart), "bits"),
    "unconditional text too long": (replace(PARTS, condition_rows=_longest), "condition"),
    "another image's text": (replace(PARTS, condition_rows=_other_text), "condition"),
    "one number a position": (replace(PARTS, draw=_one_number), "draw"),
    "one right bit is enough": (judgement(_any_channel), "accept"),
    "draws taken for positions": (replace(PARTS, split_logits_by_scale=_by_position), "crash"),
}


ALONE = (
    "rotation counted from the window",
    "another resize of the input",
    "another image's text",
    "one right bit is enough",
)


@pytest.mark.parametrize(
    ("name", "requests"),
    [(name, REQUESTS) for name in BUGS] + [(name, [replace(UNGUIDED, labels=(0, 1, 2, 1))]) for name in ALONE],
)
def test_a_planted_bug_is_caught_and_named(name: str, requests: list[Request]):
    bug, component = BUGS[name]

    def build(models, settings):
        decoder = build_decoder(models, settings)
        return SpeculativeDecoder(models, decoder.options, bug) if isinstance(bug, Parts) else bug(models, settings)

    result = verify_here(pair(torch.float32), build, [Settings(3), Settings(2, True)], requests)
    assert result.verdict is Verdict.DEFECT
    first = result.first_divergence
    assert first is not None
    assert first.component == component, first


def test_a_rotation_gone_wrong_is_told_from_a_mask():
    def hidden_start(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        mask = PARTS.attention_mask(pyramid, first, last, device, dtype).clone()
        mask[..., 1:, 0] = float("-inf")
        return mask

    def build(models, settings):
        parts = replace(PARTS, attention_mask=hidden_start)
        return SpeculativeDecoder(models, build_decoder(models, settings).options, parts)

    first = verify_here(pair(torch.float32), build, [Settings(3)], [REQUEST]).first_divergence
    assert first is not None
    assert first.component == "mask"
