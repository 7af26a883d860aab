"""docs/report.md tells the truth: every mistake that it names is planted, and broken is exactly what it says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from harness import Request, Verdict
from harness.adapters._factories import PUBLISHED_FACTORIES
from harness.adapters._parts_sdvar import examine_parts
from harness.judge._verdict import PartLaw, PartVerdict
from harness.rounding._measure import quick_budget
from tests.helpers import some
from tests.published.checkout import make
from tests.unit.adapters.test_published import SMALL, run, settings

PAGE = (Path(__file__).parents[3] / "docs" / "report.md").read_text()
ROW = re.compile(
    r"^\|(?P<claim>[^|]*)\|(?P<says>[^|]*)\|(?P<laws>[^|]*)\| `(?P<switch>[a-z -]+)` \|(?P<seen>[^|]*)\|$", re.MULTILINE
)
ROWS = [(m["switch"], re.findall(r"`([^`]+)`", m["laws"])) for m in ROW.finditer(PAGE)]
WRONG = (PartVerdict.BROKEN, PartVerdict.CRASHED, PartVerdict.ABSENT)
METHODS = (
    "_build_combined_query", "_split_logits_by_stage", "_get_attention_mask", "draft_generate_batch",
    "target_verify_batch", "basic_token_matching", "update_state_with_accepted_tokens", "_initialize_inference_state",
)  # fmt: skip


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


def rows_of(checkout: Path) -> list[PartLaw]:
    decoder = PUBLISHED_FACTORIES["sdvar-parallel"](SMALL, settings(checkout))
    return examine_parts(decoder, Request((0, 1), 0), quick_budget(SMALL))


def test_the_page_has_every_finding_of_the_report_in_its_order():
    order = [
        "What the report calls right", "## 1. `_build_combined_query`", "## 2. `_split_logits_by_stage`",
        "## 3. `_get_attention_mask`", "## 4. `draft_generate_batch`", "## 5. `update_state_with_accepted_tokens`",
        "## The urgent list", "## The two repairs in code", "## The list of tests", "## The expected results",
        "## What to do first",
    ]  # fmt: skip
    places = [PAGE.index(text) for text in order]
    assert places == sorted(places)
    sections = dict(zip(order[1:6], (PAGE[a:b] for a, b in pairwise(places[1:7])), strict=True))
    marks = [(section.count("| ❌"), section.count("| ⚠️")) for section in sections.values()]
    # the report has (4, 0), (2, 1), (3, 0), (0, 3), (3, 0); two of the first are told apart further
    assert marks == [(6, 0), (2, 1), (3, 0), (0, 3), (3, 0)]
    assert all(method in PAGE for method in METHODS)
    assert len(ROWS) >= 25


def test_every_finding_says_on_which_commit_it_was_seen_or_on_none():
    seen = [m["seen"].strip() for m in ROW.finditer(PAGE)]
    named = [re.findall(r"`([0-9a-f]{7})`", text) for text in seen]
    assert {commit for commits in named for commit in commits} == {"9af8cf3", "c62ffd1", "a2d5cd0"}
    assert [text for text, commits in zip(seen, named, strict=True) if not commits] == ["on no commit tried"] * 5


def test_every_method_is_named_with_the_line_where_it_begins(shelf: Path):
    checkout = make(shelf, "sdvar")
    lines = (checkout / "models" / "var.py").read_text().splitlines()
    places = {row.part: row.place.split(":") for row in rows_of(checkout) if row.place}
    assert {"_build_combined_query", "_split_logits_by_stage", "update_state_with_accepted_tokens"} <= set(places)
    for part, (name, line) in places.items():
        assert name in ("var.py", "helpers.py")
        if name == "var.py":
            near = "".join(lines[int(line) - 1 : int(line) + 1])  # a decorator stands above it
            assert f"def {part}(" in near


def test_a_right_checkout_breaks_none_of_the_laws(shelf: Path):
    rows = rows_of(make(shelf, "sdvar"))
    assert {row.verdict for row in rows} == {PartVerdict.HELD, PartVerdict.TOLD}
    named = {text for _, laws in ROWS for text in laws if not text.startswith(("verify", "test3"))}
    assert named <= {f"{row.part}: {row.law}" for row in rows}


@pytest.mark.parametrize(("switch", "laws"), some(4, ROWS), ids=[f"{switch}-{k}" for k, (switch, _) in enumerate(ROWS)])
def test_a_row_of_the_page_is_what_the_harness_says(shelf: Path, switch: str, laws: list[str]):
    checkout = make(shelf, "sdvar", "addparam-th", *switch.split())
    of_parts = {text for text in laws if not text.startswith(("verify", "test3"))}
    if of_parts:
        broken = {
            f"{row.part}: {row.law}"
            for row in rows_of(checkout)
            if row.verdict in (PartVerdict.BROKEN, PartVerdict.CRASHED, PartVerdict.ABSENT)
        }
        assert of_parts <= broken
    for text in set(laws) - of_parts:
        where, _, component = text.partition(": ")
        if where == "test3":
            result = run("sdvar-test3", checkout, entry_num=2)
        else:
            threshold = 0.99 if switch == "loop-stops" else 0.0
            result = run("sdvar-parallel", checkout, gamma=2, similarity_threshold=threshold)
        assert result.verdict is Verdict.DEFECT
        assert result.first_divergence is not None
        assert result.first_divergence.component == component
