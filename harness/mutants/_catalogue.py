"""All planted bugs, by family of laws: whatever the families' modules name, in the order in which they do."""

from harness.mutants import (
    acceptance,
    batch,
    guidance,
    labour,
    masks,
    numbers,
    positions,
    randomness,
    reuse,
    rules,
    sensitivity,
    state,
    streams,
    windows,
    work,
)
from harness.mutants._mutant import Mutant

FAMILIES = (
    positions, guidance, masks, state, reuse, randomness, streams, acceptance, rules, labour, windows, work, batch,
    sensitivity, numbers,
)  # fmt: skip
MUTANTS = tuple(thing for family in FAMILIES for thing in vars(family).values() if isinstance(thing, Mutant))
