"""Rows that sit elsewhere than they should, where no input shows it: a network may be told of positions apart.

Promise: what is named is a computation that gives the decoder's own logits within the budget, all passes up to there
made with their rows elsewhere by one usual mistake: such positions stand in the keys of earlier passes, too.
"""

import torch
from torch import Tensor

from harness.judge._evidence import Evidence, WrongTensor
from harness.judge._passes import last_of
from harness.judge._rounded import explains
from harness.protocol.pyramid import ScalePyramid
from harness.reference import block_causal, family_of, prefix_inputs
from harness.reference.sequential import GrowingCache


def _places(where_LX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> dict[str, Tensor]:
    """Return where the rows of a pass over scales first..last would sit by usual mistakes; `where_LX` are right."""
    K, end, early = pyramid.begin(first), pyramid.end(last), pyramid.begin(max(first - 1, 0))
    anew = [where_LX[: pyramid.tokens(si)] for si in range(first, last + 1)]
    return {
        "where the image begins, counted from the first row of their pass": where_LX[: end - K],
        "where the image begins, counted anew in every scale": torch.cat(anew),
        "one scale too early": where_LX[early : early + end - K],
        "at row and column exchanged": where_LX[K:end].flip(-1),
        "nowhere: all at position 0": torch.zeros_like(where_LX[K:end]),
    }


@torch.inference_mode()
def moved_rows(evidence: Evidence, image: int, si: int) -> WrongTensor | None:
    """Tell whether one image's logits of a scale are those of passes whose rows sit elsewhere by a usual mistake."""
    actual, expected = evidence.actual.shown, evidence.expected.shown
    network, pyramid, family = evidence.models.target, evidence.models.pyramid, family_of(evidence.models.target)
    where_LX = family.positions(network, 0, pyramid.S - 1)
    if where_LX is None:
        return None
    label_1 = evidence.numbers.labels(network.config.classes)[image : image + 1]
    condition = family.condition(network, evidence.request, label_1)
    xs, _ = prefix_inputs(network, evidence.models.vae, condition, evidence.actual.tokens_BL[image : image + 1], si + 1)
    x_2nD, mask_11LL = torch.cat(xs, 1), block_causal(pyramid, network.device, network.dtype)
    both, span = evidence.request.rows_of(image), pyramid.draws.span(si)
    found_2lV, right_2lV = actual.rows_RLV[both, span], expected.rows_RLV[both, span]
    for text in _places(where_LX, pyramid, 0, si):
        cache = GrowingCache()
        for first, last in _passes(evidence, image, si):
            K, end = pyramid.begin(first), pyramid.end(last)
            cache.layers = {i: (k[:, :, :K], v[:, :, :K]) for i, (k, v) in cache.layers.items()}
            positions = _places(where_LX, pyramid, first, last)[text]
            hidden_2nD = network.hidden(x_2nD[:, K:end], condition, cache, mask_11LL[:, :, K:end, :end], positions)
        logits_2lV = network.logits(hidden_2nD[:, pyramid.begin(si) - K :], condition)
        within = bool(((logits_2lV - found_2lV).abs() <= 2 * evidence.budget.rows).all())
        if within and explains(found_2lV, right_2lV, logits_2lV):
            return WrongTensor(si, "positions", f"rows of scale {si} sit {text}, which their inputs do not show")
    return None


def _passes(evidence: Evidence, image: int, si: int) -> list[tuple[int, int]]:
    """Return first and last scale of every target pass up to that of scale `si`, which ends them."""
    turns = [turn for turn in (evidence.actual.rounds[image] if evidence.actual.rounds else []) if turn.first <= si]
    if not turns:
        return [(k, k) for k in range(si + 1)]
    return [(turn.first, min(si, last_of(turn, turn.first, evidence.models.pyramid))) for turn in turns]
