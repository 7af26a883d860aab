"""What the law of counts asks of a trace: of whom it is asked, and what it finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.laws import Case, Violation, check
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.protocol.noise import Noise
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.speculative.build import build_decoder

CASE = Case(patch_nums=(1, 2, 3), draft="close", draft_len=2, exact=False)


class Telling:
    """The harness's own decoder, some of its counts told otherwise."""

    contract = "token-identical"
    told: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.decoder = build_decoder(models, settings)

    def decode(self, request: Request, noise: Noise) -> Trace:
        return replace(self.decoder.decode(request, noise), **self.told)


def telling(**told: Any) -> type[Telling]:
    return type("Other", (Telling,), {"told": told})


def test_counts_that_are_told_are_those_of_the_spy():
    assert check("rules.recount", telling(), CASE)


@pytest.mark.parametrize("name", ["target_calls", "target_rows", "draft_calls", "draft_rows"])
def test_who_shows_rounds_with_drafts_counts_both_networks(name: str):
    said = rf"{name} \[\] add up to 0, and a spy counted [1-9]"
    with pytest.raises(Violation, match=said):
        check("rules.recount", telling(**{name: []}), CASE)
    with pytest.raises(Violation, match=rf"{name} \[\d\] add up to \d, and a spy counted"):
        check("rules.recount", telling(**{name: [1]}), CASE)


def test_a_trace_without_rounds_need_not_count():
    nothing = {name: [] for name in ("target_calls", "target_rows", "draft_calls", "draft_rows")}
    assert check("rules.recount", telling(rounds=[], **nothing), CASE)
