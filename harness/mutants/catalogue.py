"""All planted bugs, by family of laws: whatever the families' modules name, in the order in which they do."""

from __future__ import annotations

from harness.mutants import acceptance, batch, guidance, masks, positions, randomness, sensitivity, state
from harness.mutants.mutant import Mutant

FAMILIES = (positions, guidance, masks, state, randomness, acceptance, batch, sensitivity)
MUTANTS = tuple(thing for family in FAMILIES for thing in vars(family).values() if isinstance(thing, Mutant))
