"""How many nats a decoder loses that draws from a law of its own: log q/p, token by token (contract C).

Promise: where a trace shows q, the law of every token, it is a law, and the token is what the race under the shared
numbers draws from it. The mean of log q/p of a token, given those before it, is then a sum over the vocabulary; the sum
of those has the mean of log q/p of the image, and is never below 0. What rounding can do costs nothing at least: tokens
near the edge of a filter take part in p where they do in q, and laws as near as the budget allows may be one. At most
those cost what they differ by, which in a narrow dtype is much. A token that q may draw and p may not costs infinitely
much.

q is the decoder's own word. The race shows that it draws from it, not that it chose it before it knew the numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.judge._bets import usual_alternatives
from harness.judge._evidence import Evidence
from harness.judge._likelihood import TokensSeen, allowed_by, bet, rows_along
from harness.judge._ties import survivors
from harness.judge._verdict import Divergence, Judgement
from harness.models import ModelPair
from harness.protocol import TOKEN, Noise, Request, ScalePyramid, Trace
from harness.rounding import Budget

LAW_ROUNDING = 2.0**-16  # of a sum of float32 probabilities, and of a race between them on a log score


def judge_shown_law(along: Evidence, judgement: Judgement) -> None:
    """Find the first token that is not drawn from the law that the decoder shows. Effects: a defect, if any."""
    trace, pyramid = along.actual, along.models.pyramid
    if trace.law_BLV is None or (wrong := undrawn(trace.law_BLV, trace.tokens_BL, along.numbers, pyramid)) is None:
        return
    row, draw, why = wrong
    position, channel = pyramid.place(draw)
    actual, expected = (int(side.tokens_BL[row, draw]) for side in (trace, along.expected))
    where = along.request.where(row) | {"scale": pyramid.draws.level_of(draw), "position": position}
    where["label"] = int(along.numbers.labels(along.models.target.config.classes)[row])
    judgement.defects.append(Divergence("law", why, **where, actual=actual, expected=expected, channel=channel))


def nats_of(models: ModelPair, budget: Budget, request: Request, trace: Trace) -> Tensor:
    """Return nats_BX as `nats_lost`, both in a row, where the trace shows a law, else what bets win of it, won_BAS.

    p is the target's law under the request's labels, guidance and filter; `budget` says how far rounding may move it.
    """
    if trace.law_BLV is None:
        seen = TokensSeen.along(models, budget, request, trace.tokens_BL)
        return bet(seen, models.pyramid, usual_alternatives(request, models.target.config.V)).won_BAS
    labels_B = torch.tensor(request.labels, device=models.device)
    _, guided_BLV = rows_along(models.target, models, request, labels_B, trace.tokens_BL)
    allowed_S = allowed_by(budget, models, request)
    return torch.cat(nats_lost(trace.law_BLV, guided_BLV, request, allowed_S, models.pyramid), 1)


@torch.inference_mode()
def undrawn(law_BLV: Tensor, tokens_BL: Tensor, noise: Noise, pyramid: ScalePyramid) -> tuple[int, int, str] | None:
    """Return row and draw of the first token that a shown law does not draw, and why; None where all are drawn by it.

    `law_BLV` are probabilities, any floating point, `tokens_BL` int64; `noise` is not the decoder's copy.
    """
    allowed = LAW_ROUNDING + 4 * torch.finfo(law_BLV.dtype).eps
    for si in pyramid:
        span = pyramid.draws.span(si)
        law_BlV, token_Bl1 = law_BLV[:, span].double(), tokens_BL[:, span, None]
        is_law_Bl = (law_BlV >= 0).all(-1) & ((law_BlV.sum(-1) - 1).abs() <= allowed)
        score_BlV = law_BlV.log() - noise.exponential(si, TOKEN, "judge").double().log()
        loses_Bl = score_BlV.amax(-1) - score_BlV.gather(2, token_Bl1)[..., 0]
        if wrong := torch.nonzero(~(is_law_Bl & (loses_Bl <= allowed))).tolist():
            row, place = wrong[0]
            why = f"under the law that is shown the token loses its race by {float(loses_Bl[row, place]):.3g}"
            none = "the law that is shown has no probabilities of sum 1"
            return row, span.start + place, why if is_law_Bl[row, place] else none
    return None


@torch.inference_mode()
def nats_lost(
    law_BLV: Tensor, guided_BLV: Tensor, request: Request, allowed_S: Sequence[float], pyramid: ScalePyramid
) -> tuple[Tensor, Tensor]:
    """Return what every image loses at every scale at least, and at most, nats_BS >= 0; may be infinite.

    The tokens are drawn from `law_BLV`; `guided_BLV` are the target's logits along them, after guidance and before the
    request's filter, and `allowed_S` how far rounding may move one, by scale. Float64 on the CPU.
    """
    least, most = list[Tensor](), list[Tensor]()
    for si in pyramid:
        span = pyramid.draws.span(si)
        law_BlV, guided_BlV = law_BLV[:, span].double(), guided_BLV[:, span].double()
        possible_BlV, certain_BlV = survivors(guided_BlV, request.at(si), allowed_S[si])
        in_both_BlV = certain_BlV | (possible_BlV & (law_BlV > 0))
        target_BlV = guided_BlV.masked_fill(~in_both_BlV, -torch.inf).log_softmax(-1)
        ratio_BlV = torch.where(law_BlV > 0, law_BlV.log() - target_BlV, 0.0)
        is_one_Bl = ratio_BlV.abs().amax(-1) <= 4 * allowed_S[si]  # both sides' logits are off
        lost_Bl = (law_BlV * ratio_BlV).sum(-1).clamp_min(0)
        least.append(lost_Bl.masked_fill(is_one_Bl, 0.0).sum(1))
        most.append(lost_Bl.sum(1))
    return torch.stack(least, 1).cpu(), torch.stack(most, 1).cpu()
