"""The ties of one decode, and of one run, weighed together: what each may excuse, many may not.

Promise: whatever batches a run is cut into, the same ties are rejected: what is weighed is an image, and the run. The
mathematics is `many`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.judge.evidence import Evidence
from harness.judge.many import ALARM, THETAS, Tail, costs_N3, too_many
from harness.judge.ties import unusual_ties
from harness.judge.verdict import Divergence, Judgement
from harness.protocol.noise import TOKEN
from harness.protocol.request import Request
from harness.reference.draw import filter_logits
from harness.rounding.budget import Allowance

Allowed = Callable[[Request], list[Allowance]]

MANY = "one of many ties whose margins together are beyond rounding"


@torch.inference_mode()
def costs_of(evidence: Evidence) -> Tensor:
    """Return, for every scale, image and θ, what its draws cost for having been free to flip, by the reference.

    Returns:
        costs_SB3, float64, on the CPU.
    """
    request, pyramid, kept = evidence.request, evidence.models.pyramid, evidence.expected.intermediates
    assert kept is not None
    noise, found = evidence.numbers, []
    for si in pyramid:
        scores_BlV = filter_logits(kept.guided_BLV[:, pyramid.span(si)], request.top_k, request.top_p)
        if not evidence.greedy:
            scores_BlV = scores_BlV - noise.exponential(si, TOKEN, "judge").log()
        costs = costs_N3(scores_BlV.flatten(0, 1), Tail.of(evidence.allowance(si)))
        found.append(costs.unflatten(0, (request.B, -1)).sum(1))  # (B·l, 3) -> (B, 3)
    return torch.stack(found).cpu()


def weigh_decode(evidence: Evidence, judgement: Judgement, costs_SB3: Tensor, row_of: Sequence[int]) -> None:
    """Reject the ties of images that have too many or too wide ones. Effects: on `judgement`.

    Args:
        evidence: for the allowances.
        judgement: with ties; its `surprise` is set, for `weigh_run`.
        costs_SB3: of `costs_of`.
        row_of: place in the batch of the image of every tie.
    """
    S, B, _ = costs_SB3.shape
    allowed_S = [evidence.allowance(si) for si in range(S)]
    weights_SB3, ties = -costs_SB3, judgement.ties
    at = torch.tensor([[tie.scale for tie in ties], list(row_of)], dtype=torch.int64)
    surprise_SB = torch.zeros(S, B, dtype=torch.float64)
    surprise_SB.index_put_((at[0], at[1]), _surprise(ties, allowed_S), accumulate=True)
    weights_SB3 = weights_SB3 + surprise_SB[..., None] * surprise_SB.new_tensor(THETAS)
    judgement.surprise = weights_SB3.sum(1).tolist()
    beyond_SB = weights_SB3.logsumexp(-1) - math.log(len(THETAS)) > math.log(S / ALARM)
    rejected = [
        tie for tie, row in zip(ties, row_of, strict=True) if bool(beyond_SB[tie.scale, row]) and tie.margin > 0
    ]
    for row in set(row_of):
        rejected += unusual_ties([tie for tie, of in zip(ties, row_of, strict=True) if of == row], allowed_S)
    reject(judgement, rejected)


def _surprise(ties: Sequence[Divergence], allowed_S: Sequence[Allowance]) -> Tensor:
    """Return −ln of the chance of every tie; 0 for a filter tie, of margin 0 or less."""
    margin = torch.tensor([tie.margin for tie in ties], dtype=torch.float64)
    scale = torch.tensor([tie.scale for tie in ties], dtype=torch.int64)
    found = torch.zeros(len(ties), dtype=torch.float64)
    for si in scale.unique().tolist():
        at = (scale == si) & (margin > 0)
        found[at] = -Tail.of(allowed_S[si]).chance(margin[at]).log()
    return found


def weigh_run(judgements: Sequence[tuple[Request, Judgement]], allowed: Allowed, looks: int) -> None:
    """Reject the ties of a whole run that are too many or too wide: what each request may excuse, all may not.

    Args:
        judgements: of one setting; those of another contract than A weigh nothing.
        allowed: how far rounding may move a request's logits, by scale.
        looks: settings that are looked at.

    Effects: on the judgements.
    """
    weighed = [(request, judgement) for request, judgement in judgements if judgement.surprise]
    if not any(judgement.ties for _, judgement in weighed):
        return
    S = len(weighed[0][1].surprise)
    by_scale = [[sum(of) for of in zip(*(j.surprise[si] for _, j in weighed), strict=True)] for si in range(S)]
    for si in range(S):
        if too_many(by_scale[si], looks * (S + 1)):
            for _, judgement in weighed:
                reject(judgement, [tie for tie in judgement.ties if tie.scale == si and tie.margin > 0])
    for cfg in sorted({request.cfg for request, _ in weighed}):
        alike = [judgement for request, judgement in weighed if request.cfg == cfg]
        allowed_S = allowed(next(request for request, _ in weighed if request.cfg == cfg))
        unusual = {id(tie) for tie in unusual_ties([tie for j in alike for tie in j.ties], allowed_S)}
        for judgement in alike:
            reject(judgement, [tie for tie in judgement.ties if id(tie) in unusual])
    left = [judgement for _, judgement in weighed if judgement.ties]
    if left and too_many([sum(of) for of in zip(*by_scale, strict=True)], looks * (S + 1)):
        count = sum(len(judgement.ties) for judgement in left)
        reject(left[-1], left[-1].ties[-1:], f"the {count} ties of the run together are beyond rounding")


def reject(judgement: Judgement, ties: Sequence[Divergence], detail: str = MANY) -> None:
    """Call ties defects. Effects: on `judgement`, which counts them as wrong tokens."""
    rejected = {id(tie) for tie in ties}
    judgement.ties = [tie for tie in judgement.ties if id(tie) not in rejected]
    found = [replace(tie, component="unknown", detail=detail) for tie in {id(tie): tie for tie in ties}.values()]
    judgement.defects += found
    judgement.wrong_tokens += len(found)
