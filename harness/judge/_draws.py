"""What wrong tokens are, where the logits that they were drawn from are right: drawn anew with one thing changed.

Promise: every answer is a race that gives the decoder's own tokens, under another filter, with other numbers or in
fewer bits, and not by chance: all of them, or so many that another mistake hardly gives them. What nothing explains is
"draw".
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.judge._rounded import SHORT
from harness.judge._suspects import MOST_OF
from harness.protocol.noise import CORRECT, DRAFT, TOKEN
from harness.reference import draw, filter_logits, race

CHANCE = 1e-3  # at most, that tokens drawn otherwise are these
FEW = 8  # wrong tokens of which too few lose to a likelier one, by chance
FILTERS: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "drawn with top-p before top-k": lambda logits_lV, top_k, top_p: filter_logits(
        filter_logits(logits_lV, 0, top_p), top_k, 0.0
    ),
    "drawn without a filter": lambda logits_lV, top_k, top_p: logits_lV,
    "drawn with top-k alone": lambda logits_lV, top_k, top_p: filter_logits(logits_lV, top_k, 0.0),
    "drawn with top-p alone": lambda logits_lV, top_k, top_p: filter_logits(logits_lV, 0, top_p),
}
UNEXPLAINED = "draw", "guided logits agree, so filter, draw or noise is wrong"


@torch.inference_mode()
def wrong_draws(evidence: Evidence, image: int, scales: int) -> tuple[str, str]:
    """Return (component, clause) of the wrong tokens of an image's first scales, whose logits are right."""
    end = evidence.models.pyramid.draws.end(scales - 1)
    token_n = evidence.actual.tokens_BL[image, :end]
    wrong_n = token_n != evidence.expected.tokens_BL[image, :end]
    guided_nV = _law(evidence, image, scales, None).double()
    token_w1, guided_wV = token_n[wrong_n, None], guided_nV[wrong_n]
    chance_n = guided_nV.softmax(-1).gather(1, token_n[:, None])[:, 0]
    fits = dict[tuple[bool, float], tuple[str, str]]()
    for component, clause, other_n in _others(evidence, image, scales):
        hit_w, is_exact = other_n[wrong_n] == token_w1[:, 0], torch.equal(other_n, token_n)
        share, chance = float(hit_w.double().mean()), float((chance_n if is_exact else chance_n[wrong_n][hit_w]).prod())
        if share >= MOST_OF and chance <= CHANCE:
            fits.setdefault((is_exact, share), (component, f"guided logits agree, and the tokens are {clause}"))
    if fits:
        return fits[max(fits)]
    kept_wV = _law(evidence, image, scales, filter_logits)[wrong_n].isfinite()
    if not bool(kept_wV.gather(1, token_w1).all()):
        return "filter", "guided logits agree, and the filter drops a token that is drawn"
    if not bool(kept_wV.all()) and not evidence.greedy and len(token_w1) >= FEW:
        score_wV = guided_wV - _numbers(evidence, image, scales, TOKEN)[wrong_n].double().log()
        ahead_wV, likelier_wV = (each > each.gather(1, token_w1) for each in (score_wV, guided_wV))
        if not bool((kept_wV & ahead_wV & likelier_wV).any()):
            return "filter", "guided logits agree, and only less likely tokens are ahead: the filter drops too many"
    return UNEXPLAINED


def _others(evidence: Evidence, image: int, scales: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (component, clause, tokens_n) of every known other way to draw some scales from their logits."""
    right_nV = _law(evidence, image, scales, filter_logits)
    filters = {clause: _law(evidence, image, scales, change) for clause, change in FILTERS.items()}
    filters = {clause: law_nV for clause, law_nV in filters.items() if not torch.equal(law_nV, right_nV)}
    if evidence.greedy:
        yield from (("filter", clause, law_nV.argmax(-1)) for clause, law_nV in filters.items())
        return
    E_nV = _numbers(evidence, image, scales, TOKEN)
    yield from (("filter", clause, draw(law_nV, E_nV)) for clause, law_nV in filters.items())
    for word, dtype in SHORT.items():
        yield "precision", f"drawn in {word}", race(right_nV, E_nV).to(dtype).argmax(-1)
        yield "precision", f"drawn from logits rounded to {word}", draw(right_nV.to(dtype).to(right_nV.dtype), E_nV)
    for other in range(evidence.request.B):
        if other != image:
            clause = f"drawn with the numbers of image {other} of the batch"
            yield "noise", clause, draw(right_nV, _numbers(evidence, other, scales, TOKEN))
    for stream in (DRAFT, CORRECT):
        clause = f'drawn with the numbers of stream "{stream}"'
        yield "noise", clause, draw(right_nV, _numbers(evidence, image, scales, stream))


def _law(evidence: Evidence, image: int, scales: int, change: Callable[[Tensor, int, float], Tensor] | None) -> Tensor:
    """Return the decoder's guided logits of an image's first scales, each scale's changed with its filter."""
    draws, guided_BLV = evidence.models.pyramid.draws, evidence.actual.shown.guided_BLV
    logits = [guided_BLV[image, draws.span(si)] for si in range(scales)]
    if change is not None:
        logits = [change(logits_lV, *evidence.request.filter(si)) for si, logits_lV in enumerate(logits)]
    return torch.cat(logits)


def _numbers(evidence: Evidence, image: int, scales: int, stream: str) -> Tensor:
    """Return the exponentials of an image's first scales."""
    return torch.cat([evidence.numbers.exponential(si, stream, "judge")[image] for si in range(scales)])
