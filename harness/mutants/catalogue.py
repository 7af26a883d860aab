"""All planted bugs, by family of laws."""

from __future__ import annotations

from harness.mutants import acceptance, batch, guidance, masks, positions, randomness, sensitivity, state
from harness.mutants.mutant import Mutant

FAMILIES = (positions, guidance, masks, state, randomness, acceptance, batch, sensitivity)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for family in FAMILIES for mutant in family.MUTANTS)
