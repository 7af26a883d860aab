"""All laws, by family: a new family is a module of this room and a word here."""

from __future__ import annotations

from harness.laws import (
    acceptance,
    batch,
    guidance,
    masks,
    numbers,
    positions,
    randomness,
    reuse,
    rules,
    sensitivity,
    state,
    streams,
)
from harness.laws.law import Law

FAMILIES = (
    positions, guidance, masks, state, reuse, randomness, streams, acceptance, rules, batch, sensitivity, numbers
)  # fmt: skip
LAWS: tuple[Law, ...] = tuple(law for family in FAMILIES for law in family.LAWS)
