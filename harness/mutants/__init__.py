"""Planted bugs: what the laws are tested with."""

from harness.mutants._hunt import MUTANTS, Caught, Hunt, HuntWork, caught_with_mutant, hunting_cases, laws_for
from harness.mutants._mutant import Mutant
