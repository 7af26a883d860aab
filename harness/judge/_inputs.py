"""What a wrong input of the network is: another row's, rounded, or made of something else, or sitting elsewhere.

Promise: an input is content plus position term (spec §4), so every content at hand is taken away, and what is left is
looked up among the terms of all positions: content and position are named apart, and both where both are wrong.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.judge._evidence import Evidence, Named
from harness.judge._rounded import SHORT, rounding_of
from harness.judge._suspects import (
    asked_otherwise,
    drafted_f_hats,
    labels_tried,
    made_of_other_tokens,
    other_positions,
    other_row,
    round_of,
    scale_of_drafts,
    with_scale,
)
from harness.reference import family_of

SWAPPED = {"inputs": "rows", "logits": "guidance"}  # the part that puts the halves of these in order
# of a resize, those that are tried
MODES: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in ("nearest", "bilinear", "bicubic", "area")}
MODES["bilinear with aligned corners"] = {"mode": "bilinear", "align_corners": True}
MODES["bilinear with antialiasing"] = {"mode": "bilinear", "antialias": True}


def wrong_input(evidence: Evidence, image: int, si: int, error: float) -> Named:
    """Return what the input of one image at one scale is, which differs from the expected one by more than `error`."""
    actual, expected = evidence.actual.shown, evidence.expected.shown
    span, both = evidence.models.pyramid.span(si), evidence.request.rows_of(image)
    halves = [bool(((actual.x_RLD[row, span] - expected.x_RLD[row, span]).abs() <= error).all()) for row in both]
    for component, clause, walk in asked_otherwise(evidence, image, 0) if si == 0 else ():
        if bool(((actual.x_RLD[both, span] - walk.input(None, 0)).abs() <= error).all()):
            return component, f"the input of scale 0 is as if {clause}"
    if si == 0 and (labels := _unconditional_labels(evidence, error)):
        return "condition", f"the unconditional rows of scale 0 are those of {labels}"
    if si and (scale := scale_of_drafts(evidence, actual.x_RLD[image, span], image, si, error)) is not None:
        turn = round_of(evidence, image, si)
        if turn is not None and scale >= turn.first:
            return "accept", f"scale {si} was made final after tokens of scale {scale} that its input does not hold"
        detail = f"the input of scale {si} is made of what was drafted at scale {scale}, in an earlier round"
        return "next input", detail
    tensors = actual.x_RLD[both, span], expected.x_RLD[:, span]
    if (misplaced := misplaced_rows(evidence, image, tensors, error, si, "inputs")) is not None:
        return misplaced
    if word := rounding_of(evidence, image, si, lambda shown, row: shown.x_RLD[row :: len(shown.guided_BLV), span]):
        return "precision", f"the input of scale {si} is the right one, rounded to {word}"
    if si and any(halves):
        return "rows", f"the input of scale {si} is wrong{_half(halves)}"
    if (known := _known_content(evidence, image, si, error)) is not None:
        return known
    if (at := other_positions(tensors[0], expected.x_RLD[both], span, error)) is not None:
        detail = f"the input of scale {si} is that of positions {at}..{at + evidence.models.pyramid.tokens(si) - 1}"
        return "split", f"{detail}, not {span.start}..{span.stop - 1}"
    if si == 0:
        other = _labels_of(evidence, image, halves, error)
        return "condition", f"the input of scale 0 is not that of its label{_half(halves)}{other}"
    if _is_of_a_map(evidence, actual.x_RLD[image, span], si, error):
        return "next input", f"the input of scale {si} is made of another map than its f_hat"
    return "query", f"the input of scale {si} is made of no map at all"


@torch.inference_mode()
def _is_of_a_map(evidence: Evidence, x_lD: Tensor, si: int, error: float) -> bool:
    """Tell whether an input is the embedding of something, at its own position; nothing can tell where D is small."""
    network, pyramid = evidence.models.target, evidence.models.pyramid
    C = network.config.raw
    if network.config.D <= 2 * C:
        return False
    unit_nC = torch.cat((torch.zeros(1, C), torch.eye(C))).to(x_lD)
    made_nD = network.embed(unit_nC[None])[0].double()
    weight_CD = made_nD[1:] - made_nD[:1]
    content_lD = (x_lD - network.lvl_SD[si] - network.pos_LD[pyramid.span(si)]).double() - made_nD[0]
    raw_Cl = torch.linalg.lstsq(weight_CD.T, content_lD.T).solution
    return bool(((weight_CD.T @ raw_Cl).T - content_lD).abs().max() <= 2 * error)


def misplaced_rows(
    evidence: Evidence, image: int, tensors: tuple[Tensor, Tensor], error: float, si: int, what: str
) -> Named | None:
    """Tell whether a guidance row holds what belongs to another one: halves swapped or mixed, or images.

    `tensors` are the decoder's of this image's rows, and the expected one of all rows; `what` is inputs or logits.
    """
    (actual_2lX, expected_RlX), B, rows = tensors, evidence.request.B, evidence.request.rows_of(image)
    own_2lX = expected_RlX[rows]
    swapped = bool(((actual_2lX.flip(0) - own_2lX).abs() <= error).all())
    if swapped and bool(((own_2lX[0] - own_2lX[-1]).abs() > 2 * error).any()):
        return SWAPPED[what], f"the {what} of scale {si} have their halves swapped: unconditional half first"
    for own, actual_lX in zip(rows, actual_2lX, strict=True):
        if (other := other_row(actual_lX, expected_RlX, own, B, error)) is None:
            continue
        detail = f"guidance row {own} of scale {si} holds what belongs to row {other}"
        if (own < B) != (other < B):
            return "rows", f"{detail}, of the other half"
        if si:  # the input of scale 0 is its label's: another image's is a wrong condition
            return "rows", detail
    return None


def _unconditional_labels(evidence: Evidence, error: float) -> str:
    """Say whose labels all unconditional inputs of scale 0 have: each its image's, or all one image's; else nothing."""
    actual, expected, span = evidence.actual.shown, evidence.expected.shown, evidence.models.pyramid.span(0)
    B, (found_RX, due_RX) = evidence.request.B, (each.x_RLD[:, span].flatten(1) for each in (actual, expected))
    right_R = ((found_RX - due_RX).abs() <= error).all(1)
    if bool(right_R[B:].all()):  # or there are none
        return ""
    has_BB = ((found_RX[B:, None] - due_RX[:B]).abs() <= error).all(2)  # [row, whose label]
    if bool(right_R[:B].all()) and bool(has_BB.diagonal().all()):
        return "the images' own labels"
    is_its_B = has_BB.all(0).tolist()
    if not any(is_its_B) or all(is_its_B):
        return ""
    return f"label {int(evidence.numbers.labels(evidence.models.target.config.classes)[is_its_B.index(True)])}"


def _labels_of(evidence: Evidence, image: int, halves: list[bool], error: float) -> str:
    """Say of which other label an image's inputs of scale 0 are, where it is one that is tried."""
    network, family, span = evidence.models.target, family_of(evidence.models.target), evidence.models.pyramid.span(0)
    if family.others is not None:  # which know of texts
        return ""
    labels = labels_tried(evidence)
    condition = family.condition(network, evidence.request, torch.tensor(labels, device=network.device))
    x_RlD = family.input(network, condition, None, 0)[: len(labels)]
    found = (evidence.actual.shown.x_RLD[row, span] for row in evidence.request.rows_of(image))
    near = [((x_RlD - x_lD).abs() <= error).flatten(1).all(1).tolist() for x_lD in found]
    wrong = [str(labels[each.index(True)]) for each, ok in zip(near, halves, strict=True) if any(each) and not ok]
    return f": it is that of label {' and '.join(wrong)}" if wrong else ""


def _half(right: list[bool]) -> str:
    """Say which guidance half is wrong where the other one is right."""
    if all(right) or not any(right):
        return ""
    return f" in the {'unconditional' if right[0] else 'conditional'} row alone"


def _known_content(evidence: Evidence, image: int, si: int, error: float) -> Named | None:
    """Look the input up among known contents at any position; the right content first, at another position."""
    actual = evidence.actual.shown
    pyramid, network = evidence.models.pyramid, evidence.models.target
    span, x_lD = pyramid.span(si), actual.x_RLD[image, pyramid.span(si)]
    part = "positions" if bool(network.pos_LD.any()) else "level"  # inputs may say nothing of positions
    for component, clause, content_lD in _contents(evidence, image, si, error):
        left_lD = x_lD - content_lD
        if bool(((left_lD - network.lvl_SD[si] - network.pos_LD[span]).abs() <= error).all()):
            if clause:
                return component, f"the input of scale {si} is made of {clause}"
        elif (seats := _seats(evidence, left_lD, error)) is not None:
            terms = _terms(evidence, si, *seats)
            if clause:
                return component, f"the input of scale {si} is made of {clause}, with {terms}"
            return part, f"inputs of scale {si} carry {terms}"
        elif not clause and (other := _other_terms(evidence, left_lD, si, error)):
            return part, f"inputs of scale {si} carry {other}"
    return None


def _other_terms(evidence: Evidence, term_lD: Tensor, si: int, error: float) -> str:
    """Say which of its terms an input does not carry, or twice; empty where it is neither."""
    network = evidence.models.target
    level_D, pos_lD = network.lvl_SD[si], network.pos_LD[evidence.models.pyramid.span(si)]
    due_lD = level_D + pos_lD
    terms = {
        "no level term": pos_lD, "no position term": level_D.expand_as(pos_lD),
        "neither a position nor a level term": 0 * due_lD, "their position and level terms twice": 2 * due_lD,
        **({} if si else {"no start term": due_lD - network.start_1D}),
    }  # fmt: skip
    return next((what for what, other_lD in terms.items() if bool(((term_lD - other_lD).abs() <= error).all())), "")


def _seats(evidence: Evidence, term_lD: Tensor, error: float) -> tuple[Tensor, Tensor] | None:
    """Return position and level of every row whose term these are, wherever it sits; None where one is none's."""
    network = evidence.models.target
    for rows_lD in (term_lD[:1], term_lD):
        # [level, row, position]: how far a row is from that position's term
        distance_SlL = torch.stack([_cdist(rows_lD - level_D, network.pos_LD) for level_D in network.lvl_SD])
        nearest_l, level_l = distance_SlL.amin(2).min(0)
        if not bool((nearest_l <= error).all()):
            return None
    return distance_SlL[level_l, torch.arange(len(level_l), device=level_l.device)].argmin(1), level_l


def _contents(evidence: Evidence, image: int, si: int, error: float) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (component, what it is, content_lD): first the right one, whose clause is empty."""
    expected = evidence.expected.shown
    models, pyramid, network = evidence.models, evidence.models.pyramid, evidence.models.target
    span, (h, w), family = pyramid.span(si), pyramid.sides[si], family_of(network)
    own_lD = network.lvl_SD[si] + network.pos_LD[span]
    yield "positions", "", expected.x_RLD[image, span] - own_lD
    tokens_1l = evidence.actual.tokens_BL[image : image + 1, pyramid.draws.span(si)]
    codes_lC = models.vae.quantizer.codes(tokens_1l, h, w)[0].flatten(1).mT
    if codes_lC.shape[1] == network.config.raw:
        yield "query", "the codes of its own tokens, not of f_hat", network.embed(codes_lC[None])[0]
    if si:
        mixed_lC = codes_lC.mT.reshape(codes_lC.shape)
        if codes_lC.shape[1] == network.config.raw:
            yield "query", "the codes of its own tokens with their axes mixed up", network.embed(mixed_lC[None])[0]
        f_hats = expected.f_hat_SBCPP[:, image : image + 1]
        patch = f_hats.shape[-1] // pyramid.sides[-1][1]
        right = family.next_input(f_hats[si - 1], si, pyramid)
        for other in range(-1, si - 1):
            stale = family.next_input(f_hats[other] if other >= 0 else torch.zeros_like(f_hats[0]), si, pyramid)
            what = f"f_hat after scale {other}, not {si - 1}" if other >= 0 else "an f_hat without any scale"
            yield "next input", what, network.embed(stale)[0]
        for what, f_hat in drafted_f_hats(evidence, image, si):
            yield "next input", what, network.embed(family.next_input(f_hat, si, pyramid))[0]
        own_l = evidence.actual.tokens_BL[image, pyramid.draws.span(si - 1)]
        twice = with_scale(evidence, f_hats[si - 1], own_l, si - 1)
        besides = made_of_other_tokens(evidence, image, si - 1, f_hats[si - 1])
        for what, f_hat in chain([("its own tokens", twice)], besides):
            clause = f"f_hat after scale {si - 1}, to which that of {what} was added besides"
            yield "next input", clause, network.embed(family.next_input(f_hat, si, pyramid))[0]
        for word, dtype in SHORT.items():
            short = family.next_input(f_hats[si - 1].to(dtype), si, pyramid).to(right.dtype)
            yield "precision", f"f_hat that was resized in {word}", network.embed(short)[0]
        seen = family.next_input(f_hats[si], si, pyramid)
        yield "next input", "f_hat after its own tokens: the network sees the answer", network.embed(seen)[0]
        part, made = "next input" if pyramid.channels == 1 else "resize", dict[str, Tensor]()
        for mode in [mode for mode in MODES if mode != family.resize]:
            resized_map = F.interpolate(f_hats[si - 1], size=(patch * h, patch * w), **MODES[mode])
            made[mode] = network.embed(F.pixel_unshuffle(resized_map, patch).flatten(2).mT)[0]
        for resized_lD in made.values():  # of maps that hardly change several give the same
            alike = " or ".join(mode for mode, each in made.items() if bool(((each - resized_lD).abs() <= error).all()))
            yield part, f"f_hat resized by {alike}, not by {family.resize}", resized_lD
        if patch > 1:
            patches_lCij = right.unflatten(2, (-1, patch, patch))
            for what, placed_lN in (
                ("rows and columns of a patch exchanged", patches_lCij.mT.flatten(2)),
                ("a patch's place before its channel", patches_lCij.flatten(3).mT.flatten(2)),
            ):
                yield "bits", f"f_hat with {what}", network.embed(placed_lN)[0]
        turned = right.unflatten(1, (h, w)).transpose(1, 2).flatten(1, 2)
        yield "next input", "f_hat with rows and columns exchanged", network.embed(turned)[0]
        without_bias = network.embed(right) - network.embed(torch.zeros_like(right[:, :1]))
        yield "query", "its f_hat without the embedding's bias", without_bias[0]
        yield "query", "nothing but its position term", torch.zeros_like(network.embed(right)[0])


def _cdist(actual_lD: Tensor, pos_LD: Tensor) -> Tensor:
    """Largest difference of every row from every position; in float32, since CUDA has no such kernel in bfloat16."""
    wide = torch.promote_types(actual_lD.dtype, torch.float32)
    return torch.cdist(actual_lD.to(wide), pos_LD.to(wide), p=torch.inf)


def _terms(evidence: Evidence, si: int, position_l: Tensor, level_l: Tensor) -> str:
    """Say which position and level terms inputs of a scale carry, and which are due."""
    span, has_positions = evidence.models.pyramid.span(si), bool(evidence.models.target.pos_LD.any())
    found, due = position_l.tolist(), list(range(span.start, span.stop))
    is_moved, is_right = has_positions and found != due, bool((level_l == si).all())
    said = []
    if is_moved and found == list(range(found[0], found[0] + len(found))):
        said.append(f"position terms {found[0]}..{found[-1]}, not {due[0]}..{due[-1]}")
    elif is_moved:
        first = 0 if found[:4] != due[:4] else next(n for n in range(len(due)) if found[n] != due[n])
        said.append(f"position terms {_four(found, first)}, not {_four(due, first)}")
    if not is_right:
        low, high = int(level_l.min()), int(level_l.max())
        said.append(f"level {low if low == high else f'{low}..{high}'}, not {si}")
    right = " (levels right)" if is_right else " (positions right)" if has_positions and not is_moved else ""
    return f"{', and '.join(said)}{right}"


def _four(positions: list[int], first: int) -> str:
    """List four positions, from one of them on, and say where there are others."""
    shown = ",".join(map(str, positions[first : first + 4]))
    return f"{'…,' if first else ''}{shown}{',…' if first + 4 < len(positions) else ''}"
