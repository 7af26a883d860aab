"""The policies' bench: every image once, the yardsticks, means by hand, a table, a picture, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from harness.errors import InputError
from harness.judge._verdict import Distance
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.quality._draw import portions
from scripts.pages import svg
from scripts.policy_costs import (
    PolicyRow,
    acceptance_sentences,
    main,
    measure_policies,
    policies_chart,
    policy_markdown,
)
from tests.toy import toy_pair

MODELS = toy_pair(ScalePyramid((1, 2, 3)), 6, seed=1, apart=0.2)
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
SETTINGS = [("coupled", 1), ("coupled", 3), ("match:0", 3), ("rejection", 3), ("handoff:3", 3)]


def measured(size: int) -> list[PolicyRow]:
    return measure_policies(MODELS, portions(7, size, (0, 1), Request((0,), 0, 1.5)), SETTINGS)


def test_every_image_is_measured_once_whatever_the_batch():
    whole, parts = measured(7), measured(3)
    assert [(row.policy, row.contract) for row in whole][:3] == [
        ("the draft alone", ""),
        ("another seed", ""),
        ("coupled", "A"),
    ]
    for a, b in zip(whole, parts, strict=True):
        assert len(a.distances) == len(a.target_calls) == 7
        assert [d.tokens for d in a.distances] == [d.tokens for d in b.distances]
        assert (a.target_calls, a.target_rows, a.draft_rows) == (b.target_calls, b.target_rows, b.draft_rows)
        assert a.scales_per_round == b.scales_per_round


def test_the_rows_say_what_the_policies_do():
    draft, other, exact, longer, everything, law, handed = measured(7)
    assert exact.target_calls == [3] * 7
    assert exact.target_rows == [14] * 7
    assert {d.tokens for d in exact.distances + longer.distances} == {0.0}
    assert everything.target_calls == [1] * 7
    assert [d.tokens for d in everything.distances] == [d.tokens for d in draft.distances]
    assert [d.tokens for d in handed.distances] == [d.tokens for d in draft.distances]
    assert handed.target_calls == draft.target_calls == [0] * 7
    assert 0 < draft.mean("tokens") < other.mean("tokens") <= 1
    assert law.mean("tokens") > draft.mean("tokens")
    assert exact.judged == {0: 7, 1: 7, 2: 7}
    assert sum(n * rounds for n, rounds in longer.scales_per_round.items()) == 21


def test_a_policy_under_which_nothing_is_judged_says_nothing_of_acceptance():
    settings = [("code:3", 1), ("code:1", 1), ("coupled", 1)]
    rows = measure_policies(MODELS, portions(3, 3, (0, 1), Request((0,), 0, 1.5)), settings)
    alone, first = rows[2:4]
    assert (alone.target_calls, alone.draft_rows, {d.tokens for d in alone.distances}) == ([3] * 3, [0] * 3, {0.0})
    assert (first.target_calls, first.target_rows, first.draft_rows) == ([1] * 3, [1] * 3, [14] * 3)
    assert [text.split("`")[1] for text in acceptance_sentences(rows)] == ["coupled"]


def by_hand() -> list[PolicyRow]:
    return [
        PolicyRow("another seed", "", "", [2], [5], [0], [Distance(0.5, 0.1, 0.25)]),
        PolicyRow("match:0.5", "C", "2", [1, 2], [4, 6], [5, 5], [Distance(0.0, 0.0, 0.0), Distance(0.5, 0.1, 0.01)]),
        PolicyRow("handoff:1", "C", "2", [1, 1], [4, 4], [5, 5], [Distance(0.0, 0.0, 0.0), Distance(1.0, 0.1, 0.1)]),
        PolicyRow("handoff:2", "C", "2", [0, 0], [0, 0], [5, 5], [Distance(1.0, 0.1, 0.2)]),
    ]


def test_the_table_holds_the_means():
    lines = policy_markdown(by_hand()).splitlines()
    assert lines[3] == "| match:0.5 | C | 2 | 1.50 | 5 | 5 | 0.250 | 0.0050 | - |"
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {10}


def test_the_picture_is_one_line_a_policy_and_one_dot_a_setting():
    figure = policies_chart(by_hand())
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["match:0.5"] == [[1.5, 0.005]]
    assert drawn["handoff:ENTRY"] == [[1.0, 0.05], [0.0, 0.2]]  # both hand-offs share one
    assert [note.get_text() for note in figure.axes[0].texts] == ["another seed"]
    assert len(drawn) == 3
    assert svg(figure) == svg(policies_chart(by_hand()))
    ElementTree.fromstring(svg(figure))


FEW = ("--images", "2", "--batch", "1", "--once", "", "--draft-len", "10")


def outputs(folder: Path) -> list[str]:
    """Return the options that write a page, a picture and a file in a folder."""
    (folder / "page.md").write_text(f"above\n{BEGIN}old\n{END}below\n")
    names = {"into": "page.md", "picture": "chart.svg", "json": "counts.json"}
    return [word for option, name in names.items() for word in (f"--{option}", str(folder / name))]


def test_the_script_replaces_the_table_and_nothing_else(tmp_path: Path):
    main([*FEW, *outputs(tmp_path), "--policies", "match:0"])
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(f"above\n{BEGIN}2 images, cfg 1.5, digits on cpu, float32\n\n| policy |")
    assert text.endswith(f"{END}below\n")
    assert "old" not in text
    assert "| match:0 | C | 10 | 1.00 | 680 | 680 |" in text
    ElementTree.parse(tmp_path / "chart.svg")
    rows = json.loads((tmp_path / "counts.json").read_text())["rows"]
    assert [len(row["distances"]["pixels"]) for row in rows] == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "0"], "images=0"),
        (["--policies", "guess"], "policy=guess"),
        (["--policies", "coupled", "--draft-len", "11"], "draft_len=11"),
        (["--into", "PAGE"], "into=PAGE: must hold the lines <!-- table: begin -->"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(options: list[str], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=f"^{said}"):
        main([*FEW, *outputs(tmp_path), *options])
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_the_bench_draws_from_no_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    measured(7)
    assert torch.equal(before, torch.get_rng_state())
