"""Whose mistake it is, where several parts could have made it: recomputed, or drawn anew, with one thing changed.

Promise: asked only once something is known to be wrong, so it may cost passes; every answer is a computation that gives
the decoder's own numbers, within the budget, when one named thing is other than it must be. A race that gives its
tokens, under another filter, with other numbers or in fewer bits, counts where it does not so by chance: all of them,
or so many that another mistake hardly gives them; where there is none, a filter is named only where it explains who
wins. What no such change explains stays with the part that `components` names, or is "draw".
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.judge._rounded import SHORT
from harness.protocol import CORRECT, DRAFT, TOKEN, Round
from harness.reference import draw, family_of, filter_logits, prefix_inputs, race, teacher_forced
from harness.reference.sequential import Walk

MOST_LABELS = 32  # a table of a thousand classes is not tried: the batch's own labels and the unconditional one are
MOST_OF = 0.9  # of wrong tokens: two runs of a draft round otherwise here and there


def round_of(evidence: Evidence, image: int, si: int) -> Round | None:
    """Return the round that made a scale final; None where no rounds are shown."""
    rounds = evidence.actual.rounds[image] if evidence.actual.rounds else []
    return next((turn for turn in rounds if turn.first <= si < turn.first + turn.finished), None)


def labels_tried(evidence: Evidence) -> list[int]:
    """List the labels that something may be of in the place of its own, the unconditional one among them."""
    classes = evidence.request.conditions(evidence.models.target.config.classes)
    known = evidence.numbers.labels(evidence.models.target.config.classes).tolist()
    return list(range(classes + 1)) if classes < MOST_LABELS else sorted({*known, classes})[:MOST_LABELS]


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
    if (turn := round_of(evidence, image, si)) is None:
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
    """Tell whether all wrong tokens of an image's first scales are what the draft draws there: accepted.

    Of two values a wrong one is the draft's wherever the draft is wrong: so many must be, that it is not so by chance.
    """
    own_L, due_L = (side.tokens_BL[image] for side in (evidence.actual, evidence.expected))
    pyramid = evidence.models.pyramid
    wrong = same = apart = draws = 0
    for si in range(scales):
        span, turn = pyramid.draws.span(si), round_of(evidence, image, si)
        if here := int((own_L[span] != due_L[span]).sum()):
            wrong += here
            if turn is not None and si < turn.first + turn.drafted:
                drafted_l = drafted(evidence, image, si, TOKEN)
                same += int(((drafted_l == own_L[span]) & (own_L[span] != due_L[span])).sum())
                apart, draws = apart + int((drafted_l != due_L[span]).sum()), draws + len(drafted_l)
    is_likely = pyramid.channels > 1 and draws > 0 and (apart / draws) ** wrong > CHANCE
    return wrong > 0 and same >= MOST_OF * wrong and not is_likely


@torch.inference_mode()
def asked_otherwise(evidence: Evidence, image: int, si: int) -> Iterator[tuple[str, str, Walk]]:
    """Yield (component, clause, walk from scale 0 on) of an image, for mistakes that its family names.

    Scale by scale, as the reference goes: a network that is wrong in longer passes is what some decoders share with it.
    """
    network = evidence.models.target
    if (others := family_of(network).others) is None:
        return
    labels_1 = evidence.numbers.labels(network.config.classes)[image : image + 1]
    turns = [round_of(evidence, image, k) for k in network.pyramid]
    firsts = [k if turn is None else turn.first for k, turn in enumerate(turns)]
    for component, clause, other, request in others(network, evidence.request, int(labels_1), si, firsts):
        yield component, clause, Walk.begin(other, request, labels_1)


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


def proposed(evidence: Evidence, image: int, scales: range) -> Iterator[Tensor]:
    """Yield tokens_1L of an image, at some scales as the draft draws them one after the other, by either stream."""
    for stream in (TOKEN, DRAFT):
        proposed_1L = evidence.actual.tokens_BL[image : image + 1].clone()
        for si in scales:
            span = evidence.models.pyramid.draws.span(si)
            proposed_1L[0, span] = drafted(evidence, image, si, stream, proposed_1L)
        yield proposed_1L


def with_scale(evidence: Evidence, f_hat_1CPP: Tensor, tokens_l: Tensor, si: int) -> Tensor:
    """Return an image's f_hat after one more scale, of any tokens."""
    models = evidence.models
    codes = models.vae.quantizer.codes(tokens_l[None], *models.pyramid.sides[si])
    return family_of(models.target).accumulate(f_hat_1CPP, codes, si, models.vae.quantizer, models.pyramid)


@torch.inference_mode()
def drafted_f_hats(evidence: Evidence, image: int, si: int) -> Iterator[tuple[str, Tensor]]:
    """Yield f_hat as the draft had it after every scale of a scale's round, and of the round before, in words."""
    pyramid, after = evidence.models.pyramid, evidence.expected.shown.f_hat_SBCPP
    turn = round_of(evidence, image, si)
    before = None if turn is None else round_of(evidence, image, turn.first - 1)
    for each in filter(None, (turn, before)):
        scales = range(each.first, min(each.first + each.drafted, pyramid.S))
        for tokens_1L in proposed(evidence, image, scales):
            known = after[each.first - 1 if each.first else 0, image : image + 1]
            f_hat = known if each.first else torch.zeros_like(known)
            for scale in scales:
                f_hat = with_scale(evidence, f_hat, tokens_1L[0, pyramid.draws.span(scale)], scale)
                yield f"the draft's f_hat after drafted scale {scale}", f_hat


def made_of_other_tokens(evidence: Evidence, image: int, si: int, before: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield f_hat after a scale of other tokens than the decoder's, in words: the target's, and the draft's."""
    span = evidence.models.pyramid.draws.span(si)
    tokens = [("the target's draws of that scale", evidence.expected.tokens_BL[image, span])]
    of_draft = (drafted(evidence, image, si, stream) for stream in (TOKEN, DRAFT))
    tokens += [("the tokens that the draft draws there", token_l) for token_l in of_draft]
    for clause, token_l in tokens:
        if not torch.equal(token_l, evidence.actual.tokens_BL[image, span]):
            yield clause, with_scale(evidence, before, token_l, si)


CHANCE = 1e-3  # at most, that tokens drawn otherwise are these
FEW = 8  # wrong tokens of which too few lose to a likelier one, by chance
FILTERS: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "drawn with top-p before top-k": lambda logits_lV, k, p: filter_logits(filter_logits(logits_lV, 0, p), k, 0.0),
    "drawn without a filter": lambda logits_lV, top_k, top_p: logits_lV,
    "drawn with top-k alone": lambda logits_lV, top_k, top_p: filter_logits(logits_lV, top_k, 0.0),
    "drawn with top-p alone": lambda logits_lV, top_k, top_p: filter_logits(logits_lV, 0, top_p),
}
# What is said where no way to draw gives the tokens: another part may have put them there.
DROPS_FEW = "filter", "guided logits agree, and tokens win that must be dropped: the filter drops too few"
DROPS_MANY = "filter", "guided logits agree, and only less likely tokens would have won: the filter drops too many"
DROPS_OTHERS = "filter", "guided logits agree, and every wrong token wins where another threshold drops others"
UNEXPLAINED = "draw", "guided logits agree, so filter, draw or noise is wrong"
OWN = "precision", "the tokens are those of its own logits, which are farther from exact ones than the budget allows"
GREEDY = "draw", "guided logits agree, and the token is not the most likely one that the filter leaves"
ACCEPTED = "accept", "the draft's own token is accepted, and is not the target's draw"
CLUES = (DROPS_FEW, DROPS_MANY, DROPS_OTHERS, UNEXPLAINED, GREEDY)


@torch.inference_mode()
def explain_draws(evidence: Evidence, image: int, scales: int) -> tuple[str, str]:
    """Return (component, clause) of the wrong tokens of an image's first scales; by its own logits all may be right."""
    free_nV, law_nV = (_law(evidence, image, scales, change) for change in (None, filter_logits))
    token_n, E_nV = evidence.actual.tokens_BL[image, : len(law_nV)], _numbers(evidence, image, scales, TOKEN)
    wrong_n = token_n != (law_nV.argmax(-1) if evidence.greedy else draw(law_nV, E_nV))
    if not bool(wrong_n.any()):
        return OWN
    if evidence.greedy:
        return GREEDY
    probs = (each.double().softmax(-1) for each in (law_nV, free_nV))
    chance_n, chance_free_n = (probs_nV.gather(1, token_n[:, None])[:, 0] for probs_nV in probs)
    chance_n = torch.where(chance_n > 0, chance_n, chance_free_n)  # a token that is dropped is drawn without a filter
    # by how well: of each component what it says, and by what chance
    fits = dict[tuple[bool, float], dict[str, dict[str, float]]]()
    for component, clause, other_n in _others(evidence, image, scales, law_nV, E_nV):
        hit_w, is_exact = (other_n == token_n)[wrong_n], torch.equal(other_n, token_n)
        # a temperature was chosen so that right tokens stay: these say nothing of it
        chance = float((chance_n if is_exact and component != "draw" else chance_n[wrong_n][hit_w]).prod())
        # of a filter that is nearly the right one most tokens are those of none at all
        if (share := float(hit_w.double().mean())) >= (1.0 if component == "filter" else MOST_OF):
            fits.setdefault((is_exact, share), {}).setdefault(component, {})[clause] = chance
    best = fits[max(fits)] if fits else {}
    for component, chances in best.items():
        if len(best) == 1 and max(chances.values()) <= CHANCE:  # of two that fit alike neither is known to be it
            which = "the tokens" if max(fits)[0] else "most wrong tokens"
            return component, f"guided logits agree, and {which} are {', or '.join(chances)}"
    free_wV, kept_wV, token_w1 = free_nV[wrong_n].double(), law_nV[wrong_n].isfinite(), token_n[wrong_n, None]
    score_wV = free_wV - E_nV[wrong_n].double().log()
    score_w, kept_w = (each.gather(1, token_w1)[:, 0] for each in (score_wV, kept_wV))
    few_w = ~kept_w & (score_w > score_wV.masked_fill(~kept_wV, -torch.inf).amax(1))
    if float(few_w.double().mean()) >= MOST_OF:
        return DROPS_FEW
    if not bool(kept_wV.all()) and len(token_w1) >= FEW and "draw" not in best:
        likelier_wV = free_wV > free_wV.gather(1, token_w1)
        many_w = kept_w & ~(kept_wV & (score_wV > score_w[:, None]) & likelier_wV).any(1)
        if bool((few_w | many_w).all()):
            return DROPS_OTHERS if bool(few_w.any()) else DROPS_MANY
    return UNEXPLAINED


def _others(
    evidence: Evidence, image: int, scales: int, right_nV: Tensor, E_nV: Tensor
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (component, clause, tokens_n) of every known other way to draw some scales from their logits."""
    channels = evidence.models.pyramid.channels
    over_bits = {"drawn with a filter over a position's bits, not over values": partial(_over_bits, channels)}
    changes: dict[str, Callable[[Tensor, int, float], Tensor]] = FILTERS | (over_bits if channels > 1 else {})
    for clause, change in changes.items():
        if not torch.equal(law_nV := _law(evidence, image, scales, change), right_nV):
            yield "filter", clause, draw(law_nV, E_nV)
    token_n, likeliest_n = evidence.actual.tokens_BL[image, : len(right_nV)], right_nV.argmax(-1)
    for clause, change in _wider(evidence, image, scales, token_n):
        if torch.equal(wider_n := draw(_law(evidence, image, scales, change), E_nV), token_n):  # it was chosen so
            yield "filter", clause, wider_n
    if torch.equal(token_n, likeliest_n):
        yield "draw", "the most likely ones", likeliest_n
    elif beta := _inverse_temperature(right_nV, E_nV, token_n[:, None]):
        yield "draw", f"drawn at a temperature of {1 / beta:.2g}", draw(beta * right_nV, E_nV)
    for word, dtype in SHORT.items():
        yield "precision", f"drawn in {word}", race(right_nV, E_nV).to(dtype).argmax(-1)
        yield "precision", f"drawn from logits rounded to {word}", draw(right_nV.to(dtype).to(right_nV.dtype), E_nV)
    for other in range(evidence.request.B):
        if other != image:
            clause = f"drawn with the numbers of image {other} of the batch"
            theirs_nV = _numbers(evidence, other, scales, TOKEN)
            yield "noise", clause, draw(right_nV, theirs_nV)
            drawn_n = draw(_law(evidence, other, scales, filter_logits), theirs_nV)
            yield "rows", f"those of image {other} of the batch", drawn_n
    if channels > 1:
        by_scale = [evidence.numbers.exponential(si, TOKEN, "judge")[image] for si in range(scales)]
        turned = [E_lV.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1) for E_lV in by_scale]
        clause = "drawn with numbers in the order of channels, not of positions"
        yield "noise", clause, draw(right_nV, torch.cat(turned))
    for stream in (DRAFT, CORRECT):
        clause = f'drawn with the numbers of stream "{stream}"'
        yield "noise", clause, draw(right_nV, _numbers(evidence, image, scales, stream))


def _wider(
    evidence: Evidence, image: int, scales: int, token_n: Tensor
) -> Iterator[tuple[str, Callable[[Tensor, int, float], Tensor]]]:
    """Yield the least top-k, and the least top-p, above those asked for that keep every token of some scales."""
    more_k, more_p = 0, 0.0
    draws = evidence.models.pyramid.draws
    for si, token_l in enumerate(token_n.split(draws.counts[:scales])):
        (top_k, top_p), logits_lV = evidence.request.filter(si), evidence.actual.shown.guided_BLV[image, draws.span(si)]
        likelier_lV = logits_lV > logits_lV.gather(1, token_l[:, None])
        likelier_l = (filter_logits(logits_lV, top_k, 0.0).softmax(-1) * likelier_lV).sum(1)  # probability, not number
        more_k = max(more_k, int(likelier_lV.sum(1).max()) + 1 - top_k if top_k else 0)
        more_p = max(more_p, float(likelier_l.max()) + 1e-6 - top_p if top_p else 0.0)  # beyond rounding of a sum
    if more_k:
        clause = f"drawn as with a top-k that is larger by {more_k}, or more"
        yield clause, lambda logits_lV, k, p: filter_logits(logits_lV, min(k + more_k, logits_lV.shape[1]) * bool(k), p)
    if more_p:
        clause = f"drawn as with a top-p that is larger by about {more_p:.2g}, or more"
        yield clause, lambda logits_lV, k, p: filter_logits(logits_lV, k, min(p + more_p, 1.0) * bool(p))


def _over_bits(channels: int, logits_lV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Filter along the wrong axis: the bits of a position in the place of the values of a bit."""
    return filter_logits(logits_lV.unflatten(0, (-1, channels)).mT, min(top_k, channels), top_p).mT.flatten(0, 1)


def _inverse_temperature(law_nV: Tensor, E_nV: Tensor, token_n1: Tensor) -> float:
    """Return a factor of the logits with which all tokens win their races; 0 where there is none."""
    gain_nV, early_nV = (each - each.gather(1, token_n1) for each in (-law_nV.double(), E_nV.double().log()))
    edge_nV = -early_nV / gain_nV
    low = float(torch.where(gain_nV > 0, edge_nV, 0.0).amax())
    high = min(float(torch.where(gain_nV < 0, edge_nV, torch.inf).amin()), 2 * low + 1)
    return (low + high) / 2 if low < high else 0.0


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
