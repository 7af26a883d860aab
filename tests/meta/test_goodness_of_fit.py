"""The test behind contract B: how often it cries wolf, what it sees, and what it must see."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from harness.laws import Case, Subject
from harness.laws._acceptance import ALARM, DRAWS, distribution_case
from harness.laws._enumeration import chi_square, p_value, sequences, target_law
from harness.models._pair import ModelPair
from harness.mutants.acceptance import FROM_TARGET, SHARED_NOISE
from harness.protocol._decoder import Settings
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_decoder


def spread(case: Case) -> float:
    """Return the entropy of a case's law in nats; a bias hides in a law that is all but certain."""
    return float(torch.special.entr(target_law(case)).sum())


CASES = [
    distribution_case(Case(weights=k, V=3, draft="far", labels=(b,), policy="rejection"))
    for k in range(6)
    for b in range(3)
]
CASE = max(CASES, key=spread)


def images(law_N: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw images from a law over V = 3 and L = 5."""
    return sequences(3, 5)[torch.multinomial(law_N, count, replacement=True, generator=generator)]


def test_the_law_is_that_of_the_sequential_sampler():
    law_N = target_law(CASE)
    assert float(law_N.sum()) == pytest.approx(1, abs=1e-12)
    drawn = Subject(build_decoder).decode(CASE, request=CASE.request).tokens_BL
    assert p_value(drawn, law_N, 3) > ALARM


def test_false_alarms_are_as_rare_as_stated():
    """400 samples of the law itself: p < x in at most a share x of them; Bonferroni makes it less."""
    law_N, generator = target_law(CASE), torch.Generator().manual_seed(0)
    p = torch.tensor([p_value(images(law_N, 1000, generator), law_N, 3) for _ in range(400)])
    rates = {level: float((p < level).double().mean()) for level in (0.05, 0.01)}
    print(f"false alarms: {rates}, smallest p {float(p.min()):.2g}")
    assert rates[0.05] <= 0.05 + 0.03  # 3 % is 2.8 standard deviations of 400 trials
    assert rates[0.01] <= 0.01 + 0.015
    assert float(p.min()) > ALARM


def test_p_is_uniform_for_one_chi_square_test():
    law, generator = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.Generator().manual_seed(1)
    p = []
    for _ in range(1000):
        drawn = torch.multinomial(law, 500, replacement=True, generator=generator)
        p.append(chi_square(torch.bincount(drawn, minlength=3).double(), law))
    below = {level: float((torch.tensor(p) < level).double().mean()) for level in (0.1, 0.5, 0.9)}
    assert all(abs(share - level) < 0.05 for level, share in below.items()), below


@pytest.mark.parametrize(("shift", "power"), [(0.15, 0.95), (0.0, 0.0)])
def test_power_at_a_stated_distance(shift: float, power: float):
    """A law in which a share of the images comes from elsewhere is found out at the law's own number of draws."""
    law_N, generator = target_law(CASE), torch.Generator().manual_seed(2)
    other_N = (1 - shift) * law_N + shift * torch.full_like(law_N, 1 / len(law_N))
    alarms = [p_value(images(other_N, DRAWS, generator), law_N, 3) < ALARM for _ in range(20)]
    distance = float((other_N - law_N).abs().sum() / 2)
    print(f"total variation {distance:.3f}: {sum(alarms)} of 20 found")
    assert sum(alarms) >= power * 20
    assert shift or not any(alarms)


def handing_off(models: ModelPair, settings: Settings, entry: int) -> SpeculativeDecoder:
    """The negative control: the draft decides the first scale alone."""
    return SpeculativeDecoder(
        models, DecoderOptions(settings.draft_len, settings.bonus, parse_policy(f"handoff:{entry}"))
    )


def test_the_negative_control_is_found_out():
    trace = Subject(partial(handing_off, entry=1)).decode(CASE)
    assert p_value(trace.tokens_BL, target_law(CASE), 3) < ALARM


@pytest.mark.parametrize("mutant", [FROM_TARGET, SHARED_NOISE], ids=lambda mutant: mutant.id)
def test_a_biased_rule_is_found_out(mutant):
    trace = Subject(mutant).decode(CASE)
    assert p_value(trace.tokens_BL, target_law(CASE), 3) < ALARM


def test_an_image_outside_the_support_is_never_excused():
    law_N = target_law(CASE)
    law_N[-1] = 0.0
    tokens_BL = sequences(3, 5)[-1:].expand(1, -1)
    assert p_value(tokens_BL, law_N / law_N.sum(), 3) == 0.0


def test_cells_are_pooled_and_nothing_is_no_evidence():
    law = torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64)
    assert chi_square(torch.tensor([98.0, 2.0, 0.0]).double(), law) == 1.0  # one cell is left
    assert chi_square(torch.tensor([100.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()) == 1.0
    skewed = torch.tensor([400.0, 600.0]).double()
    assert chi_square(skewed, torch.tensor([0.5, 0.5]).double()) == pytest.approx(2.54e-10, rel=0.01)
