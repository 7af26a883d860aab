"""The plan of goldens: what the committed files were recorded from."""

from __future__ import annotations

import json

import pytest

from harness.golden import plan
from harness.golden.store import canonical, read


@pytest.mark.parametrize("platform", plan.KEPT)
@pytest.mark.parametrize("models", plan.FILES)
def test_the_committed_goldens_are_of_the_planned_cases_in_their_order(models: str, platform: str):
    recording = read(plan.path_of(models, platform))
    assert list(recording.cases) == json.loads(canonical(plan.cases(models)))
