"""Whose mistake a wrong tensor is, where several parts could have made it: recomputed with one thing changed.

Promise: asked only once something is known to be wrong, so it may cost passes; every answer is a computation that gives
the decoder's own numbers, within the budget, when one named thing is other than it must be. What no such change
explains stays with the part that `components` names.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.protocol import Round
from harness.protocol.noise import DRAFT, TOKEN
from harness.reference import draw, family_of, filter_logits, prefix_inputs, teacher_forced

MOST_OF = 0.9  # of wrong tokens: two runs of a draft round otherwise here and there


def round_of(evidence: Evidence, image: int, si: int) -> Round | None:
    """Return the round that made a scale final; None where no rounds are shown."""
    for turn in evidence.actual.rounds[image] if evidence.actual.rounds else []:
        if turn.first <= si < turn.first + turn.finished:
            return turn
    return None


def is_one_pass_a_round(evidence: Evidence, image: int) -> bool:
    """Tell whether the trace counts one pass of the target for every round that has target rows."""
    rounds, calls = evidence.actual.rounds[image], evidence.actual.target_calls
    return bool(calls) and calls[image] == sum(turn.target_rows > 0 for turn in rounds)


def other_row(actual_lX: Tensor, expected_RlX: Tensor, own: int, B: int, error: float) -> int | None:
    """Return the guidance row whose tensor one row holds in place of its own, of the other half if there is one."""
    differs_R = (expected_RlX - actual_lX).abs().flatten(1).amax(1)
    # a row that equals the right one tells nothing
    apart_R = (expected_RlX - expected_RlX[own]).abs().flatten(1).amax(1) > 2 * error
    rows = torch.nonzero((differs_R <= error) & apart_R).flatten().tolist()
    return min(rows, key=lambda row: (row < B) == (own < B), default=None)


def other_positions(actual_2lX: Tensor, expected_2LX: Tensor, span: slice, error: float) -> int | None:
    """Return the position from which on both rows hold what they have, be it after the first; None for their own."""
    l, L = actual_2lX.shape[1], expected_2LX.shape[1]
    k = min(1, l - 1)
    far_L = (expected_2LX - actual_2lX[:, k : k + 1]).abs().amax(dim=(0, 2))
    for position in torch.nonzero(far_L <= error).flatten().tolist():
        begin = position - k
        due_2nX = expected_2LX[:, position : begin + l]
        if begin != span.start and begin + l <= L:
            moved = due_2nX - expected_2LX[:, span.start + k : span.stop]
            same = bool(((actual_2lX[:, k:] - due_2nX).abs() <= error).all())
            if same and bool((moved.abs() > 2 * error).any()):
                return int(begin)
    return None


@torch.inference_mode()
def scale_of_drafts(evidence: Evidence, actual_x_lD: Tensor, image: int, si: int, error: float) -> int | None:
    """Return the scale that the draft's tokens are of where a scale's input is made of those; None where it is not.

    They are of the scale before it, or of the one before its round: a round that ended there may have been corrected.
    """
    turn = round_of(evidence, image, si)
    if turn is None:
        return None
    network = evidence.models.target
    labels_1 = evidence.numbers.labels(network.config.classes)[image : image + 1]
    condition = family_of(network).condition(network, evidence.request, labels_1)
    own_1L = evidence.actual.tokens_BL[image : image + 1]
    for scale, stream in product(sorted({si - 1, turn.first - 1} - {-1}, reverse=True), (TOKEN, DRAFT)):
        tokens_1L = own_1L.clone()
        tokens_1L[0, network.pyramid.draws.span(scale)] = drafted(evidence, image, scale, stream)
        xs, _ = prefix_inputs(network, evidence.models.vae, condition, tokens_1L, si + 1)
        if not torch.equal(tokens_1L, own_1L) and bool(((xs[si][0] - actual_x_lD).abs() <= error).all()):
            return scale
    return None


def is_accepted_draft(evidence: Evidence, image: int, scales: int) -> bool:
    """Tell whether all wrong tokens of an image's first scales are what the draft draws there: accepted."""
    wrong, same, differ_L = 0, 0, evidence.actual.tokens_BL[image] != evidence.expected.tokens_BL[image]
    for si in range(scales):
        span, turn = evidence.models.pyramid.draws.span(si), round_of(evidence, image, si)
        if here := int(differ_L[span].sum()):
            wrong += here
            if turn is not None and si < turn.first + turn.drafted:
                drafted_l = drafted(evidence, image, si, TOKEN)
                same += int((drafted_l == evidence.actual.tokens_BL[image, span])[differ_L[span]].sum())
    return wrong > 0 and same >= MOST_OF * wrong


@torch.inference_mode()
def asked_otherwise(evidence: Evidence, image: int, si: int) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield (component, clause, x of scale 0, rows_RlV of a scale) of an image, for mistakes that its family names."""
    network, vae = evidence.models.target, evidence.models.vae
    if (others := family_of(network).others) is None:
        return
    labels_1 = evidence.numbers.labels(network.config.classes)[image : image + 1]
    tokens_1L, span = evidence.actual.tokens_BL[image : image + 1], network.pyramid.draws.span(si)
    for component, clause, other, request in others(network, evidence.request, int(labels_1)):
        condition = family_of(other).condition(other, request, labels_1)
        rows_RnV, _, _ = teacher_forced(other, vae, request, labels_1, tokens_1L, si + 1)
        yield component, clause, family_of(other).input(other, condition, None, 0), rows_RnV[:, span]


@torch.inference_mode()
def drafted(evidence: Evidence, image: int, si: int, stream: str, tokens_1L: Tensor | None = None) -> Tensor:
    """Return tokens_l that the draft draws, or takes, at a scale after some tokens (None: the decoder's own)."""
    models, request, noise, one = evidence.models, evidence.request, evidence.numbers, slice(image, image + 1)
    labels_1 = noise.labels(models.draft.config.classes)[one]
    tokens_1L = evidence.actual.tokens_BL[one] if tokens_1L is None else tokens_1L
    _, guided_1nV, _ = teacher_forced(models.draft, models.vae, request, labels_1, tokens_1L, si + 1)
    law_1lV = filter_logits(guided_1nV[:, models.pyramid.draws.span(si)], *request.filter(si))
    if evidence.greedy:
        return law_1lV.argmax(-1)[0]
    return draw(law_1lV, noise.exponential(si, stream, "judge")[one])[0]
