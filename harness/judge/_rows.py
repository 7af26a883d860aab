"""What wrong logits are where the inputs agree: other rows, rounded ones, or those of another pass.

Promise: whatever is named is a computation that gives the decoder's own numbers within the budget, when one thing is
other than it must be: the place of the rows, their precision, what the head was given, the label, the mask, the cache.
What none of these explains is "mask or cache", and at scale 0 the network, or the mask of a pass with later scales.
Where an earlier scale of the same pass is right, so are cache and network, and it is the mask. Scale 0 of one position
shows nothing of queries and keys: after it the network is in question, too.
"""

from dataclasses import replace
from functools import partial
from itertools import chain, product

import torch
from torch import Tensor

from harness.judge._evidence import Evidence, Named
from harness.judge._inputs import misplaced_rows
from harness.judge._passes import MOST_IMAGES, TargetPass, caches, last_of, masks, of_other_rows, passes, rounded
from harness.judge._rounded import SHORT, explains, rounding_of
from harness.judge._suspects import asked_otherwise, is_one_pass_a_round, labels_tried, other_positions, round_of
from harness.protocol import Intermediates
from harness.protocol.pyramid import ScalePyramid
from harness.reference import family_of, filter_logits, prefix_inputs
from harness.reference.sequential import GrowingCache

FILTERED = "the filter acts before guidance"
UNKNOWN = "none of the known mistakes of mask or cache gives these numbers"
HALVES = ("conditional", "unconditional")


def wrong_rows(evidence: Evidence, image: int, si: int) -> Named:
    """Return what the logits of one image at one scale are, whose inputs agree and which differ beyond the budget."""
    actual, expected = evidence.actual.shown, evidence.expected.shown
    span, error = evidence.models.pyramid.draws.span(si), 2 * evidence.budget.rows
    both = evidence.request.rows_of(image)
    rows_2lV = actual.rows_RLV[both, span]
    tensors = rows_2lV, expected.rows_RLV[:, span]
    if (misplaced := misplaced_rows(evidence, image, tensors, error, si, "logits")) is not None:
        return misplaced
    guided_2lV = torch.stack((expected.guided_BLV[image, span], *expected.rows_RLV[both[1:], span]))
    if _is_other(evidence, image, si, guided_2lV):
        clause = "are guided logits: guidance writes into the rows that it reads"
        return "guidance", f"conditional rows of scale {si} {clause}"
    if any(map(partial(_is_filtered, evidence, si), rows_2lV, expected.rows_RLV[both, span])):
        return "filter", f"logits of scale {si} are right where the filter keeps them, and lower elsewhere: {FILTERED}"
    if (at := other_positions(rows_2lV, expected.rows_RLV[both], span, error)) is not None:
        late = {1: ", one late", -1: ", one early"}.get(at - span.start, "")
        place = f"{at}..{at + rows_2lV.shape[1] - 1}, not {span.start}..{span.stop - 1}{late}"
        unit = "positions" if evidence.models.pyramid.channels == 1 else "draws"
        return "split", f"logits of scale {si} are those of {unit} {place}"
    if word := rounding_of(evidence, image, si, lambda shown, row: _of_image(shown, row, span)):
        return "precision", f"logits of scale {si} are the right ones, rounded to {word}"
    for explain in (_asked_otherwise, _other_head, _other_label, _inputs_of_others, _moved_rows, _other_pass):
        if (wrong := explain(evidence, image, si)) is not None:
            return wrong
    return _unexplained(evidence, image, si)


def _is_filtered(evidence: Evidence, si: int, found_lV: Tensor, right_lV: Tensor) -> bool:
    """Tell whether the request's filter, or one half of it, was applied to rows that guidance has not combined yet."""
    top_k, top_p = evidence.request.filter(si)
    near_lV, low_lV = (found_lV - right_lV).abs() <= 2 * evidence.budget.rows, found_lV < right_lV
    for each in {(top_k, top_p), (top_k, 0.0), (0, top_p)} - {(0, 0.0)}:
        kept_lV = filter_logits(right_lV[None], *each)[0].isfinite()
        if torch.equal(near_lV, kept_lV) and bool((low_lV | kept_lV).all()) and not bool(kept_lV.all()):
            return True
    return False


def _of_image(shown: Intermediates, image: int, span: slice) -> Tensor:
    return shown.rows_RLV[image :: len(shown.guided_BLV), span]


def _is_other(evidence: Evidence, image: int, si: int, other_2lV: Tensor) -> bool:
    """Tell whether the decoder's logits are those of another computation: within the budget, and twice as near."""
    actual, expected = evidence.actual.shown, evidence.expected.shown
    span = evidence.models.pyramid.draws.span(si)
    found_2lV, right_2lV = _of_image(actual, image, span), _of_image(expected, image, span)
    return _is_within(evidence, found_2lV, other_2lV) and explains(found_2lV, right_2lV, other_2lV)


def _is_within(evidence: Evidence, found_2lV: Tensor, other_2lV: Tensor) -> bool:
    far_2lV, budget = (found_2lV - other_2lV).abs(), evidence.budget
    return bool((far_2lV <= 2 * budget.rows).all()) and bool(far_2lV.square().mean().sqrt() <= 2 * budget.rows_rms)


@torch.inference_mode()
def _asked_otherwise(evidence: Evidence, image: int, si: int) -> Named | None:
    """Return of the mistakes that the family names, and that give a scale's logits, the one that gives most scales'."""
    (models, draws), most, named = (evidence.models, evidence.models.pyramid.draws), 0, None
    tokens_1L, shown = evidence.actual.tokens_BL[image : image + 1], evidence.actual.shown
    for component, clause, walk in asked_otherwise(evidence, image, si):
        xs, _ = prefix_inputs(walk.network, models.vae, walk.condition, tokens_1L, models.pyramid.S)
        count = 0
        for k, x_RlD in enumerate(xs):
            rows_RlV = walk.rows(x_RlD, k)
            if k == si and not _is_other(evidence, image, si, rows_RlV):
                count = 0
                break
            count += _is_within(evidence, _of_image(shown, image, draws.span(k)), rows_RlV)
        if count > most:
            most, named = count, (component, f"logits of scale {si} are as if {clause}")
    return named


def _unexplained(evidence: Evidence, image: int, si: int) -> Named:
    """Say which pass saw the wrong keys. A pass over one scale needs no mask, and scale 0 alone no cache either."""
    turn, pyramid = round_of(evidence, image, si), evidence.models.pyramid
    alone = turn is not None and turn.drafted + turn.bonus == 1 and turn.target_rows <= pyramid.tokens(si)
    last = si if turn is None else last_of(turn, si, pyramid)
    if si == last == 0:
        return "network", "logits of scale 0, which sees nothing but itself, differ: blocks or head"
    if si == 0:
        why = "its rows see later scales, or blocks or head are wrong"
        return "mask or network", f"logits of scale 0 differ in the pass over scales 0..{last}: {why}"
    if pyramid.end(si - 1) == 1:  # attention to one key reads no query
        parts = "cache or network" if alone else "mask, cache or network"
        why = f"scale {si - 1}, which is right, sees one key, so that wrong queries and keys do not show there"
        return parts, f"logits of scale {si} differ while its inputs agree; {why}"
    if turn is None:
        return "mask or cache", f"logits of scale {si} differ while its inputs agree"
    if turn.first < si and is_one_pass_a_round(evidence, image):
        detail = f"logits of scale {si} differ, those of scale {si - 1} in the same pass do not"
        return "mask", f"{detail}: cache and network are right"
    if alone:
        return "cache", f"logits of scale {si}, alone in its pass, differ: keys or values of earlier scales"
    return "mask or cache", f"logits of scale {si} differ in the pass over scales {turn.first}..{last}; {UNKNOWN}"


@torch.inference_mode()
def _other_head(evidence: Evidence, image: int, si: int) -> Named | None:
    """Tell whether the head was given another tensor than the last block's output."""
    expected, network = evidence.expected.shown, evidence.models.target
    both, pyramid, span = evidence.request.rows_of(image), evidence.models.pyramid, evidence.models.pyramid.span(si)
    own, draws = next(iter(passes(evidence, image, si))), pyramid.draws.span(si)
    window = slice(pyramid.begin(own.first), pyramid.end(own.last))
    right_RnD, depth = own.hidden(), network.config.depth
    raw = "the network's raw input", expected.x_RLD[both, window]
    blocks = ((f"the output of block {k} of {depth}", own.hidden(depth=k)) for k in range(1, depth))
    for what, hidden_RnD in chain([raw], blocks):
        if hidden_RnD.shape[-1] != right_RnD.shape[-1]:  # a head that wants more than the network's input
            continue
        if _is_other(evidence, image, si, own.rows(hidden_RnD, si)):
            return "head", f"the head of scale {si} is given {what}, not the last hidden state"
    for word, dtype in SHORT.items():
        made_RlV = own.rows(rounded(right_RnD, dtype), si)
        found_RlV, right_RlV = (_of_image(side, image, draws) for side in (evidence.actual.shown, expected))
        # nearer than the same pass without rounding, too: its network may be what is wrong
        if all(explains(found_RlV, exact_RlV, made_RlV) for exact_RlV in (right_RlV, own.rows(right_RnD, si))):
            return "precision", f"the head of scale {si} is given hidden states rounded to {word}"
    if len(both) == 1:
        return None
    other = own.condition.rows(torch.tensor([1, 0], device=network.device))
    l = slice(span.start - window.start, span.stop - window.start)
    if _is_other(evidence, image, si, network.logits(right_RnD[:, l], other)):
        return "condition", f"the head of scale {si} is given the other half's condition"
    return None


@torch.inference_mode()
def _inputs_of_others(evidence: Evidence, image: int, si: int) -> Named | None:
    """Tell whether rows of a pass were given the inputs of other rows of the batch; those that are shown are right.

    Where guidance mixes an image's two rows on their way nothing is found: a row is asked for with its own kind alone.
    """
    network, own = evidence.models.target, next(iter(passes(evidence, image, si)))
    labels = evidence.numbers.labels(network.config.classes).tolist()
    images = [image, *(b for b in range(evidence.request.B) if b != image)][:MOST_IMAGES]
    theirs = [replace(own, tokens_1L=evidence.actual.tokens_BL[b : b + 1], label=labels[b]) for b in images]
    x_RnD, (_, mask_11nK, positions) = torch.cat([each.window()[0] for each in theirs]), own.window()
    found_2lV, right_2lV = (
        _of_image(side.shown, image, evidence.models.pyramid.draws.span(si))
        for side in (evidence.actual, evidence.expected)
    )
    layers, others = own.cache().layers, list[str]()
    for half, found_lV in enumerate(found_2lV):
        rows = torch.full((len(x_RnD),), half, device=network.device)
        cache, condition = GrowingCache(), own.condition.rows(rows)
        cache.layers = {layer: (k[rows], v[rows]) for layer, (k, v) in layers.items()}
        made_RlV = own.rows(network.hidden(x_RnD, condition, cache, mask_11nK, positions), si, condition)
        near = ((made_RlV - found_lV).abs() <= 2 * evidence.budget.rows).flatten(1).all(1).tolist()
        if not any(near):
            return None
        if not near[half]:  # the image's own stand first
            number, of = divmod(near.index(True), len(found_2lV))
            if not explains(found_lV, right_2lV[half], made_RlV[near.index(True)]):
                return None
            others.append(f"the {HALVES[half]} ones those of the {HALVES[of]} rows of image {images[number]}")
    clause = f"are given the inputs of other rows of the batch: {' and '.join(others)}"
    return ("rows", f"rows of scale {si} {clause}") if others else None


@torch.inference_mode()
def _moved_rows(evidence: Evidence, image: int, si: int) -> Named | None:
    """Tell whether logits are those of passes, from the first on, whose rows sit elsewhere though no input shows it."""
    network, pyramid = evidence.models.target, evidence.models.pyramid
    if (where_LX := family_of(network).positions(network, 0, pyramid.S - 1)) is None:
        return None
    found_2lV, right_2lV = (
        _of_image(side.shown, image, pyramid.draws.span(si)) for side in (evidence.actual, evidence.expected)
    )
    label = int(evidence.numbers.labels(network.config.classes)[image])
    rounds = evidence.actual.rounds[image] if evidence.actual.rounds else []
    before = [(turn.first, min(si, last_of(turn, turn.first, pyramid))) for turn in rounds if turn.first <= si]
    windows = before or [(k, k) for k in range(si + 1)]  # of every target pass up to that of the scale
    made = [TargetPass(evidence, evidence.actual.tokens_BL[image : image + 1], label, *window) for window in windows]
    for text in _places(where_LX, pyramid, 0, si):
        cache = GrowingCache()
        for one in made:
            x_2nD, mask_11nK, _ = one.window()
            cache = cache.cut(slice(None), pyramid.begin(one.first))
            positions = _places(where_LX, pyramid, one.first, one.last)[text]
            hidden_2nD = network.hidden(x_2nD, one.condition, cache, mask_11nK, positions)
        logits_2lV = made[-1].rows(hidden_2nD, si)
        within = bool(((logits_2lV - found_2lV).abs() <= 2 * evidence.budget.rows).all())
        if within and explains(found_2lV, right_2lV, logits_2lV):
            return "positions", f"rows of scale {si} sit {text}, which their inputs do not show"
    return None


def _places(where_LX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> dict[str, Tensor]:
    """Return where the rows of a pass over scales first..last would sit by usual mistakes; `where_LX` are right."""
    K, end, early = pyramid.begin(first), pyramid.end(last), pyramid.begin(max(first - 1, 0))
    anew = [where_LX[: pyramid.tokens(si)] for si in range(first, last + 1)]
    return {
        "where the image begins, counted from the first row of their pass": where_LX[: end - K],
        "where the image begins, counted anew in every scale": torch.cat(anew),
        "one scale too early": where_LX[early : early + end - K],
        "at row and column exchanged": torch.cat((where_LX[K:end, :-2], where_LX[K:end, -2:].flip(-1)), 1),
        "nowhere: all at position 0": torch.zeros_like(where_LX[K:end]),
    }


@torch.inference_mode()
def _other_pass(evidence: Evidence, image: int, si: int) -> Named | None:
    """Tell whether the logits are those of a pass with another mask, or with other keys and values in its cache."""
    for made in passes(evidence, image, si):
        where = f"logits of scale {si} are those of the pass over scales {made.first}..{made.last}"
        if made.first < made.last and _is_other(evidence, image, si, made.rows(made.hidden(), si)):
            return "mask", f"{where} under the right mask, to which the network does not keep"
        for component, clause, mask_nK in masks(made):
            if _is_other(evidence, image, si, made.rows(made.hidden(mask_nK), si)):
                named, counted = _who_hides(evidence, image, made) if component == "mask or cache" else (component, "")
                return named, f"{where} where {clause}{counted}"
        for component, clause, cache in caches(made, image):
            if _is_other(evidence, image, si, made.rows(made.hidden(cache=cache), si)):
                return component, f"{where} where {clause}"
        for component, clause, condition in of_other_rows(made):
            if _is_other(evidence, image, si, made.rows(made.hidden(condition=condition), si, condition)):
                return component, f"{where} {clause}"
    return None


def _who_hides(evidence: Evidence, image: int, made: TargetPass) -> tuple[str, str]:
    """Return which part hides all that is cached before a pass, and why: the trace says how much its cache holds."""
    K = evidence.models.pyramid.begin(made.first)
    held = round_of(evidence, image, made.first - 1)
    if held is None or not any(turn.target_cache for turn in evidence.actual.rounds[image]):  # nobody counted
        return "mask or cache", ""
    return "cache" if held.target_cache < K else "mask", f", and the trace counts {held.target_cache} in its cache"


def _other_label(evidence: Evidence, image: int, si: int) -> Named | None:
    """Tell whether a scale's logits are those of another label: of the pass that made it, or of the whole decode."""
    guidance, network = evidence.request.scale_guidance, evidence.models.target
    if family_of(network).others is not None:  # which know of texts
        return None
    if guidance is not None and min(guidance.places, default=0) < 0:  # both halves are mixed on their way
        return None
    classes, turn = evidence.request.conditions(network.config.classes), round_of(evidence, image, si)
    known = evidence.numbers.labels(network.config.classes).tolist()
    labels = labels_tried(evidence)
    rows_2lV = _of_image(evidence.actual.shown, image, evidence.models.pyramid.draws.span(si))
    owns, found = (known[image], classes), list[int | None]([None, None])  # of both halves the other label, if any
    for half, own in enumerate(owns[: len(rows_2lV)]):
        others = [label for label in labels if label != own]
        windows = {(0, si), (turn.first if turn else si, si)}
        for window, is_input in product(sorted(windows), (True, False)):
            rows_RlV = _rows_under(evidence, image, window, (own, *others), is_input)
            near = ((rows_RlV - rows_2lV[half]).abs() <= 2 * evidence.budget.rows).flatten(1).all(1).tolist()
            if any(near):
                found[half] = others[near.index(True)]
    if found == list(reversed(owns)):
        return "guidance", f"the halves of scale {si} are swapped: unconditional half first"
    for half_word, own, label in zip(HALVES, owns, found, strict=True):
        if label is not None:
            return "condition", f"the {half_word} rows of scale {si} are those of label {label}, not {own}"
    return None


@torch.inference_mode()
def _rows_under(
    evidence: Evidence, image: int, window: tuple[int, int], labels: tuple[int, ...], is_input: bool
) -> Tensor:
    """Return logits (R,l,V) of a window's last scale, and with `is_input` scale 0's input, under all labels but one."""
    network, begin, family = evidence.models.target, evidence.models.pyramid.begin, family_of(evidence.models.target)
    (first, last), R = window, len(labels) - 1
    own = TargetPass(evidence, evidence.actual.tokens_BL[image : image + 1], labels[0], first, last)
    x_2nD, mask_11nK, positions = own.window()
    cache, x_RnD = GrowingCache(), x_2nD[:1].repeat(R, 1, 1)
    cache.layers = {i: (k[:1].repeat(R, 1, 1, 1), v[:1].repeat(R, 1, 1, 1)) for i, (k, v) in own.cache().layers.items()}
    others = torch.tensor(labels[1:], device=network.device)
    condition = family.condition(network, evidence.request, others).rows(torch.arange(R, device=network.device))
    if first == 0 and is_input:
        x_RnD[:, :1] = family.input(network, condition, None, 0)
    hidden_RnD = network.hidden(x_RnD, condition, cache, mask_11nK, positions)
    return network.logits(hidden_RnD[:, begin(last) - begin(first) :], condition)
