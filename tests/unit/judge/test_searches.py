"""How many causes a run searches: enough that the first defect is exact, and no more than it can pay for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.judge import _components as components
from harness.judge._evidence import MOST_SEARCHED, Searches
from harness.models import ModelPair
from harness.protocol import Request, SeededNoise, Settings, Trace
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3)))
REQUESTS = [Request((0, 1, 2), seed) for seed in range(6)]
EARLY = 5, 1  # seed and image that go wrong at scale 1, by halves swapped; the others at scale 2 by what nobody knows


class Wrong:
    """The harness's own decoder, which shows wrong logits."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, noise)
        assert trace.intermediates is not None
        rows_RLV = trace.intermediates.rows_RLV.clone()
        rows_RLV[:, MODELS.pyramid.span(2)] += torch.rand(rows_RLV.shape[2], generator=torch.Generator().manual_seed(0))
        if request.seed == EARLY[0]:
            rows_RLV[EARLY[1] :: 3, MODELS.pyramid.span(1)] = rows_RLV[EARLY[1] :: 3, MODELS.pyramid.span(1)].flip(0)
        return replace(trace, intermediates=replace(trace.intermediates, rows_RLV=rows_RLV))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Searches of wrong logits: seed and image."""
    asked, search = list[tuple[int, int]](), components.wrong_rows

    def counted(evidence: Any, image: int, si: int) -> Any:
        asked.append((evidence.request.seed, image))
        return search(evidence, image, si)

    monkeypatch.setattr(components, "wrong_rows", counted)
    return asked


def test_a_run_searches_some_causes_and_what_comes_first(searched: list[tuple[int, int]]):
    result = verify_here(MODELS, Wrong, [Settings(2), Settings(1)], REQUESTS)
    first = result.first_divergence
    assert first is not None
    assert (first.component, first.seed, first.image, first.scale) == ("guidance", *EARLY, 1)
    assert "halves swapped" in first.detail
    assert len(searched) == MOST_SEARCHED + 2
    assert searched.count(EARLY) == 2  # of either setting
    of_images = [each for setting in result.settings for each in setting.judgements]
    assert sum(each.wrong_tensors for each in of_images) == 2 * 18
    others = [each for judgement in of_images for each in judgement.defects if "not searched" in each.detail]
    assert len(others) == 2 * 18 - len(searched)
    assert {each.detail for each in others} == {
        "logits of scale 2 differ; not searched: taken for what the first ones of this kind were"
    }
    (named,) = {each.component for each in others}
    assert named in {each.component for each in of_images[0].defects}


def test_what_comes_before_all_others_of_its_setting_is_searched():
    searches = Searches()
    assert searches.known(0, 1, (3, 4, 0)) is None  # the first one
    for task in range(MOST_SEARCHED):
        searches.add(0, 1, (3, 4 + task, 0), "mask")
    assert searches.known(0, 1, (3, 4, 1)) == "mask"
    assert searches.known(0, 2, (3, 4, 1)) is None  # of another kind
    assert searches.known(1, 1, (3, 4, 1)) is None  # of another setting
    for place in ((2, 9, 9), (3, 3, 9), (3, 4, 0)):  # an earlier scale, an earlier task that was repeated, the same one
        assert searches.known(0, 1, place) is None
