"""A draft that is right but where a script says, so that a law meets the rounds that it is about on any networks.

Promise: the draft is the target itself, but for scales that the script names for a label: there it proposes, at every
position, a token that the target hardly draws. What is drafted elsewhere is what the target draws, so that rounds,
lengths of caches and bonus scales follow from the script. A decoder that reads weights and not `Network` meets a draft
that is the target: it is right there, and the law has nothing to say.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from harness.errors import InputError
from harness.laws._case import Case
from harness.laws._law import FLOAT64, NotOffered, Subject
from harness.models.network import Around, Condition
from harness.protocol import Request, Trace

Script = Collection[tuple[int, int]]  # (label, scale) that the draft has wrong
_SURE = 1e3  # nats: no other token is drawn, whatever the numbers, guidance and filter


@dataclass(frozen=True)
class Scripted(Around):
    """The target as its own draft, wrong where a script says."""

    script: Script
    cond_LD: Tensor  # by label

    @classmethod
    def of(cls, case: Case, script: Script) -> Self:
        """Return the draft of a case's networks."""
        network, labels = case.models.target, (0, 1, 2, 3)
        whole = replace(case, labels=labels)
        return cls(network, script, whole.condition(network).cond_RD[: len(labels)])

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV; the rows of scripted scales hold one token, the target's least likely one."""
        rows_RnV = self.network.logits(h_RnD, condition).clone()
        pyramid, n = self.network.pyramid.draws, rows_RnV.shape[1]
        for label, si in self.script:
            if n in (pyramid.counts[si], pyramid.end(si)):  # alone in its pass, or after all scales before it
                same_R = (condition.cond_RD - self.cond_LD[label]).abs().amax(1) < FLOAT64
                rows, l = torch.nonzero(same_R).flatten(), pyramid.counts[si]
                scale_RlV = rows_RnV[rows, n - l :]
                rows_RnV[rows, n - l :] = scale_RlV.scatter_add(
                    -1, scale_RlV.argmin(-1, keepdim=True), torch.full_like(scale_RlV[..., :1], _SURE)
                )
        return rows_RnV


@dataclass(frozen=True)
class Ranked(Around):
    """The target as its own draft that proposes the token of one rank of its plain law; rank 1 is the likeliest."""

    rank: int

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV that hold one token."""
        rows_RnV = self.network.logits(h_RnD, condition)
        order_RnV = rows_RnV.argsort(-1, descending=True)
        at_Rn1 = order_RnV[..., self.rank - 1 : self.rank]
        return rows_RnV.scatter_add(-1, at_Rn1, torch.full_like(rows_RnV[..., :1], _SURE))


def decode_drafted(
    subject: Subject, case: Case, draft: Any, draft_len: str = "", request: Request | None = None
) -> Trace:
    """Decode by another draft and draft length. Raises `NotOffered` where drafts of other classes are not taken."""
    models, request = replace(case.models, draft=draft), request or case.request
    try:
        decoder = subject.decoder(case, models, draft_len)
    except InputError as error:
        if error.name != "implementation":
            raise
        raise NotOffered(f"no draft of another class: {error}") from None
    return decoder.decode(request, case.noise(request))


def levelled(network: Any) -> Any:
    """Return a network that gives every token the same logit, to the last bit."""
    heads = ("head.weight", "head.bias")
    return replace(network, weights={n: torch.zeros_like(w) if n in heads else w for n, w in network.weights.items()})
