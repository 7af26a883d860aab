"""How long decoding takes. Equality is checked before anything is timed; a number of a wrong decoder is no number.

`pytest tests/benchmark -m gpu` on a CUDA device, `pytest tests/benchmark -m slow` on a CPU.
"""

from __future__ import annotations

import pytest
import torch

from harness.calibration import budget_for
from harness.differential import judge, new_noise
from harness.models.pair import ModelPair, load_digits
from harness.reference import sequential
from harness.request import Request
from harness.speculative.policies import parse
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.unclaimed import TOKEN_IDENTICAL, judge_unclaimed

POLICIES = ("coupled", "coupled-match:0.5", "match:0.5", "handoff:5", "collaborative:5")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def models(request: pytest.FixtureRequest) -> ModelPair:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("device=cuda: there is no CUDA device here; run tox without -e gpu")
    return load_digits().to(torch.device(request.param), torch.float32)


def check(models: ModelPair, request: Request, policy: str) -> None:
    """Judge the decoder that is timed: every token under contract A, structure and tensors under C."""
    decoder = SpeculativeDecoder(models, Options(5, policy=parse(policy)))
    actual = decoder.decode(request, new_noise(models, request))
    expected = sequential.sample(models.target, models.vae, request, new_noise(models, request))
    by = judge if decoder.contract == TOKEN_IDENTICAL else judge_unclaimed
    judgement = by(models, request, actual, expected, budget_for(models, request))
    assert judgement.verdict.exit_status == 0, judgement.defects[:1]


@pytest.mark.parametrize("B", [1, 8])
def test_sequential(models: ModelPair, B: int, benchmark) -> None:
    request = Request(tuple(k % 10 for k in range(B)), 0)
    benchmark(lambda: sequential.sample(models.target, models.vae, request, new_noise(models, request)))


@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_speculative(models: ModelPair, policy: str, B: int, benchmark) -> None:
    request = Request(tuple(k % 10 for k in range(B)), 0)
    check(models, request, policy)
    decoder = SpeculativeDecoder(models, Options(5, policy=parse(policy), keep_intermediates=False))
    trace = benchmark(lambda: decoder.decode(request, new_noise(models, request)))
    assert bool((trace.scale_writes_BS == 1).all())
