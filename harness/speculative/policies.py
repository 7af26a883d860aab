"""The acceptance policies and their text form.

Promise: `parse` returns a policy that is legal under its contract, or raises one `InputError`. Every policy judges an
image by that image's own numbers alone.

| text | contract | a drafted scale stands when |
|---|---|---|
| `coupled` | A | every token is the target's own draw under the same numbers |
| `greedy` | A | every token is the target's most likely one; the draft proposes its own most likely ones |
| `rejection` | B | every token passes u < target/draft; each one that fails is redrawn from its residual |
| `match:RATE` | C | at least RATE (default 0.5) of its tokens are the target's most likely ones |
| `coupled-match:RATE` | C | at least RATE of its tokens are the target's own draws |
| `topk-match:K:RATE` | C | at least RATE of its tokens are among the target's K most likely ones |
| `kl:BOUND` | C | the mean over its tokens of KL(target, draft) is at most BOUND nats |
| `handoff:ENTRY` | C | it is one of the first ENTRY scales; `coupled` from there on |
| `collaborative:ENTRY` | C | it is not one of the first ENTRY scales; `coupled` up to there |

A rejected scale of a C policy takes the target's own draws; with `+partial` only where a token fails the policy's test.
RATE is any number >= 0: 0 accepts everything, a RATE above 1 nothing, which is sequential decoding (not so with
`+partial`).
"""

from __future__ import annotations

import math
import sys
from functools import partial

from harness.errors import InputError
from harness.protocol.contract import Contract
from harness.speculative.accept import Policy
from harness.speculative.rules import (
    Test,
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

NAMES = ("coupled", "greedy", "rejection", "match", "coupled-match", "topk-match", "kl", "handoff", "collaborative")
PARTIAL = "+partial"
DIGITS = 9  # of a whole number; no pyramid or codebook has more

COUPLED = Policy(
    "coupled", Contract.TOKENS, race, partial(accept_equal, choose=race), race,
    reason="it keeps only tokens that are the target's own draws",
)  # fmt: skip
GREEDY = Policy(
    "greedy", Contract.TOKENS, most_likely, partial(accept_equal, choose=most_likely), most_likely, greedy=True,
    reason="it keeps only the target's most likely tokens",
)  # fmt: skip
REJECTION = Policy(
    "rejection", Contract.LAW, race_alone, accept_rejection, race,
    reason="it draws from the target's law with numbers of its own, so the tokens are not the sequential ones",
)  # fmt: skip


def parse(text: str, contract: str = "") -> Policy:
    """Return the policy that a text names.

    Args:
        text: as in the module's table.
        contract: A, B, C or the contract's full name when the caller demands one; empty takes the policy's own.

    Raises:
        InputError: an unknown policy, a number missing or outside its range, `+partial` where it means nothing, or a
            contract that the policy does not keep.
    """
    body = text.removesuffix(PARTIAL)
    token_level = body != text
    name, *values = body.split(":")
    policy = _build(text, name, values, token_level)
    if contract and Contract.of(contract) is not policy.contract:
        letter = policy.contract.letter
        rule = f"policy {text} claims contract {letter} ({policy.contract}) alone: {policy.reason}"
        raise InputError("contract", contract, rule, f"pass --contract {letter} or another --policy")
    return policy


def _build(text: str, name: str, values: list[str], token_level: bool) -> Policy:
    exact = {"coupled": COUPLED, "greedy": GREEDY, "rejection": REJECTION}
    if name not in NAMES:
        raise InputError("policy", text, f"must be one of {', '.join(NAMES)}", "pass --policy coupled")
    if token_level and name in (*exact, "handoff", "collaborative"):
        rule = f"+partial changes what a rejected scale becomes, which {name} leaves no choice about"
        raise InputError("policy", text, rule, f"pass --policy {text.removesuffix(PARTIAL)}")
    if name in exact:
        _expect(text, values, 0, name)
        return exact[name]
    if name in ("match", "coupled-match"):
        _expect(text, values, (0, 1) if name == "match" else 1, f"{name}:0.5")
        rate = _number(text, "RATE", values[0]) if values else 0.5
        return _by_rate(text, is_most_likely if name == "match" else is_own_draw, rate, token_level)
    if name == "topk-match":
        _expect(text, values, 2, "topk-match:5:0.5")
        k = _integer(text, "K", values[0], 1)
        return _by_rate(text, partial(is_in_top, k=k), _number(text, "RATE", values[1]), token_level, k)
    _expect(text, values, 1, "kl:0.1" if name == "kl" else f"{name}:3")
    if name == "kl":
        accept = partial(accept_by_kl, rule=(_number(text, "BOUND", values[0]), token_level))
        return Policy(
            text, Contract.QUALITY, race, accept, race, reason="it keeps the tokens of laws that are merely near"
        )
    entry = _integer(text, "ENTRY", values[0], 0)
    trusted = (0, entry) if name == "handoff" else (entry, sys.maxsize)
    reason = "the draft decides some scales alone"
    return Policy(text, Contract.QUALITY, race, COUPLED.accept, race, trusted=trusted, entry=entry, reason=reason)


def _by_rate(text: str, test: Test, rate: float, token_level: bool, top: int = 1) -> Policy:
    accept = partial(accept_by_rate, rule=(test, rate, token_level))
    reason = "it keeps drafted tokens that the target would not have drawn"
    return Policy(text, Contract.QUALITY, race, accept, race, top=top, reason=reason)


def _expect(text: str, values: list[str], count: int | tuple[int, ...], example: str) -> None:
    counts = (count,) if isinstance(count, int) else count
    if len(values) not in counts:
        raise InputError("policy", text, f"takes {' or '.join(map(str, counts))} numbers", f"pass --policy {example}")


def _number(text: str, word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        example = text.replace(value, "0.5", 1) if value else f"{text}0.5"
        raise InputError("policy", text, f"{word} must be a number >= 0", f"pass --policy {example}")
    return number


def _integer(text: str, word: str, value: str, least: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= DIGITS and int(value) >= least):
        name = text.partition(":")[0]
        remedy = "pass --policy topk-match:5:0.5" if name == "topk-match" else f"pass --policy {name}:3"
        raise InputError("policy", text, f"{word} must be a whole number >= {least}", remedy)
    return int(value)


def check_against(policy: Policy, S: int, V: int) -> None:
    """Refuse a policy whose ENTRY lies beyond the pyramid or whose K exceeds the codebook. Raises `InputError`."""
    if policy.entry > S:
        raise InputError(
            "policy", policy.name, f"ENTRY must lie in 0..{S}", f"pass --policy {policy.name.split(':')[0]}:{S}"
        )
    if policy.top > V:
        raise InputError("policy", policy.name, f"K must lie in 1..V={V}", f"pass --policy topk-match:{V}:0.5")
