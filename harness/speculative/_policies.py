"""The acceptance policies and their text form, in one table.

Promise: parser and tests read `TABLE`; docs/policies.md says of every row in words when a drafted scale is accepted.
`parse_policy` returns a policy that is legal under its contract, or raises one `InputError`. Every policy judges an
image by that image's own numbers alone.

A rejected scale of a C policy takes the target's own draws; with `+partial` only where a token fails the policy's test.
RATE is any number >= 0: 0 accepts everything, a RATE above 1 nothing, which is sequential decoding (not so with
`+partial`).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from harness.errors import InputError
from harness.numerals import real, whole
from harness.protocol import Contract
from harness.speculative._accept import Policy
from harness.speculative._rules import (
    accept_by_coin,
    accept_by_kl,
    accept_by_rate,
    accept_equal,
    accept_rejection,
    is_in_top,
    is_most_likely,
    is_own_draw,
    most_likely,
    race,
    race_alone,
)

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
    """One policy, or a family of them."""

    policy: Policy  # named without its numbers, and complete but for what `bind` sets
    example: str  # text of one
    numbers: tuple[Number, ...] = ()  # after its name
    # (policy, numbers, is the text `+partial`) -> the policy with the fields that they decide
    bind: Callable[[Policy, list[float], bool], Policy] = lambda policy, n, partly: policy
    half: bool = False  # the name alone means the example
    partial: bool = False  # `+partial` has a meaning
    bench: bool = False  # for measuring speed, and nothing else

    @property
    def form(self) -> str:
        """Text with words for its numbers."""
        return ":".join((self.policy.name, *(number.word for number in self.numbers)))


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


RATE, K, ENTRY = Number("RATE"), Number("K", 1, whole=True), Number("ENTRY", whole=True)
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
        remedy = f"pass --policy {policy.name.split(':')[0]}:{S}"
        raise InputError("policy", policy.name, f"ENTRY must lie in 0..{S}", remedy)
    if policy.top > V:
        raise InputError("policy", policy.name, f"K must lie in 1..V={V}", f"pass --policy topk-match:{V}:0.5")
