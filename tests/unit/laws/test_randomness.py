"""The law of own numbers: it accuses a decode that the global generator decides, and not one that only moves it."""

from __future__ import annotations

import pytest
import torch

from harness import ModelPair, Request, SeededNoise, Settings, Trace, build_decoder
from harness.laws import Case, Subject, Violation, check
from harness.mutants.randomness import JITTER, OWN_NUMBERS

LAW = "randomness.own-numbers"


class WithModule:
    """A right decoder that keeps an nn.Module, whose initial weights come from the global generator."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.module = torch.nn.Linear(4, 4)
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        return self.inner.decode(request, noise)


class Moves(WithModule):
    """A right decoder that builds a module in every decode."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.module = torch.nn.Linear(4, 4)
        noise.note("a module is built")  # as the decoder that `init` writes does
        return super().decode(request, noise)


@pytest.mark.parametrize("factory", [WithModule, Moves])
def test_a_module_built_at_any_time_is_no_violation(factory):
    with torch.random.fork_rng():
        assert check(LAW, factory, Case())
        assert Subject(factory).decoder(Case()).module is not None


@pytest.mark.parametrize("mutant", [OWN_NUMBERS, JITTER], ids=lambda mutant: mutant.id)
def test_a_decode_that_the_global_generator_decides_is_one(mutant):
    with torch.random.fork_rng(), pytest.raises(Violation, match="global generator"):
        check(LAW, mutant, Case())
