"""Laws of the batch: each image is its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.judge.part_law import require
from harness.laws.allowed import needs_exact, require_draws
from harness.laws.case import Case
from harness.laws.law import EVERY, Law, NotOffered, Subject, law, require_tokens
from harness.protocol.contract import Contract
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference.sequential import sample_sequential

LAWS: list[Law] = []


def _base(case: Case) -> Case:
    """A batch of at least four images in image order, several scales a round, a draft that is right now and then."""
    labels = (case.labels * 4)[: max(4, case.B)]
    draft = case.draft if case.draft in ("close", "near") else "near"
    return replace(case, labels=labels, order="image", draft=draft, draft_len=max(2, case.draft_len))


def _uneven(decoded: Trace) -> bool:
    """Whether images advanced at different speed, as far as the decoder shows it."""
    if not any(turn.drafted for rounds in decoded.rounds for turn in rounds):
        return True
    return len({tuple(turn.first for turn in rounds) for rounds in decoded.rounds}) > 1


def _compare(subject: Subject, case: Case, request: Request, rows: list[int], due_BL: Tensor, where: str) -> None:
    got_BL = subject.decode(case, request=request).tokens_BL
    if case.exact:
        require_tokens(got_BL[: len(rows)], due_BL[rows], where)
    else:
        require_draws(case, request.only(list(range(len(rows)))), got_BL[: len(rows)], due_BL[rows], where)


@law(LAWS, "batch.permutation", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def permutation(subject: Subject, case: Case) -> bool:
    """Permuting the batch permutes the images."""
    case = _base(case)
    due = subject.decode(case)
    order = torch.randperm(case.B, generator=case.generator()).tolist()
    order = order if order != sorted(order) else order[::-1]
    _compare(subject, case, case.request.only(order), order, due.tokens_BL, f"order {order}")
    return _uneven(due)


@law(LAWS, "batch.splitting", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def splitting(subject: Subject, case: Case) -> bool:
    """An image alone is the image of the batch."""
    case = _base(case)
    due = subject.decode(case)
    for rows in [[b] for b in range(case.B)] + [list(range(1, case.B))]:
        _compare(subject, case, case.request.only(rows), rows, due.tokens_BL, f"images {rows} on their own")
    return _uneven(due)


@law(LAWS, "batch.padding", "decode", "cache", contract=Contract.LAW, policies=EVERY)
def padding(subject: Subject, case: Case) -> bool:
    """More images behind the batch change nothing in it."""
    case = _base(case)
    due = subject.decode(case)
    ids = (*range(case.B), 77, 78)
    request = replace(case.request, labels=(*case.labels, 1, 3), images=ids)
    _compare(subject, case, request, list(range(case.B)), due.tokens_BL, "two more images behind the batch")
    return _uneven(due)


@law(LAWS, "batch.neighbour", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def neighbour(subject: Subject, case: Case) -> bool:
    """An image does not depend on its neighbours."""
    case = _base(case)
    due = subject.decode(case)
    labels = (case.labels[0], *((label + 1) % 4 for label in case.labels[1:]))
    request = replace(case.request, labels=labels, images=(0, *range(101, 100 + case.B)))
    _compare(subject, case, request, [0], due.tokens_BL, "every neighbour of image 0 changed")
    return _uneven(due)


@law(LAWS, "batch.rounds", "accept", "draft_len", contract=Contract.LAW, policies=EVERY)
def rounds(subject: Subject, case: Case) -> bool:
    """An image is drafted, accepted and corrected as it would be alone.

    Some images must go on drafting where others fell: a close draft, and scales enough for a round after the next.
    """
    needs_exact(case, "rounding decides what is accepted, and other batches round otherwise")
    case = _base(case)
    sides = case.patch_nums if len(case.patch_nums) > 4 else (1, 2, 3, 4, 5)
    case = replace(case, patch_nums=sides, labels=(case.labels * 4)[:6], draft="close", draft_len=2)
    due = subject.decode(case)
    if not due.rounds:
        raise NotOffered("no rounds in the trace")
    for image, of_batch in enumerate(due.rounds):
        alone = subject.decode(case, request=case.request.only([image])).rounds[0]
        where = f"image {image}: {len(of_batch)} rounds in the batch, {len(alone)} alone"
        for k, (actual, expected) in enumerate(zip(of_batch, alone, strict=False)):
            require(actual == expected, f"{where}; round {k} was {actual}, alone {expected}")
        require(len(of_batch) == len(alone), where)
    return _uneven(due)


@law(LAWS, "batch.bonus", "decode", "accept", "cache", contract=Contract.LAW, policies=EVERY)
def bonus(subject: Subject, case: Case) -> bool:
    """A bonus scale behind a close draft is the image's own, whatever its batch does."""
    if not subject.has_bonus(case):
        raise NotOffered("it refuses bonus scales")
    base = _base(case)
    sides = base.patch_nums if len(base.patch_nums) > 3 else (1, 2, 3, 4)
    # next to the border of acceptance some images take the bonus scale and others fall
    case = replace(base, patch_nums=sides, draft="close", bonus=True, draft_len=1 + case.seed % 2)
    decoded, models = subject.decode(case), case.models
    if Contract.of(subject.decoder(case).contract) is Contract.TOKENS:
        greedy = case.settings.greedy
        due = sample_sequential(models.target, models.vae, case.request, case.noise(), greedy=greedy)
        require_tokens(decoded.tokens_BL, due.tokens_BL, "bonus scales in a batch that parts ways")
    for image in range(case.B):
        alone = subject.decode(case, request=case.request.only([image]))
        require_tokens(alone.tokens_BL, decoded.tokens_BL[[image]], f"image {image} alone, with bonus scales")
        if decoded.rounds:
            actual, expected = decoded.rounds[image], alone.rounds[0]
            require(actual == expected, f"image {image}: rounds {actual} in the batch, {expected} alone")
    turns = [turn for rounds in decoded.rounds for turn in rounds]
    return _uneven(decoded) and (not turns or any(turn.bonus for turn in turns))
