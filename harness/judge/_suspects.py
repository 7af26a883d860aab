"""Whose mistake a wrong tensor is, where several parts could have made it: recomputed with one thing changed.

Promise: asked only once something is known to be wrong, so it may cost passes; every answer is a computation that gives
the decoder's own numbers, within the budget, when one named thing is other than it must be. What no such change
explains stays with the part that `components` names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.protocol import Intermediates, Round
from harness.protocol.noise import DRAFT, TOKEN
from harness.reference import block_causal, draw, filter_logits, guidance_labels, prefix_inputs, teacher_forced
from harness.reference.sequential import GrowingCache

MOST_LABELS = 32  # a table of a thousand classes is not tried: the batch's own labels and the unconditional one are
MOST_OF = 0.9  # of wrong tokens: two runs of a draft round otherwise here and there


def round_of(evidence: Evidence, image: int, si: int) -> Round | None:
    """Return the round that made a scale final; None where no rounds are shown."""
    for turn in evidence.actual.rounds[image] if evidence.actual.rounds else []:
        if turn.first <= si < turn.first + turn.finished:
            return turn
    return None


def other_row(actual_lX: Tensor, expected_RlX: Tensor, own: int, error: float) -> int | None:
    """Return the guidance row whose tensor one row holds, where it is not its own: of the other half, if there is one.

    An image of the unconditional label has in both halves what belongs to the other.
    """
    differs_R = (expected_RlX - actual_lX).abs().flatten(1).amax(1)
    # a row that equals the right one tells nothing
    apart_R = (expected_RlX - expected_RlX[own]).abs().flatten(1).amax(1) > 2 * error
    rows = torch.nonzero((differs_R <= error) & apart_R).flatten().tolist()
    B = len(expected_RlX) // 2
    return min(rows, key=lambda row: (row < B) == (own < B), default=None)


def wrong_label(evidence: Evidence, actual: Intermediates, image: int, si: int) -> str | None:
    """Tell whether a scale's logits are those of another label: of the pass that made it, or of the whole decode."""
    network, pyramid, B = evidence.models.target, evidence.models.pyramid, evidence.request.B
    classes, turn = network.config.classes, round_of(evidence, image, si)
    known = evidence.numbers.labels(classes).tolist()
    labels = list(range(classes + 1)) if classes < MOST_LABELS else sorted({*known, classes})[:MOST_LABELS]
    span = pyramid.span(si)
    tolerance = 2 * evidence.budget.rows
    for row, own, half in ((image, known[image], "conditional"), (B + image, classes, "unconditional")):
        rows_lV = actual.rows_RLV[row, span]
        others = [label for label in labels if label != own]
        for first in {0, turn.first if turn else si}:
            rows_RlV = _rows_under(evidence, image, (first, si), own, others)
            near = ((rows_RlV - rows_lV).abs() <= tolerance).flatten(1).all(1).tolist()
            if any(near):
                return f"the {half} rows of scale {si} are those of label {others[near.index(True)]}, not {own}"
    return None


@torch.inference_mode()
def _rows_under(evidence: Evidence, image: int, window: tuple[int, int], own: int, labels: list[int]) -> Tensor:
    """Return logits (R,l,V) of a window's last scale under each label; what is cached is under the image's own."""
    network, pyramid = evidence.models.target, evidence.models.pyramid
    first, last = window
    R, K, end = len(labels), pyramid.begin(first), pyramid.end(last)
    tokens_1L = evidence.actual.tokens_BL[image : image + 1]
    condition = network.condition(torch.tensor([own, *labels], device=network.device))
    pair = network.condition(torch.tensor([own, own], device=network.device))
    xs, _ = prefix_inputs(network, evidence.models.vae, pair, tokens_1L, last + 1)
    x_1nD = torch.cat(xs, 1)[:1]
    mask_11nn = block_causal(pyramid, network.device, network.dtype)[:, :, :end, :end]
    cache = GrowingCache()
    if K:
        alone = condition.rows(torch.zeros(1, dtype=torch.int64, device=network.device))
        network.hidden(x_1nD[:, :K], alone, cache, mask_11nn[:, :, :K, :K])
        cache.layers = {i: (k.repeat(R, 1, 1, 1), v.repeat(R, 1, 1, 1)) for i, (k, v) in cache.layers.items()}
    others = condition.rows(torch.arange(1, R + 1, device=network.device))
    x_RnD = x_1nD[:, K:].repeat(R, 1, 1)
    if first == 0:
        x_RnD[:, 0] += others.cond_RD - condition.cond_RD[:1]
    hidden_RnD = network.hidden(x_RnD, others, cache, mask_11nn[:, :, K:])
    return network.logits(hidden_RnD[:, pyramid.begin(last) - K :], others)


@torch.inference_mode()
def is_after_drafts(evidence: Evidence, actual_x_lD: Tensor, image: int, si: int, error: float) -> bool:
    """Tell whether a scale's input is the one after what the draft draws at the scale before it, of the same round."""
    turn = round_of(evidence, image, si)
    if turn is None or not turn.first < si:
        return False
    network = evidence.models.target
    classes = network.config.classes
    condition = network.condition(guidance_labels(evidence.numbers.labels(classes)[image : image + 1], classes))
    tokens_1L, span = evidence.actual.tokens_BL[image : image + 1].clone(), network.pyramid.span(si - 1)
    for stream in (TOKEN, DRAFT):
        tokens_1L[0, span] = _drafted(evidence, image, si - 1, stream)
        xs, _ = prefix_inputs(network, evidence.models.vae, condition, tokens_1L, si + 1)
        if bool(((xs[si][0] - actual_x_lD).abs() <= error).all()):
            return True
    return False


def is_accepted_draft(evidence: Evidence, image: int, si: int) -> bool:
    """Tell whether the wrong tokens of a scale are what the draft itself draws there: accepted, not rejected."""
    turn = round_of(evidence, image, si)
    if turn is None or si >= turn.first + turn.drafted:
        return False
    span = evidence.models.pyramid.span(si)
    actual_l = evidence.actual.tokens_BL[image, span]
    wrong_l = actual_l != evidence.expected.tokens_BL[image, span]
    if not bool(wrong_l.any()):
        return False
    same_l = _drafted(evidence, image, si, TOKEN) == actual_l
    return float(same_l[wrong_l].double().mean()) >= MOST_OF


@torch.inference_mode()
def _drafted(evidence: Evidence, image: int, si: int, stream: str) -> Tensor:
    """Return tokens_l, what the draft draws at a scale after the decoder's own tokens: by a stream, or greedily."""
    models, request, noise, one = evidence.models, evidence.request, evidence.numbers, slice(image, image + 1)
    labels_1, tokens_1L = noise.labels(models.draft.config.classes)[one], evidence.actual.tokens_BL[one]
    _, guided_1nV, _ = teacher_forced(models.draft, models.vae, request.cfg, labels_1, tokens_1L, si + 1)
    law_1lV = filter_logits(guided_1nV[:, models.pyramid.span(si)], request.top_k, request.top_p)
    if evidence.greedy:
        return law_1lV.argmax(-1)[0]
    return draw(law_1lV, noise.exponential(si, stream, "judge")[one])[0]
