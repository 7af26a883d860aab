"""Quality on a CUDA device: a decoder that loses nothing is KEPT, planted losses are LOST, workers change nothing."""

from __future__ import annotations

import pytest
import torch

from harness.decoders._factory import OWN_DECODER
from harness.decoders._runner import Terms
from harness.models._pair import load_digits
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.quality._draw import DRAFT, Source, control_sources
from harness.quality._gather import Conditions
from harness.quality._study import Study, decoder_sources, digits_means, run_study

pytestmark = pytest.mark.gpu


def test_planted_losses_are_lost_and_exact_decoders_kept():
    planted = [
        source
        for name in ("labels", "phi", "blur")
        for source in decoder_sources(f"tests.losses:{name}", [Settings(5, policy="")])
    ]
    own = decoder_sources(OWN_DECODER, [Settings(5, policy=policy) for policy in ("coupled", "rejection")])
    own += decoder_sources(OWN_DECODER, [Settings(5, policy="coupled", graphs=True, compiled=True)])
    asked = Study(
        [*control_sources(1), *own, Source(DRAFT, draft=True), *planted], 4000, 500, request=Request((0,)), most=0.25
    )
    found = run_study(load_digits().to("cuda"), digits_means(), asked, Conditions(terms=Terms(in_process=True)))
    verdicts = {row.name: verdict.value for row, verdict in zip(found.rows[1:], found.verdicts, strict=True)}
    print([(row.name, str(row.loss), str(row.drift)) for row in found.rows])
    assert verdicts == {
        "sequential, other seeds": "KEPT", "coupled": "KEPT", "rejection": "KEPT",
        "coupled graphs compiled": "KEPT",
        "the draft alone": "LOST",
        "tests.losses:labels": "LOST", "tests.losses:phi": "LOST", "tests.losses:blur": "LOST",
    }  # fmt: skip
    assert torch.cuda.is_available()
