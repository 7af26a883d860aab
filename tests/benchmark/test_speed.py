"""How long decoding takes. Equality is checked before anything is timed; a number of a wrong decoder is no number.

`pytest tests/benchmark -m gpu` on a CUDA device, `pytest tests/benchmark -m slow` on a CPU.
"""

from __future__ import annotations

import pytest
import torch

from harness.judge._decode import judge
from harness.judge._evidence import Evidence
from harness.models._pair import ModelPair, load_digits
from harness.protocol._decoder import Contract
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.rounding._measure import budget_for
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder

POLICIES = ("coupled", "coupled-match:0.5", "match:0.5", "handoff:5", "collaborative:5")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def models(request: pytest.FixtureRequest) -> ModelPair:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("device=cuda: there is no CUDA device here; run tox without -e gpu")
    return load_digits().to(torch.device(request.param), torch.float32)


def check(models: ModelPair, request: Request, policy: str) -> None:
    """Judge the decoder that is timed: every token under contract A, structure and tensors under C."""
    decoder = SpeculativeDecoder(models, DecoderOptions(5, policy=parse_policy(policy)))
    actual = decoder.decode(request, models.noise(request))
    expected = sample_sequential(models.target, models.vae, request, models.noise(request))
    evidence = Evidence(models, request, actual, expected, budget_for(models))
    judgement = judge(evidence, Contract.of(decoder.contract))
    assert judgement.verdict.exit_status == 0, judgement.defects[:1]


@pytest.mark.parametrize("B", [1, 8])
def test_sequential(models: ModelPair, B: int, benchmark) -> None:
    request = Request(tuple(k % 10 for k in range(B)), 0)
    benchmark(lambda: sample_sequential(models.target, models.vae, request, models.noise(request)))


@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_speculative(models: ModelPair, policy: str, B: int, benchmark) -> None:
    request = Request(tuple(k % 10 for k in range(B)), 0)
    check(models, request, policy)
    decoder = SpeculativeDecoder(models, DecoderOptions(5, policy=parse_policy(policy), keep_intermediates=False))
    trace = benchmark(lambda: decoder.decode(request, models.noise(request)))
    assert bool((trace.scale_writes_BS == 1).all())
