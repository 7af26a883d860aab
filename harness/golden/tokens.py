"""Recorded tokens against those drawn here.

Promise: a token that differs is a tie only if float64 on the same prefix cannot tell the two apart within what is
allowed; where nothing is allowed to be said (`judged_BL`), it is not judged, and counted so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.golden.judgements import CaseResult
from harness.golden.spread import guided
from harness.judge.compare import largest_difference
from harness.judge.race import margin_bound, race_margin
from harness.judge.verdict import Divergence
from harness.protocol.noise import TOKEN
from harness.protocol.trace import Trace
from harness.rounding.budget import Allowance

POSITION = Allowance(math.nan, math.nan, math.nan, "of one position")  # a race asks for its logits alone


@dataclass(frozen=True)
class Ground:
    """What tokens are judged on.

    Args:
        exact: the float64 run on the same prefix.
        margin_BL: how far a guided logit may be off, by position: what a margin is judged by.
        error_BL: how far any guided logit of the float32 run may be off.
        judged_BL: positions that are judged.
    """

    exact: Trace
    margin_BL: Tensor
    error_BL: Tensor
    judged_BL: Tensor


def judge_tokens(case: RecordedCase, tokens_BL: Tensor, run: Trace, ground: Ground, result: CaseResult) -> None:
    """Certify every differing token as a tie, or call it a defect. Effects: on `result`."""
    pyramid, request = case.models.pyramid, case.request
    noise = case.models.noise(request)
    labels = noise.labels(case.models.target.config.classes).tolist()
    for image, position in torch.nonzero((run.tokens_BL != tokens_BL) & ground.judged_BL).tolist():
        si, token = pyramid.level_of(position), int(tokens_BL[image, position])
        E_V = noise.exponential(si, TOKEN, "golden")[image, position - pyramid.begin(si)]
        exact_V = guided(ground.exact)[image, position]
        most, apart = float(ground.margin_BL[image, position]), float(ground.error_BL[image, position])
        allowed = replace(POSITION, logits=most)
        margin, bound = race_margin(exact_V, E_V, token, request, allowed), margin_bound(allowed)
        error = largest_difference(guided(run)[image, position], exact_V)
        tie = margin <= bound and error <= apart
        found = Divergence(
            "tie" if tie else "token",
            "within the error budget of float64" if tie else "the recorded token is not the draw on its own prefix",
            request.seed, image, labels[image], si, position, token, int(run.tokens_BL[image, position]),
            margin, bound, error,
        )  # fmt: skip
        (result.ties if tie else result.defects).append(found)
