"""The acceptance policies and their text form, in one table.

Promise: parser and tests read `TABLE`; docs/policies.md says of every row in words when a drafted scale is accepted.
`parse_policy` returns a policy that is legal under its contract, or raises one `InputError`. Every policy judges an
image by that image's own numbers alone. The rules that they are made of, how tokens are drawn, which drafted ones are
accepted and what replaces others, are pure functions of tensors and numbers, per image and per scale.

A rejected scale of a C policy takes the target's own draws; with `+partial` only where a token fails the policy's test.
RATE is any number >= 0: 0 accepts everything, a RATE above 1 nothing, which is sequential decoding (not so with
`+partial`).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from harness.errors import InputError
from harness.numerals import real, whole
from harness.protocol import ACCEPT, CORRECT, DRAFT, TOKEN, Contract
from harness.speculative._accept import Acceptance, Policy, Proposal, Window
from harness.speculative.parts import Parts

Test = Callable[[Proposal, Tensor, Tensor], Tensor]  # proposal, target_probs_bnV, target's own draws_bn -> number_bn


def race(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Draw tokens_bn under the shared numbers. Reads stream TOKEN."""
    return parts.draw(probs_bnV, window.exponential(TOKEN))


def most_likely(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Return the most likely token of every position, the lowest index on a tie; reads no numbers."""
    return probs_bnV.argmax(-1)


def race_alone(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Draw tokens_bn under numbers that nobody else reads. Reads stream DRAFT."""
    return parts.draw(probs_bnV, window.exponential(DRAFT))


def accept_equal(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window,
    choose: Callable[[Parts, Tensor, Window], Tensor],
) -> Acceptance:  # fmt: skip
    """Contract A: a drafted token is accepted iff it is what the target itself chooses there (design §1)."""
    tokens_bn = choose(parts, target_probs_bnV, window)
    accepted_bn = tokens_bn == proposal.tokens_bn
    return Acceptance(tokens_bn, accepted_bn, window.whole(accepted_bn))


def accept_rejection(parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window) -> Acceptance:
    """Contract B: keep with probability min(1, target/draft), redraw what fails from the residual.

    Reads streams ACCEPT and CORRECT. Tokens of a scale are independent given the earlier scales, so each failing token
    of the first imperfect scale has its own residual, and that scale is final (design §1).
    """
    at_bn1 = proposal.tokens_bn[..., None]
    draft_bn, target_bn = proposal.probs_bnV.gather(-1, at_bn1)[..., 0], target_probs_bnV.gather(-1, at_bn1)[..., 0]
    accepted_bn = parts.keep_drafted(window.read_as("accept").uniform(ACCEPT), draft_bn, target_bn)
    law_bnV = parts.residual(proposal.probs_bnV, target_probs_bnV)
    redrawn_bn = parts.draw(law_bnV, window.read_as("correct").exponential(CORRECT))
    return Acceptance(torch.where(accepted_bn, proposal.tokens_bn, redrawn_bn), accepted_bn, window.whole(accepted_bn))


def accept_by_rate(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rule: tuple[Test, float, bool]
) -> Acceptance:
    """Contract C: a scale is accepted when at least RATE of its tokens pass; `rule` is (test, RATE, partial)."""
    test, rate, token_level = rule
    own_bn = race(parts, target_probs_bnV, window)
    passed_bn = test(proposal, target_probs_bnV, own_bn).bool()
    # count / l and a RATE such as 0.07 round to the same float64, so 7 of 100 meets it
    whole = [passed_bl.double().sum(1) / passed_bl.shape[1] >= rate for passed_bl in window.split(passed_bn)]
    return _replace(proposal, own_bn, passed_bn & token_level, torch.stack(whole, 1))


def accept_by_kl(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rule: tuple[float, bool]
) -> Acceptance:
    """Contract C: a scale is accepted when its mean KL(target, draft) is small; `rule` is (BOUND, partial)."""
    bound, token_level = rule
    own_bn = race(parts, target_probs_bnV, window)
    draft_bnV = proposal.probs_bnV
    terms_bnV = torch.where(target_probs_bnV > 0, target_probs_bnV * (target_probs_bnV / draft_bnV).log(), 0.0)
    kl_bn = terms_bnV.sum(-1).clamp_min(0)  # a rounding below zero is zero; infinite where the draft rules a token out
    whole = torch.stack([kl_bl.mean(1) <= bound for kl_bl in window.split(kl_bn)], 1)
    near_bn = (kl_bn <= bound) & token_level
    # a token and its law go together: a whole scale's, or that of a token that is near
    by_scale = zip(whole.unbind(1), window.split(near_bn), strict=True)
    drafted_bn = torch.cat([near_bl | whole_b[:, None] for whole_b, near_bl in by_scale], 1)
    judged = _replace(proposal, own_bn, near_bn, whole)
    return replace(judged, law_bnV=torch.where(drafted_bn[..., None], draft_bnV, target_probs_bnV))


def accept_by_coin(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rate: float
) -> Acceptance:
    """Contract C, for benches: accept a scale if its first ACCEPT number, the same in every decode, is below RATE."""
    own_bn = race(parts, target_probs_bnV, window)
    u_bn = window.read_as("accept").uniform(ACCEPT)
    whole_bs = torch.stack([u_bl[:, 0] < rate for u_bl in window.split(u_bn)], 1)
    return Acceptance(own_bn, own_bn == proposal.tokens_bn, whole_bs)


def _replace(proposal: Proposal, own_bn: Tensor, accepted_bn: Tensor, whole_bs: Tensor) -> Acceptance:
    """What a rejected scale becomes: the target's own draws, but for the tokens that are accepted."""
    tokens_bn = torch.where(accepted_bn, proposal.tokens_bn, own_bn)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, whole_bs)


def is_most_likely(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor) -> Tensor:
    """Tell where the drafted token is the target's most likely one."""
    return proposal.tokens_bn == target_probs_bnV.argmax(-1)


def is_own_draw(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor) -> Tensor:
    """Tell where the drafted token is the target's own draw."""
    return proposal.tokens_bn == own_bn


def is_in_top(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor, k: int) -> Tensor:
    """Tell where the drafted token is among the target's k most likely ones (those tied with the k-th count)."""
    kth_bn = target_probs_bnV.topk(k).values[..., -1]
    drafted_bn = target_probs_bnV.gather(-1, proposal.tokens_bn[..., None])[..., 0]
    return (drafted_bn >= kth_bn) & (drafted_bn > 0)


PARTIAL = "+partial"
MOST = 10**9  # no pyramid or codebook has more


@dataclass(frozen=True)
class Number:
    """A number in a policy's text: its word, its range, and whether it must be whole."""

    word: str
    least: float = 0
    most: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        within = f">= {self.least}" if self.most == math.inf else f"in [{self.least}, {self.most}]"
        return f"{self.word} must be {kind} {within}"

    def read(self, text: str) -> float:
        """Return the number; NaN where it is none, or lies outside."""
        try:
            value = whole(text) if self.whole else real(text)
        except ValueError:
            return math.nan
        return value if self.least <= value <= min(self.most, MOST) else math.nan


@dataclass(frozen=True)
class Row:
    policy: Policy  # named without its numbers, and complete but for what `bind` sets
    example: str  # text of one
    numbers: tuple[Number, ...] = ()  # after its name
    # (policy, numbers, is the text `+partial`) -> the policy with the fields that they decide
    bind: Callable[[Policy, list[float], bool], Policy] = lambda policy, n, partly: policy
    half: bool = False  # the name alone means the example
    partial: bool = False  # `+partial` has a meaning
    bench: bool = False  # for measuring speed, and nothing else


COUPLED = Policy(
    "coupled", Contract.TOKENS, race, partial(accept_equal, choose=race), race,
    reason="it keeps only tokens that are the target's own draws", shows_law=True,
)  # fmt: skip
GREEDY = Policy(
    "greedy", Contract.TOKENS, most_likely, partial(accept_equal, choose=most_likely), most_likely, greedy=True,
    reason="it keeps only the target's most likely tokens",
)  # fmt: skip
REJECTION = Policy(
    "rejection", Contract.LAW, race_alone, accept_rejection, race,
    reason="it draws from the target's law with numbers of its own, so the tokens are not the sequential ones",
)  # fmt: skip


def _draft_ends(policy: Policy, numbers: list[float], partly: bool) -> Policy:
    """Return the policy whose draft decides all scales from ENTRY on."""
    entry = int(numbers[0])
    return replace(policy, trusted=(entry, sys.maxsize), entry=entry)


def _draft_between(policy: Policy, numbers: list[float], partly: bool) -> Policy:
    """Return the policy whose draft decides the scales from ENTRY on, up to EXIT."""
    entry, end = map(int, numbers)
    if entry > end:
        raise InputError("policy", policy.name, "EXIT must be at least ENTRY", f"pass --policy middle:{entry}:{entry}")
    return replace(policy, trusted=(entry, end), entry=end)


RATE, K, ENTRY = Number("RATE"), Number("K", 1, whole=True), Number("ENTRY", whole=True)
EXIT = Number("EXIT", whole=True)
C = partial(Policy, contract=Contract.QUALITY, propose=race, accept=COUPLED.accept, extend=race)
KEEPS = "it keeps drafted tokens that the target would not have drawn"
DIVIDED = partial(C, reason="the draft decides some scales alone", shows_law=True)
TABLE = (
    Row(COUPLED, "coupled"),
    Row(GREEDY, "greedy"),
    Row(REJECTION, "rejection"),
    Row(C("match", reason=KEEPS), "match:0.5", (RATE,),
        lambda policy, n, partly: replace(policy, accept=partial(accept_by_rate, rule=(is_most_likely, n[0], partly))),
        half=True, partial=True),
    Row(C("coupled-match", reason=KEEPS), "coupled-match:0.5", (RATE,),
        lambda policy, n, partly: replace(policy, accept=partial(accept_by_rate, rule=(is_own_draw, n[0], partly))),
        partial=True),
    Row(C("topk-match", reason=KEEPS), "topk-match:5:0.5", (K, RATE),
        lambda policy, n, partly: replace(policy, top=int(n[0]),
            accept=partial(accept_by_rate, rule=(partial(is_in_top, k=int(n[0])), n[1], partly))), partial=True),
    Row(C("kl", reason="it keeps the tokens of laws that are merely near", shows_law=True), "kl:0.1",
        (Number("BOUND"),),
        lambda policy, n, partly: replace(policy, accept=partial(accept_by_kl, rule=(n[0], partly))), partial=True),
    Row(DIVIDED("handoff"), "handoff:3", (ENTRY,),
        lambda policy, n, partly: replace(policy, trusted=(0, int(n[0])), entry=int(n[0]))),
    Row(DIVIDED("collaborative"), "collaborative:3", (ENTRY,), _draft_ends),
    Row(DIVIDED("code", speculates=False), "code:6", (ENTRY,), _draft_ends),
    Row(DIVIDED("middle", speculates=False), "middle:3:8", (ENTRY, EXIT), _draft_between),
    Row(C("imposed", reason="it keeps drafted scales by a coin"), "imposed:0.5", (Number("RATE", 0, 1),),
        lambda policy, n, partly: replace(policy, name=f"imposed:{n[0]:g}", accept=partial(accept_by_coin, rate=n[0])),
        bench=True),
)  # fmt: skip
(IMPOSED,) = (row.policy.name for row in TABLE if row.bench)


def parse_policy(text: str, contract: str = "", bench: bool = False) -> Policy:
    """Return the policy that a text names, as in `TABLE` with numbers for the words; `bench` has those of a bench, too.

    `contract` is A, B, C or the contract's full name when the caller demands one; empty takes the policy's own. Raises
    `InputError` for an unknown policy, a number missing or outside its range, `+partial` where it means nothing, or a
    contract that the policy does not keep.
    """
    body = text.removesuffix(PARTIAL)
    name, *values = body.split(":")
    rows = {row.policy.name: row for row in TABLE if bench or not row.bench}
    if name not in rows:
        raise InputError("policy", text, f"must be one of {', '.join(rows)}", "pass --policy coupled")
    row = rows[name]
    if body != text and not row.partial:
        rule = f"+partial changes what a rejected scale becomes, which {name} leaves no choice about"
        raise InputError("policy", text, rule, f"pass --policy {body}")
    numbers = _numbers(text, values or row.example.split(":")[1:] if row.half else values, row)
    policy = row.bind(replace(row.policy, name=text), numbers, body != text)
    if contract and Contract.of(contract) is not policy.contract:
        letter = policy.contract.letter
        rule = f"policy {text} claims contract {letter} ({policy.contract}) alone: {policy.reason}"
        raise InputError("contract", contract, rule, f"pass --contract {letter} or another --policy")
    return policy


def policy_speculates(text: str) -> bool:
    """Tell whether the target judges drafts under a policy of this text: of others a draft length changes nothing."""
    return all(row.policy.speculates for row in TABLE if row.policy.name == text.partition(":")[0])


def _numbers(text: str, values: list[str], row: Row) -> list[float]:
    remedy = f"pass --{'policies' if row.bench else 'policy'} {row.example}"
    if len(values) != len(row.numbers):
        counts = "0 or 1" if row.half else len(row.numbers)
        rules = f": {', '.join(map(str, row.numbers))}" if row.numbers else ""
        raise InputError("policy", text, f"takes {counts} numbers{rules}", remedy)
    numbers = []
    for number, value in zip(row.numbers, values, strict=True):
        numbers.append(number.read(value))
        if math.isnan(numbers[-1]):
            raise InputError("policy", text, str(number), remedy)
    return numbers


def check_against(policy: Policy, S: int, V: int) -> None:
    """Refuse a policy whose ENTRY lies beyond the pyramid or whose K exceeds the codebook. Raises `InputError`."""
    if policy.entry > S:
        name, *numbers = policy.name.split(":")
        words = " and ".join(("ENTRY", "EXIT")[: len(numbers)])
        remedy = f"pass --policy {':'.join([name, *[str(S)] * len(numbers)])}"
        raise InputError("policy", policy.name, f"{words} must lie in 0..{S}", remedy)
    if policy.top > V:
        raise InputError("policy", policy.name, f"K must lie in 1..V={V}", f"pass --policy topk-match:{V}:0.5")
