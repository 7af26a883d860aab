"""What every acceptance policy but contract B's must give, scale by scale, written from docs/policies.md alone.

Promise: plain and slow. Draft and target walk along the same final tokens, scale after scale, each with a cache of its
own, every image on its own; no window, no mask, no roll-back. Tokens and rounds of a correct decoder equal these:
what a draft proposes after accepted scales is what it proposes after final ones.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from harness.models import ModelPair
from harness.numerals import real, whole
from harness.protocol import ACCEPT, TOKEN, Noise, Request, Round
from harness.reference._steps import draw, family_of, filter_logits
from harness.reference.sequential import Walk


@dataclass(frozen=True)
class PolicyRule:
    """A policy's text, taken apart."""

    name: str  # as docs/policies.md has it
    numbers: tuple[float, ...]  # after it, in order
    partial: bool  # in a rejected scale, tokens that pass on their own stay

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the rule of a text such as ``topk-match:5:0.5+partial``. Raises `ValueError` for other numbers."""
        body = text.removesuffix("+partial")
        name, *numbers = body.split(":")
        if name == "match" and not numbers:
            numbers = ["0.5"]
        return cls(name, tuple(map(real, numbers)), body != text)

    def draft_alone(self, si: int) -> bool:
        """Tell whether the draft decides scale `si` by itself."""
        if self.name == "handoff":
            return si < self.numbers[0]
        if self.name == "middle":
            return self.numbers[0] <= si < self.numbers[1]
        return self.name in ("collaborative", "code") and si >= self.numbers[0]

    def target_alone(self, si: int) -> bool:
        """Tell whether the target decides scale `si` without a draft."""
        return self.name in ("code", "middle") and not self.draft_alone(si)

    def test(self, drafted_l: Tensor, own_l: Tensor, target_lV: Tensor, draft_lV: Tensor) -> tuple[bool, Tensor]:
        """Tell whether one drafted scale of one image is accepted, and which tokens pass on their own.

        `own_l` are the target's own draws, the most likely ones under ``greedy``; `target_lV` and `draft_lV` are the
        probabilities of both, filtered tokens at 0.
        """
        l = len(drafted_l)
        if self.name == "kl":
            kl_l = torch.stack([_kl(target_lV[n], draft_lV[n]) for n in range(l)])
            return float(kl_l.mean()) <= self.numbers[0], kl_l <= self.numbers[0]
        passed_l = drafted_l == own_l
        if self.name == "match":
            passed_l = drafted_l == target_lV.argmax(-1)
        elif self.name == "topk-match":
            passed_l = torch.zeros(l, dtype=torch.bool, device=drafted_l.device)
            for n, token in enumerate(drafted_l.tolist()):  # possible at all, and fewer than K tokens are likelier
                likelier = int((target_lV[n] > target_lV[n, token]).sum())
                passed_l[n] = bool(target_lV[n, token] > 0) and likelier < int(self.numbers[0])
        rate = self.numbers[-1] if self.name.endswith("match") else 1.0
        return int(passed_l.sum()) / l >= rate, passed_l


def _kl(target_V: Tensor, draft_V: Tensor) -> Tensor:
    """Return KL(target, draft) = Σ target·ln(target/draft) over the tokens that the target can draw."""
    can = target_V > 0
    return (target_V[can] * (target_V[can].log() - draft_V[can].log())).sum().clamp_min(0)


def length_wanted(rule: str, first: int, current: int, S: int) -> int:
    """Return how many scales the rule of a draft length asks for in a round that begins at scale `first`.

    The rule reads ``5``, ``1/2/3/…`` (one number a scale) or ``dynamic:LOW:HIGH``; `current` is the image's dynamic
    length, `length_begin` at first, then `length_after` every round.
    """
    if rule.startswith("dynamic"):
        return min(current, S - first)
    numbers = [whole(number) for number in rule.split("/")]
    return min(numbers[first] if len(numbers) > 1 else numbers[0], S - first)


def length_bounds(rule: str, S: int) -> tuple[int, int]:
    """Return LOW and HIGH of a dynamic rule; ``dynamic`` alone is 1 to S."""
    low, high = map(whole, rule.split(":")[1:]) if ":" in rule else (1, S)
    return low, high


def length_begin(rule: str, S: int) -> int:
    """Return an image's dynamic length before its first round."""
    return length_bounds(rule, S)[0] if rule.startswith("dynamic") else 0


def length_after(rule: str, current: int, whole: bool, S: int) -> int:
    """Return an image's dynamic length after a round: one more if all that was drafted is accepted, else one less."""
    if not rule.startswith("dynamic"):
        return current
    low, high = length_bounds(rule, S)
    return min(current + 1, high) if whole else max(current - 1, low)


NOTHING = Round(0, 0, 0, False, False, 0, 0, 0, target_rows=0)  # a round before its first scale


@dataclass
class _Image:
    """One image on its way: its closed rounds, and the open one."""

    length: int
    rounds: list[Round] = field(default_factory=list)
    turn: Round | None = None

    def opened(self, si: int, rule: PolicyRule, draft_len: str, S: int) -> Round:
        """Return the round that begins at scale `si`: it never goes from scales of one sort to those of the other."""
        alone = rule.draft_alone(si)
        wanted = S if alone else length_wanted(draft_len, si, self.length, S)
        stop = si
        while stop < min(S, si + wanted) and rule.draft_alone(stop) == alone:
            stop += 1
        return replace(NOTHING, first=si, drafted=stop - si)

    def close(self, turn: Round, draft_len: str, bonus: int, S: int) -> None:
        """End a round; `bonus` is the number of tokens of a scale that was not drafted, 0 without one."""
        self.rounds.append(replace(turn, bonus=bonus > 0, bonus_tokens=bonus))
        self.length = length_after(draft_len, self.length, turn.accepted == turn.drafted, S)
        self.turn = None


def _law(walk: Walk, raw_BlC: Tensor | None, si: int, request: Request) -> Tensor:
    """Return the filtered logits (B,l,V) of scale `si`."""
    rows_RlV = walk.rows(walk.input(raw_BlC, si), si)
    guided_BlV = family_of(walk.network).guide(rows_RlV, request.guidance, si, walk.network.pyramid.S)
    return filter_logits(guided_BlV, *request.filter(si))


@torch.inference_mode()
def decode_by_policy(
    models: ModelPair, request: Request, noise: Noise, policy: str, draft_len: str, bonus: bool
) -> tuple[Tensor, list[list[Round]]]:
    """Return tokens_BL, and the rounds of every image, in which rows and caches are left at 0, by a policy's text.

    The request has labels. Stream TOKEN is read for draft and target alike, ACCEPT by ``imposed`` alone. `bonus`
    finishes the scale after a draft that is accepted whole, where it is one that the target decides.
    """
    rule, pyramid, S = PolicyRule.of(policy), models.pyramid, models.pyramid.S
    labels_B = noise.labels(models.target.config.classes)
    draft, target = Walk.begin(models.draft, request, labels_B), Walk.begin(models.target, request, labels_B)
    images = [_Image(length_begin(draft_len, S)) for _ in range(request.B)]
    family, raw_BlC = family_of(models.target), None
    f_hat = torch.zeros(request.B, *models.target.config.latent, device=models.device, dtype=models.vae.dtype)
    tokens = []
    for si in pyramid:
        laws = [_law(walk, raw_BlC, si, request) for walk in (draft, target)]
        chosen = [_choose(law_BlV, rule, noise, si) for law_BlV in laws]
        final_Bl = chosen[1].clone()
        for b, image in enumerate(images):
            turn = image.turn
            if turn is not None and si == turn.first + turn.drafted:  # all of the draft is accepted: the bonus scale
                image.close(turn, draft_len, pyramid.draws.counts[si], S)
                continue
            if rule.target_alone(si):  # a round of its own, in which nothing is drafted
                image.close(replace(NOTHING, first=si), draft_len, pyramid.draws.counts[si], S)
                continue
            turn = turn or image.opened(si, rule, draft_len, S)
            drafted_l, own_l = chosen[0][b], chosen[1][b]
            alone = rule.draft_alone(si)
            accepted, passed_l = True, torch.ones_like(drafted_l, dtype=torch.bool)
            if rule.name == "imposed":  # by the first number of its own stream, whatever its tokens
                accepted = float(noise.uniform(si, ACCEPT, "reference")[b, 0]) < rule.numbers[0]
            elif not alone:
                accepted, passed_l = rule.test(drafted_l, own_l, laws[1][b].softmax(-1), laws[0][b].softmax(-1))
            if not accepted:
                final_Bl[b] = torch.where(passed_l, drafted_l, own_l) if rule.partial else own_l
            else:
                final_Bl[b] = drafted_l
            same = int((final_Bl[b] == drafted_l).sum())
            replaced = turn.corrected_tokens + len(drafted_l) - same
            turn = replace(turn, accepted_tokens=turn.accepted_tokens + same, corrected_tokens=replaced)
            image.turn = turn = replace(turn, accepted=turn.accepted + accepted, corrected=not accepted)
            last = si + 1 == turn.first + turn.drafted
            goes_on = last and bonus and not alone and si + 1 < S and not rule.draft_alone(si + 1)
            if turn.corrected or (last and not goes_on):
                image.close(turn, draft_len, 0, S)
        tokens.append(final_Bl)
        codes = models.vae.quantizer.codes(final_Bl, *pyramid.sides[si])
        f_hat = family.accumulate(f_hat, codes, si, models.vae.quantizer, pyramid)
        if si + 1 < S:
            raw_BlC = family.next_input(f_hat, si + 1, pyramid)
    return torch.cat(tokens, 1), [image.rounds for image in images]


def _choose(law_BlV: Tensor, rule: PolicyRule, noise: Noise, si: int) -> Tensor:
    """Return the draws of one side; under ``greedy`` its most likely tokens."""
    if rule.name == "greedy":
        return law_BlV.argmax(-1)
    return draw(law_BlV, noise.exponential(si, TOKEN, "reference"))
