"""Recorded tokens against those drawn here.

Promise: a token that differs is a tie only if float64 on the same prefix cannot tell the two apart within what is
allowed; where nothing is allowed to be said (`judged_BL`), it is not judged, and counted so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.golden.judgements import CaseResult
from harness.golden.spread import guided
from harness.judge.race import exponentials, race_tokens
from harness.judge.verdict import Divergence
from harness.protocol.trace import Trace


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
    models, request, noise = case.models, case.request, case.models.noise(case.request)
    labels = noise.labels(models.target.config.classes).tolist()
    at = torch.nonzero((run.tokens_BL != tokens_BL) & ground.judged_BL).unbind(1)  # rows and positions
    if not len(at[0]):
        return
    allowed_N, error_N = ground.margin_BL[at].double(), ground.error_BL[at].double()
    E_NV = exponentials(noise, models.pyramid, *at)
    races = race_tokens(guided(ground.exact)[at], E_NV, tokens_BL[at], request, allowed_N, [guided(run)[at]])
    whole = torch.stack((*at, tokens_BL[at], run.tokens_BL[at]), 1).tolist()
    real = torch.stack((races.margin_N, races.bound_N, races.error_N), 1).tolist()
    for (image, position, *tokens), reals, is_tie in zip(whole, real, races.is_tie_N(error_N).tolist(), strict=True):
        divergence = Divergence(
            "tie" if is_tie else "token",
            "within the error budget of float64" if is_tie else "the recorded token is not the draw on its own prefix",
            request.seed, image, labels[image], models.pyramid.level_of(position), position, *tokens, *reals,
        )  # fmt: skip
        (result.ties if is_tie else result.defects).append(divergence)
