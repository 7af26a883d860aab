"""Judge a decoder that does not claim the tokens of sequential decoding (contracts B and C).

Promise: no token is called right or wrong. What must hold anyway is checked as under contract A: every scale finished
exactly once, and the target's tensors are those of the reference along the decoder's own tokens. Distances are
measured.
"""

from __future__ import annotations

import torch

from harness.budget import Budget
from harness.diagnose import Evidence, first_wrong
from harness.differential import judge_tensors, on_tokens_of, structure
from harness.models.pair import ModelPair
from harness.request import Request
from harness.trace import Trace
from harness.verdict import Distance, Judgement

TOKEN_IDENTICAL, QUALITY_PRESERVING = "token-identical", "quality-preserving"


def judge_unclaimed(
    models: ModelPair, request: Request, actual: Trace, expected: Trace, budget: Budget, greedy: bool = False
) -> Judgement:
    """Judge one decode by structure and tensors, and measure its distance from the reference's free run.

    Args:
        models: as both sides used them.
        request: what was drawn.
        actual: the decoder's trace.
        expected: the reference's free run under the same noise.
        budget: how far rounding may move logits and f_hat.
        greedy: the reference takes the most likely token.

    Returns:
        The judgement; `identical` counts tokens equal to the free run's.
    """
    judgement = Judgement(request.B, claims_tokens=False)
    judgement.defects += structure(models, request, actual)
    if judgement.defects:
        return judgement
    along = on_tokens_of(actual, models, request, greedy)
    unverified = tuple(_unverified(actual, image) for image in range(request.B))
    evidence = Evidence(models, request, actual, along, budget, greedy, unverified)
    wrong = {image: first_wrong(evidence, image) for image in range(request.B)}
    judgement.defects += judge_tensors(evidence, wrong)
    judgement.draws = actual.tokens_BL.numel()
    judgement.identical = int((actual.tokens_BL == expected.tokens_BL).sum())
    judgement.distances = distances(models, actual, expected)
    if not any(turn.drafted for rounds in actual.rounds for turn in rounds):
        judgement.inconclusive.append("nothing was drafted, as far as Trace.rounds shows")
    return judgement


def _unverified(actual: Trace, image: int) -> frozenset[int]:
    """Scales that a round without a target pass made final: they have no target tensors to check."""
    rounds = actual.rounds[image] if actual.rounds else []
    return frozenset(t.first + k for t in rounds if t.target_rows == 0 for k in range(t.finished))


@torch.inference_mode()
def distances(models: ModelPair, actual: Trace, expected: Trace) -> list[Distance]:
    """Return how far every image is from the other trace's."""
    tokens_B = (actual.tokens_BL != expected.tokens_BL).double().mean(1)
    f_hat_B = (actual.f_hat_BCPP - expected.f_hat_BCPP).abs().double().flatten(1).mean(1)
    pixels_B = (models.vae.decode(actual.f_hat_BCPP) - models.vae.decode(expected.f_hat_BCPP)).abs().double()
    rows = zip(tokens_B.tolist(), f_hat_B.tolist(), pixels_B.flatten(1).mean(1).tolist(), strict=True)
    return [Distance(*row) for row in rows]
