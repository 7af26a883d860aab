"""What JUnit says of regressions, and what a test may say itself."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.helpers import recorded
from tests.regression.tampered import NAMES, Content
from tests.reported import OWN, pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture
def own_properties(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what a test itself says of its component and replay; it counts where the test does not pass."""
    return request.node.stash.setdefault(OWN, {})


def golden_properties(document: dict, *files: str) -> dict[str, str]:
    """Return component and replay of the first defect in the JSON of `golden check`; empty where there is none."""
    cases = [case for file in document["files"] for case in file["cases"] if case["defects_listed"]]
    if not cases:
        return {}
    words = ["sdvar-harness", "golden", "check", *files, "--only", cases[0]["id"]]
    return {"component": cases[0]["defects_listed"][0]["component"], "replay": shlex.join(words)}


@pytest.fixture
def content() -> Content:
    tensors, metadata = recorded("variants-cpu")
    kept = {name: t.clone() for name, t in tensors.items() if name.split("/")[0] in NAMES}
    listed = [case for case in json.loads(metadata["cases"]) if case["id"] in NAMES]
    return Content(kept, listed, {key: value for key, value in metadata.items() if key != "cases"})
