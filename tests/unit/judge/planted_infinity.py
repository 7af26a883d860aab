"""Mistakes planted in parts of the harness's own decoder for Infinity, and the component that must be named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.network import Condition, Network
from harness.protocol import Request, Rows
from harness.protocol.pyramid import ScalePyramid
from harness.reference import _infinity as plain
from harness.speculative.parts import INFINITY, Parts
from tests.unit.speculative.test_infinity import GUIDANCE, REQUEST, TEXTS

BY_SCALE = ((0, 0.0), (1, 0.0), (0, 0.9), (0, 0.0), (2, 0.6))


def at(*places: int) -> Request:
    return replace(REQUEST, scale_guidance=replace(GUIDANCE, places=places))


REQUESTS = [
    REQUEST,  # w = 1 at one scale, guided at the others
    replace(at(-1), labels=(1,)),
    replace(at(0, -1), labels=(2, 0), seed=9),
    replace(REQUEST, negative_texts=TEXTS[::-1], filters=BY_SCALE),
    replace(REQUEST, order="batch", top_p=0.9),
    replace(REQUEST, scale_guidance=replace(GUIDANCE, weights=(1.0,) * 5)),
]


def where(change: Callable[[Tensor, ScalePyramid, int, int], Tensor]) -> Parts:
    """Put rows elsewhere: of the right places of all positions."""

    def positions(network: Network, first: int, last: int) -> Tensor:
        return change(INFINITY.positions(network, 0, network.pyramid.S - 1), network.pyramid, first, last)

    return replace(INFINITY, positions=positions)


def from_the_window(where_L3: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    return where_L3[: pyramid.end(last) - pyramid.begin(first)]


def exchanged(where_L3: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    return where_L3[pyramid.begin(first) : pyramid.end(last), [0, 2, 1]]


def other_rule(**change: object) -> Parts:
    """Put rows where the reference would put those of another network."""

    def positions(network: Network, first: int, last: int) -> Tensor:
        return plain.positions(replace(network, config=replace(network.config, **change)), first, last)

    return replace(INFINITY, positions=positions)


def first_level(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = INFINITY.build_combined_query(network, condition, raw_BnC, first, last)
    levels = torch.tensor(network.pyramid.levels()[network.pyramid.begin(first) : network.pyramid.end(last)])
    return x_RnD - network.lvl_SD[levels] + network.lvl_SD[first]


def asked(change: Callable[[Request, Network], Request]) -> Parts:
    """Make the condition of another request."""

    def condition_rows(network: Network, request: Request, labels_B: Tensor) -> Condition:
        return INFINITY.condition_rows(network, change(request, network), labels_B)

    return replace(INFINITY, condition_rows=condition_rows)


def other_texts(request: Request, network: Network) -> Request:
    texts, nothing_XA = request.texts, network.weights["cfg_uncond"].float()
    kept = request.negative_texts or tuple(Rows(nothing_XA[: len(rows.numbers_TA)]) for rows in texts)
    return replace(request, texts=texts[1:] + texts[:1], negative_texts=kept)


def longest(request: Request, network: Network) -> Request:
    return replace(request, negative_texts=(Rows(network.weights["cfg_uncond"].float()),) * len(request.texts))


def ours(request: Request, network: Network) -> Request:
    return replace(request, negative_texts=request.texts)


def next_length(request: Request, network: Network) -> Request:
    nothing_XA, lengths = network.weights["cfg_uncond"], [len(rows.numbers_TA) for rows in request.texts]
    return replace(request, negative_texts=tuple(Rows(nothing_XA[:n]) for n in lengths[1:] + lengths[:1]))


def one_place(*places: int) -> Callable[[Request, Network], Request]:
    return lambda request, _: replace(request, scale_guidance=replace(request.scale_guidance, places=places))


def area(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return F.interpolate(f_hat, pyramid.sides[si], mode="area").flatten(2).mT


def coarse(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return F.interpolate(f_hat, pyramid.sides[si], mode="nearest").flatten(2).mT


def nearest(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    return f_hat + F.interpolate(quantizer.codes(idx_Bl, *pyramid.sides[si]), f_hat.shape[2:], mode="nearest")


def reordered(change: Callable[[Tensor], Tensor]) -> Parts:
    """Take a position's bits (B,l,N) otherwise."""

    def accumulate(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
        bits_BlN = change(idx_Bl.unflatten(1, (-1, pyramid.channels)))
        return INFINITY.accumulate(f_hat, bits_BlN.flatten(1), si, quantizer, pyramid)

    return replace(INFINITY, accumulate=accumulate)


def turned(bits_BlN: Tensor) -> Tensor:
    return bits_BlN.unflatten(-1, (4, 2, 2)).mT.flatten(-3)


def without_temperature(rows: Tensor, pyramid: ScalePyramid, guidance: Any, first: int, last: int) -> Tensor:
    return INFINITY.guide(rows, pyramid, replace(guidance, temperatures=()), first, last)


def first_weight(rows: Tensor, pyramid: ScalePyramid, guidance: Any, first: int, last: int) -> Tensor:
    weights = guidance.weights[:1] * pyramid.S
    return INFINITY.guide(rows, pyramid, replace(guidance, weights=weights), first, last)


def over_bits(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
    return INFINITY.filter_logits(logits_BnV.unflatten(1, (-1, 4)).mT, top_k, top_p).mT.flatten(1, 2)


def level_before(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = INFINITY.build_combined_query(network, condition, raw_BnC, first, last)
    levels = torch.tensor(network.pyramid.levels()[network.pyramid.begin(first) : network.pyramid.end(last)])
    return x_RnD - network.lvl_SD[levels] + network.lvl_SD[(levels - 1).clamp_min(0)]


def one_number(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    return INFINITY.draw(probs_BnV, E_BnV[:, :1].expand_as(E_BnV))


def counted(by_height: bool, rounded: Callable[[Tensor], Tensor]) -> Parts:
    """Put rows where nearly rule 2 does."""

    def change(where_L3: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
        found = []
        for si in range(first, last + 1):
            (h, w), place_l = pyramid.sides[si], torch.arange(pyramid.tokens(si))
            y_l, x_l = divmod_(place_l, h if by_height else w)
            found.append(torch.stack((torch.full_like(y_l, si), rounded(y_l * (9 / h)), rounded(x_l * (12 / w))), 1))
        return torch.cat(found).double()

    return where(change)


def divmod_(place_l: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return (place_l // width).float(), (place_l % width).float()


def half_up(x: Tensor) -> Tensor:
    return (x + 0.5).floor()


def of_the_first(where_L3: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    """Say of all rows of a pass that they are of its first scale: guidance between blocks reads that."""
    rows_n3 = where_L3[pyramid.begin(first) : pyramid.end(last)].clone()
    rows_n3[:, 0] = first
    return rows_n3


def marked(level: Callable[[int, int], int]) -> Parts:
    """Say of the rows of a scale, in passes from another on, that they are of a third: guidance between blocks."""

    def change(where_L3: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Tensor:
        rows_n3 = where_L3[pyramid.begin(first) : pyramid.end(last)].clone()
        rows_n3[:, 0] = torch.tensor([level(int(si), first) for si in rows_n3[:, 0]])
        return rows_n3

    return where(change)


def copied(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Let scales that are not guided copy their conditional rows to both halves."""
    condition = INFINITY.condition_rows(network, request, labels_B)
    weights = tuple(1 + 1e-6 if w == 1 else w for w in condition.guidance.weights)
    return replace(condition, guidance=replace(condition.guidance, weights=weights))


def cut(request: Request, network: Network) -> Request:
    pairs = zip(request.texts, request.negative_texts, strict=True)
    kept = tuple(Rows(negative.numbers_TA[: len(own.numbers_TA)]) for own, negative in pairs)
    return replace(request, negative_texts=kept)


def padded(request: Request, network: Network) -> Request:
    against = plain_negative(request, network)
    every = [tuple(Rows(F.pad(r.numbers_TA, (0, 0, 0, 6 - len(r.numbers_TA)))) for r in rows)
             for rows in (request.texts, against)]  # fmt: skip
    return replace(request, texts=every[0], negative_texts=every[1])


def plain_negative(request: Request, network: Network) -> tuple[Rows, ...]:
    nothing_XA = network.weights["cfg_uncond"].float()
    return tuple(Rows(nothing_XA[: len(rows.numbers_TA)]) for rows in request.texts)


def one_more(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Let every scale see the first position of the next."""
    mask_11nK = INFINITY.attention_mask(pyramid, first, last, device, dtype)
    return F.pad(mask_11nK[..., :-1], (1, 0))


def resized_by(patch: int = 1, **mode: Any) -> Parts:
    def next_input(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
        size = tuple(patch * side for side in pyramid.sides[si])
        return F.pixel_unshuffle(F.interpolate(f_hat, size, **mode), patch).flatten(2).mT

    return replace(INFINITY, next_input=next_input)


def aligned(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    codes = quantizer.codes(idx_Bl, *pyramid.sides[si])
    return f_hat + F.interpolate(codes, f_hat.shape[2:], mode="bilinear", align_corners=True)


def place_first(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    raw_BlN = INFINITY.next_input(f_hat, si, pyramid)
    return raw_BlN.unflatten(2, (-1, 4)).mT.flatten(2)


def weighted(*weights: float) -> Request:
    return replace(at(-1), scale_guidance=replace(at(-1).scale_guidance, weights=weights))


# name -> the decoder's parts, the component that must be named, and what is asked where that is another request
BUGS: dict[str, tuple[Parts, str, Request]] = {
    "angles from the window's first position": (where(from_the_window), "positions", REQUEST),
    "rows and columns exchanged": (where(exchanged), "positions", REQUEST),
    "positions of rule 0": (other_rule(rule=0), "positions", REQUEST),
    "full sides of the last scale": (other_rule(full=(4, 6)), "positions", REQUEST),
    "level of a window's first scale": (replace(INFINITY, build_combined_query=first_level), "level", REQUEST),
    "another text": (asked(other_texts), "text", REQUEST),
    "another text beside a negative one": (asked(other_texts), "text", REQUESTS[3]),
    "unconditional rows of the own text": (asked(ours), "text", REQUEST),
    "negative text ignored": (asked(lambda request, _: replace(request, negative_texts=())), "text", REQUESTS[3]),
    "unconditional rows of all lengths": (asked(longest), "unconditional length", REQUEST),
    "guidance not between blocks": (asked(one_place(0)), "guidance place", at(-1)),
    "guidance not between blocks, off at scale 0": (
        asked(one_place(0)),
        "guidance place",
        weighted(1.0, 3.0, 3.0, 1.0, 1.0),
    ),
    "guidance between blocks, too": (asked(one_place(0, -1)), "guidance place", REQUEST),
    "temperature left out": (replace(INFINITY, guide=without_temperature), "guidance", REQUEST),
    "another resize of the input": (replace(INFINITY, next_input=area), "resize", REQUEST),
    "another resize of codes": (replace(INFINITY, accumulate=nearest), "resize", REQUEST),
    "bits reversed": (reordered(lambda bits: bits.flip(-1)), "bits", REQUEST),
    "bits channel by channel": (reordered(lambda b: b.mT.reshape(b.shape)), "bits", REQUEST),
    "rows and columns of a patch exchanged": (reordered(turned), "bits", REQUEST),
    "level of the scale before": (replace(INFINITY, build_combined_query=level_before), "level", REQUEST),
    "negative text of the next image": (
        asked(lambda request, _: replace(request, negative_texts=request.texts)),
        "text",
        REQUESTS[3],
    ),
    "unconditional rows of the next text's length": (asked(next_length), "unconditional length", REQUEST),
    "guidance a block later": (asked(one_place(-1)), "guidance place", at(-2)),
    "weight of the first scale everywhere": (replace(INFINITY, guide=first_weight), "guidance", REQUEST),
    "bits negated": (reordered(lambda bits: 1 - bits), "bits", REQUEST),
    "input of the nearest": (replace(INFINITY, next_input=coarse), "resize", REQUEST),
    "filter over a position's bits": (
        replace(INFINITY, filter_logits=over_bits),
        "filter",
        replace(REQUEST, top_p=0.9),
    ),
    "one number for all": (replace(INFINITY, draw=one_number), "draw", REQUEST),
    "coordinates rounded half up": (counted(False, half_up), "positions", REQUEST),
    "coordinates cut off": (counted(False, torch.floor), "positions", at(0, -1)),
    "rows and columns counted by the height": (counted(True, torch.round), "positions", REQUEST),
    "weight of a pass's first scale between blocks": (where(of_the_first), "guidance", at(-1)),
    "levels counted from a pass's first scale": (marked(lambda si, first: si - first), "guidance", at(-1)),
    "levels of the scale before": (marked(lambda si, first: max(si - 1, 0)), "guidance", at(-1)),
    "level of one scale alone": (marked(lambda si, first: 4 if si == 3 else si), "guidance", at(0, -1)),
    "weight of a pass's first scale, all others off": (
        where(of_the_first),
        "guidance",
        weighted(3.0, 1.0, 1.0, 1.0, 1.0),
    ),
    "conditional rows copied where guidance is off": (
        replace(INFINITY, condition_rows=copied),
        "guidance",
        at(-1),
    ),
    "negative text cut to the text's length": (asked(cut), "text", REQUESTS[3]),
    "padding of texts read": (asked(padded), "text", REQUEST),
    "a mask one position late": (replace(INFINITY, attention_mask=one_more), "mask", REQUEST),
    "input by antialiasing": (resized_by(mode="bilinear", antialias=True), "resize", REQUEST),
    "input of patches by area": (resized_by(2, mode="area"), "resize", REQUEST),
    "codes with aligned corners": (replace(INFINITY, accumulate=aligned), "resize", REQUEST),
    "a patch's place before its channel in the input": (replace(INFINITY, next_input=place_first), "bits", REQUEST),
}
