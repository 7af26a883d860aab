"""The pair of bits that ships: small, judged right, its texts are digits, and every door that names networks opens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from safetensors import safe_open

from harness import ModelPair, Request, Settings, Terms, Trace, Verdict, build_decoder, load_digits, load_digits_bits
from harness.models.infinity.checkpoint import SHIPPED
from harness.plugin._checking import DefectFound, judged
from harness.protocol import Rows, ScaleGuidance
from harness.quality._features import load_features
from harness.reference.sequential import sample_sequential
from harness.verification import verify

MOST_BYTES = 3_000_000
# Of these 80 digits 95 % are; of 200 at guidance 1.5 97 %. Below this somebody changed weights or law.
LEAST_RECOGNISED = 0.88
IN_PROCESS = Terms(in_process=True)


@cache
def pair() -> ModelPair:
    return load_digits_bits().unrounded()


def recognised(cfg: float, shift: int = 0) -> float:
    """Return the share of images that are recognised as the label, where texts are numbered from `shift` on."""
    labels = tuple(range(10)) * 8
    texts = pair().texts[shift:] + pair().texts[:shift]
    request = replace(pair().conditioned(Request(labels, 7, cfg=cfg)), texts=texts)
    trace = sample_sequential(pair().target, pair().vae, request, pair().noise(request))
    with torch.inference_mode():
        _, seen_B = load_features()(pair().vae.decode(trace.f_hat_BCPP))
    return float((seen_B == torch.tensor(labels)).float().mean())


def test_it_is_small_stored_in_half_and_has_a_text_a_digit():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= MOST_BYTES
    for file in SHIPPED.iterdir():
        with safe_open(file, "pt") as stream:
            assert {stream.get_tensor(name).dtype for name in stream.keys()} == {torch.float16}  # noqa: SIM118
    config = pair().target.config
    assert config.pyramid.channels == 8 and config.pyramid.S == 7 and config.pyramid.sides[-1] == (8, 8)
    assert [len(rows.numbers_TA) for rows in pair().texts] == [1, 2, 3] * 3 + [1]
    assert pair().conditions == 10 and not pair().taken


def test_digits_that_it_draws_are_those_asked_for():
    assert recognised(2.0) >= LEAST_RECOGNISED
    assert recognised(2.0, shift=1) <= 0.2  # it is the texts that say which


def test_a_request_is_given_the_texts_once():
    models, S = pair(), pair().pyramid.S
    plain = models.conditioned(Request((3,), 1, cfg=2.5))
    assert plain.texts == models.texts and plain.scale_guidance == ScaleGuidance((2.5,) * S)
    own = replace(plain, texts=(Rows(torch.ones(2, 128)),), labels=(0,))
    assert models.conditioned(own) is own
    guided = Request((3,), 1, scale_guidance=ScaleGuidance((3.0,) * S, places=(-1,)))
    assert models.conditioned(guided).scale_guidance == guided.scale_guidance
    assert load_digits().conditioned(Request((3,), 1)) == Request((3,), 1)


class Shifted:
    """Draws the next digit than was asked for."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self._inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: Any) -> Trace:
        texts = request.texts[1:] + request.texts[:1]
        return self._inner.decode(replace(request, texts=texts), noise)


def test_the_right_decoder_is_identical_and_accepts_scales_now_and_then():
    requests = [pair().conditioned(Request((0, 1, 2, 7), 0))]
    result = verify(pair(), settings=Settings(3), requests=requests, terms=IN_PROCESS)
    assert result.verdict is Verdict.IDENTICAL
    decoder = build_decoder(pair(), Settings(3))
    trace = decoder.decode(requests[0], pair().noise(requests[0]))
    accepted = {turn.accepted for rounds in trace.rounds for turn in rounds}
    assert {0, 1} <= accepted and max(accepted) > 1, accepted
    wrong = verify(pair(), Shifted, Settings(3), requests, terms=IN_PROCESS)
    assert wrong.verdict is Verdict.DEFECT and wrong.first_divergence.component == "text"


def test_python_asks_for_every_text_where_no_request_is_named():
    result = verify(pair(), settings=Settings(7), terms=replace(IN_PROCESS, laws=0))
    assert result.verdict is Verdict.IDENTICAL and {task.request.texts for task in result.plan.tasks} == {pair().texts}


def test_a_judge_of_ones_own_tests_takes_it():
    request = pair().conditioned(Request((4, 2), 0))
    assert judged(pair(), build_decoder(pair(), Settings(2)), request).verdict is Verdict.IDENTICAL
    with pytest.raises(DefectFound, match="text"):
        judged(pair(), Shifted(pair(), Settings(2)), request)
