from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch
from hypothesis import given
from torch import Tensor

from harness.laws import Case, Law, Subject
from harness.mutants._mutant import policy
from harness.speculative._accept import Acceptance, Policy, Proposal, Window
from harness.speculative.parts import Parts
from tests.drawn import acceptance_patterns, small_cases
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("state"), ids=lambda law: law.id)
def test_law_of_state(law: Law, law_holds) -> None:
    law_holds(law)


@given(small_cases, acceptance_patterns)
def test_state_is_sequential_for_every_acceptance_pattern(case: Case, pattern: tuple[int, ...]) -> None:
    """Whatever number of scales stands: the law of the state says nothing about which tokens are right."""
    lengths = chain(pattern, repeat(pattern[-1]))

    def impose(true: Policy) -> Policy:
        def accept(used: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
            judged = true.accept(used, proposal, probs_bnV, window)
            whole_s = torch.arange(judged.whole_bs.shape[1]) < next(lengths)
            return replace(judged, whole_bs=whole_s.expand_as(judged.whole_bs))

        return replace(true, accept=accept)

    sync = next(law for law in laws_of("state") if law.id == "state.sync")
    sync.check(Subject(policy(impose)), case)
