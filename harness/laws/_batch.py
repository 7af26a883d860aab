"""Laws of the batch: each image is its own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import Case
from harness.laws._law import (
    EVERY,
    KEEPS_AN_EQUAL,
    NotDone,
    NotOffered,
    Subject,
    declines_of,
    law,
    require_shown_rounds,
    require_tokens,
)
from harness.laws._oracle import Scripted, decode_drafted, needs_exact, require_draws, require_whole
from harness.protocol import Contract, Request, Round, Trace


def _base(case: Case) -> Case:
    """A batch of at least four images in image order, several scales a round, a draft that is right now and then."""
    labels = (case.labels * 4)[: max(4, case.B)]
    draft = case.draft if case.draft in ("close", "near") else "near"
    return replace(case, labels=labels, order="image", draft=draft, draft_len=max(2, case.draft_len))


def _uneven(decoded: Trace) -> bool:
    """Whether images advanced at different speed, as far as the decoder shows it."""
    if not any(turn.drafted for turn in decoded.turns):
        return True
    return len({tuple(turn.first for turn in rounds) for rounds in decoded.rounds}) > 1


def in_step(decoded: Trace) -> bool:
    """Whether a whole batch advances, in every round, by what the image accepts that accepts least."""
    rounds = list(zip(*decoded.rounds, strict=False))
    together = not _uneven(decoded) and len({len(turns) for turns in decoded.rounds}) == 1 < len(decoded.rounds)
    least = all(any(turn.corrected or turn.accepted == turn.drafted for turn in turns) for turns in rounds)
    return together and least and all(turn.corrected_tokens or not turn.corrected for turns in rounds for turn in turns)


def _parted(subject: Subject, case: Case, decoded: Trace) -> bool:
    """Whether images part: they go on from different scales, or, in step, one waits that alone goes farther.

    Raises `NotDone` where neither shows, and the decoder declines it.
    """
    if _uneven(decoded):
        return True
    alone = [subject.decode(case, case.request.only([b])) for b in range(case.B)] if in_step(decoded) else []
    if _waits(case, decoded, alone):
        return True
    _require_diverging(subject, case)
    return False


def _waits(case: Case, decoded: Trace, alone: Sequence[Trace]) -> bool:
    """Whether a batch goes in step, by no less than its images accept, and one waits that goes farther alone."""
    if not in_step(decoded):
        return False
    for k, turns in enumerate(zip(*decoded.rounds, strict=True)):  # all begin where they do alone, as far as all agree
        finished, ends = turns[0].finished, [one.rounds[0][k].finished for one in alone]
        if {*ends} != {finished}:
            where = f"round {k}: the batch goes on by {finished} scales, its images alone by {min(ends)}..{max(ends)}"
            require(finished == min(ends) or not case.exact, where)
            return True
    return False


def _require_diverging(subject: Subject, case: Case, waits: bool = False) -> None:
    """Raise `NotDone` where images never go on from different scales: one waits for another, or that is declined."""
    if waits:
        raise NotDone("the decoder takes all images of a batch through the same rounds")
    if "diverging batches" in declines_of(subject.decoder(case)):
        raise NotDone("the decoder declines diverging batches")


def _require_alone(decoded: Trace, image: int, alone: list[Round], where: str) -> None:
    """Require an image's rounds to be those that it takes alone, unless its batch goes in step."""
    if not in_step(decoded):
        of_batch = decoded.rounds[image]
        where = f"{where}: {len(of_batch)} rounds in the batch, {len(alone)} alone"
        for k, (actual, expected) in enumerate(zip(of_batch, alone, strict=False)):
            require(actual == expected, f"{where}; round {k} was {actual}, alone {expected}")
        require(len(of_batch) == len(alone), where)


def _compare(subject: Subject, case: Case, request: Request, rows: list[int], expected_BL: Tensor, where: str) -> None:
    actual_BL = subject.decode(case, request=request).tokens_BL
    if case.exact:
        require_tokens(actual_BL[: len(rows)], expected_BL[rows], where)
    else:
        require_draws(case, request.only(list(range(len(rows)))), actual_BL[: len(rows)], expected_BL[rows], where)


def _require_claimed(subject: Subject, case: Case, decoded: Trace, where: str) -> None:
    """Require the sequential tokens of a decoder that claims them."""
    if Contract.of(subject.decoder(case).contract) is Contract.TOKENS:
        require_tokens(decoded.tokens_BL, case.sequential().tokens_BL, where)


@law("batch.permutation", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def permutation(subject: Subject, case: Case) -> bool:
    """Permuting the batch permutes the images."""
    case = _base(case)
    whole = subject.decode(case)
    order = torch.randperm(case.B, generator=case.generator()).tolist()
    order = order if order != sorted(order) else order[::-1]
    _compare(subject, case, case.request.only(order), order, whole.tokens_BL, f"order {order}")
    return _parted(subject, case, whole)


@law("batch.splitting", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def splitting(subject: Subject, case: Case) -> bool:
    """An image alone is the image of the batch."""
    case = _base(case)
    whole = subject.decode(case)
    for rows in [[b] for b in range(case.B)] + [list(range(1, case.B))]:
        _compare(subject, case, case.request.only(rows), rows, whole.tokens_BL, f"images {rows} on their own")
    return _parted(subject, case, whole)


@law("batch.padding", "decode", "cache", contract=Contract.LAW, policies=EVERY)
def padding(subject: Subject, case: Case) -> bool:
    """More images after the batch change nothing in it."""
    case = _base(case)
    whole = subject.decode(case)
    request = replace(case.request, labels=(*case.labels, 1, 3), images=(*range(case.B), 77, 78))
    _compare(subject, case, request, list(range(case.B)), whole.tokens_BL, "two more images after the batch")
    return _parted(subject, case, whole)


@law("batch.neighbour", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def neighbour(subject: Subject, case: Case) -> bool:
    """An image does not depend on its neighbours."""
    case = _base(case)
    whole = subject.decode(case)
    labels = (case.labels[0], *((label + 1) % 4 for label in case.labels[1:]))
    request = replace(case.request, labels=labels, images=(0, *range(101, 100 + case.B)))
    _compare(subject, case, request, [0], whole.tokens_BL, "every neighbour of image 0 changed")
    return _parted(subject, case, whole)


@law("batch.rounds", "accept", "draft_len", contract=Contract.LAW, policies=EVERY)
def rounds(subject: Subject, case: Case) -> bool:
    """An image is drafted, accepted and corrected as it would be alone."""
    # some must go on drafting where others were rejected: a close draft, and scales for a round after the next
    needs_exact(case, "rounding decides what is accepted, and other batches round otherwise")
    case = _base(case).at_least(5)
    case = replace(case, labels=(case.labels * 4)[:6], draft="close", draft_len=2)
    whole = subject.decode(case)
    require_shown_rounds(whole)
    alone = [subject.decode(case, request=case.request.only([image])) for image in range(case.B)]
    for image, one in enumerate(alone):
        _require_alone(whole, image, one.rounds[0], f"image {image}")
    _require_diverging(subject, case, _waits(case, whole, alone))
    return _uneven(whole)


@law("batch.caches", "cache", "draft_generate_batch", contract=Contract.LAW, policies=KEEPS_AN_EQUAL)
def caches(subject: Subject, case: Case) -> bool:
    """Images at one scale whose draft has seen different numbers of scales go on as each would alone."""
    # one took a bonus scale, which its draft has yet to see; the other was corrected up to the same scale
    needs_exact(case, "rounding decides whether a draft = target is accepted whole")
    if not subject.has_bonus(case):
        raise NotOffered("it has no bonus scales")
    d = 1 + case.seed % 2
    labels = (0, 1) if case.seed // 2 % 2 else (1, 0)
    case = replace(case, patch_nums=(1, 2, 3, 4, 5), labels=labels, order="image", bonus=True, draft_len=d)
    draft = Scripted.of(case, ((0, d + 1), (1, 0)))
    decoded = decode_drafted(subject, case, draft)
    require_shown_rounds(decoded)
    alone = [decode_drafted(subject, case, draft, request=case.request.only([image])) for image in range(case.B)]
    for image, one in enumerate(alone):
        where = f"image {image} alone, its draft one scale short of that of the other"
        require_tokens(decoded.tokens_BL[[image]], one.tokens_BL, where)
        _require_alone(decoded, image, one.rounds[0], where)
    _require_diverging(subject, case, _waits(case, decoded, alone))
    ends = [{turn.first + turn.finished: turn.draft_cache for turn in turns} for turns in decoded.rounds]
    return any(ends[1].get(si, cached) != cached for si, cached in ends[0].items() if si < case.pyramid.S)


@law("batch.precisions", "draft_generate_batch", "accept", contract=Contract.LAW)
def precisions(subject: Subject, case: Case) -> bool:
    """A draft in another precision than the target's changes no image, whatever images of the batch accept."""
    needs_exact(case, "the networks' precision is given")
    narrow = ("float32", "bfloat16")[case.seed % 2]
    case = replace(_base(case.at_least(4)), draft_dtype=narrow, bonus=case.bonus and subject.has_bonus(case))
    decoded = subject.decode(case)
    require_whole(decoded, case)
    _require_claimed(subject, case, decoded, f"a draft in {narrow} for a target in float64")
    return _parted(subject, case, decoded)


@law("batch.bonus", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def bonus(subject: Subject, case: Case) -> bool:
    """A bonus scale after a close draft is the image's own, whatever its batch does."""
    needs_exact(case, "rounding decides what is accepted, and other batches round otherwise")
    if not subject.has_bonus(case):
        raise NotOffered("it has no bonus scales")
    # next to the border of acceptance some images take the bonus scale and others are rejected
    case = replace(_base(case.at_least(4)), draft="close", bonus=True, draft_len=1 + case.seed % 2)
    decoded = subject.decode(case)
    where = "bonus scales in a batch whose images accept different numbers of scales"
    _require_claimed(subject, case, decoded, where)
    for image in range(case.B):
        alone = subject.decode(case, request=case.request.only([image]))
        require_tokens(alone.tokens_BL, decoded.tokens_BL[[image]], f"image {image} alone, with bonus scales")
        if decoded.rounds:
            _require_alone(decoded, image, alone.rounds[0], f"image {image}, with bonus scales")
    return _parted(subject, case, decoded) and (not decoded.turns or any(turn.bonus for turn in decoded.turns))
