"""The scoreboard: what measurements keep of the report's promises, and the files that it reads."""

from __future__ import annotations

import json
import math
import random
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.bench._speed import Sequential, Speed, SpeedRow
from harness.errors import InputError
from harness.judge._verdict import Distance
from harness.quality._distances import Estimate
from harness.quality._rows import QualityRow
from harness.quality._study import Measured
from scripts.measured import read_policies, read_quality, read_speed
from scripts.pages import replaced_parts, svg
from scripts.policy_costs import PolicyRow, policies_document
from scripts.quality_page import quality_markdown, trade_off_chart
from scripts.scoreboard import main, scoreboard, speed_table, speed_up_chart
from tests.docs.pages import ROOT
from tests.unit.bench.measured import MACHINE
from tests.unit.runs.test_schema import ODD, changed

MEASURED = {"policies": "policies.json", "speed": "speed-bf16.json", "quality": "quality.json"}
ALONE = Sequential(100.0, 90.0, 20.0, 1000)
FAST = SpeedRow(1, "imposed:1", 9, 150.0, ALONE, ALONE, 50.0, 20.0, 25.0, 10.0, 1.0, 1.0, 1150)
SLOW = replace(FAST, policy="imposed:0.5", ms=80.0, draft_passes_ms=math.nan, target_calls=6.0, kept=0.375, peak=1250)
RUN = Speed("d16-d30 (random weights)", "TF32", "bfloat16", True, True, MACHINE, [FAST, SLOW])
DIGITS = Speed("digits", "float32", "float32", True, False, MACHINE, [replace(FAST, policy="match:0.5", draft_len=5)])
POLICIES = [
    PolicyRow("the draft alone", "", "", [0], [0], [5], [Distance(1.0, 0.1, 0.25)]),
    PolicyRow("coupled", "A", "5", [8], [5], [5], [Distance(0.0, 0.0, 0.0)]),
    PolicyRow("match:0.5", "C", "5", [4], [5], [5], [Distance(0.5, 0.1, 0.05)]),
    PolicyRow("match:0.5", "C", "10", [3], [5], [5], [Distance(0.5, 0.1, 0.05)]),
]


def test_the_scoreboard_repeats_its_files():
    lines = scoreboard(POLICIES, "digits", [RUN, DIGITS]).markdown().splitlines()[2:]
    assert lines == [
        "| d16-d30, TF32, draft bfloat16, CUDA graphs, 9 scales + bonus, 100% of scales accepted | - | 1.0 | 2.00 |"
        " +15.0% | imposed | calls, speed, memory |",
        "| d16-d30, TF32, draft bfloat16, CUDA graphs, 9 scales + bonus, 38% of scales accepted | - | 6.0 | 1.25 |"
        " +25.0% | imposed | none |",
        "| digits, `coupled` | A | 8.0 | - | - | 0 % | image (speed not measured) |",
        "| digits, `match:0.5` | C | 4.0 | 2.00 | - | 20 % | calls, speed |",
    ]
    line = "| TF32, draft bfloat16, CUDA graphs | 1 | `imposed:1` | 100% | 9 + bonus | 150.0 | 100.0 | 100.0 | 50.0 |"
    assert line in speed_table([RUN])


def test_divided_labour_stands_at_every_batch_beside_imposed_acceptance():
    code = replace(FAST, policy="code:5", draft_len=1, target_calls=5.0, kept=math.nan)
    rows = [replace(code, batch=8, peak=1250), code, FAST, replace(code, batch=32, ms=90.0, peak=1250),
            replace(code, policy="code:9", target_calls=9.0, ms=90.0, peak=1250)]  # fmt: skip
    runs = [replace(RUN, bonus=False, rows=rows)]
    lines = scoreboard(POLICIES, "digits", runs).markdown().splitlines()[2:]
    named = "| d16-d30, TF32, draft bfloat16, CUDA graphs,"
    assert lines[:3] == [
        f"{named} 9 scales, 100% of scales accepted | - | 1.0 | 2.00 | +15.0% | imposed | calls, speed, memory |",
        f"{named} `code:5`, batch 1 / 8 / 32 | C | 5.0 | 2.00 / 2.00 / 1.11 | +15.0% / +25.0% / +25.0% |"
        " random weights | calls, speed at 1 and 8, memory at 1 |",
        f"{named} `code:9`, batch 1 | C | 9.0 | 1.11 | +25.0% | random weights | none |",
    ]
    assert len(lines) == 5
    assert "| 8 | `code:5` | - | - | 150.0 |" in speed_table(runs)  # neither scales kept nor a draft length
    on_digits = replace(DIGITS, rows=[replace(code, draft_len=2)])
    policies = [*POLICIES, PolicyRow("code:5", "C", "5", [5], [5], [5], [Distance(0.5, 0.1, 0.05)])]
    assert scoreboard(policies, "digits", [on_digits]).markdown().splitlines()[-1] == (
        "| digits, `code:5` | C | 5.0 | 2.00 | - | 20 % | calls, speed |"
    )


def test_runs_of_several_cards_say_which():
    other = replace(RUN, machine=replace(MACHINE, name="NVIDIA H100 80GB HBM3"), rows=[FAST])
    lines = scoreboard(POLICIES, "digits", [RUN, other, DIGITS]).markdown().splitlines()[2:5]
    cards = ["by hand", "by hand", "H100 80GB HBM3"]
    assert [line.partition(", 9 scales")[0] for line in lines] == [
        f"| d16-d30, TF32, draft bfloat16, CUDA graphs, {card}" for card in cards
    ]
    table = speed_table([RUN, other])
    assert "| d16-d30 | TF32, draft bfloat16, CUDA graphs, H100 80GB HBM3 | 1 |" in table
    assert table.splitlines()[-2:] == [f"- TF32 on {run.machine}" for run in (other, RUN)]
    assert "by hand |" not in speed_table([RUN, RUN])


def quality_of(policy: str, contract: str, drift: float) -> QualityRow:
    low, high = drift - 0.02, drift + 0.02
    loss = Estimate(0.01, -0.01, 0.03)
    return QualityRow(policy, contract, "5", 10_000, 42, 4.0, loss=loss, drift=Estimate(drift, low, high))


def test_quality_adds_a_column_and_decides_the_promise_of_the_image():
    rows = [quality_of("coupled", "A", 0.0), quality_of("match:0.5", "C", 0.03), quality_of("kl:0.1", "C", 0.5)]
    found = Measured("digits", "cuda", 0.5, "a classifier", "a unit", "real", 40, rows)
    lines = scoreboard(POLICIES, "digits", [RUN, DIGITS], measured=found).markdown().splitlines()
    assert lines[0].endswith("| loss; drift (< 0.1) | promises kept |")
    assert lines[2].endswith("| +15.0% | imposed | imposed | calls, speed, memory |")
    assert lines[4:] == [
        "| digits, `coupled` | A | 8.0 | - | - | 0 % | 0.010 ± 0.020; 0.000 ± 0.020 KEPT | image (speed not"
        " measured) |",
        "| digits, `match:0.5` | C | 4.0 | 2.00 | - | 20 % | 0.010 ± 0.020; 0.030 ± 0.020 KEPT | calls, speed, image |",
        "",
        "- 5 target calls or fewer: digits, `match:0.5`; of those with imposed acceptance 1.",
        "- 1.3 times faster or more: digits, `match:0.5`; of those with imposed acceptance 1.",
        "- Less than 20 % more memory: no decoder; of those with imposed acceptance 1.",
        "- The image's quality: digits, `coupled`; digits, `match:0.5`; of those with imposed acceptance 0.",
        "- Calls and image together: digits, `match:0.5`.",
        "- Most promises together: digits, `match:0.5` (calls, speed, image).",
    ]
    lost = replace(found, rows=[quality_of("coupled", "A", 0.5), quality_of("match:0.5", "C", 0.1)])
    lines = scoreboard(POLICIES, "digits", [RUN, DIGITS], measured=lost).markdown().splitlines()
    assert lines[4].endswith("0.500 ± 0.020 LOST | none (speed not measured) |")
    assert lines[5].endswith("0.100 ± 0.020 INCONCLUSIVE | calls, speed |")
    assert lines[-2:] == [
        "- Calls and image together: no decoder.",
        "- Most promises together: digits, `match:0.5` (calls, speed).",
    ]


def test_a_pair_without_policies_and_timings_stands_by_its_calls_and_quality():
    rows = [quality_of("sequential", "A", 0.0), quality_of("code:5", "C", 0.03), quality_of("code:7", "C", 0.5)]
    rows = [replace(rows[0], yardstick=True), *(replace(row, calls=float(row.name[-1])) for row in rows[1:])]
    other = Measured("digits-code", "cuda", 0.25, "a classifier", "a unit", "real", 40, rows)
    found = replace(other, models="digits", rows=[quality_of("coupled", "A", 0.0)])
    board = scoreboard(POLICIES, "digits", [RUN], measured=found, others=[other])
    assert [line.decoder for line in board.lines[-2:]] == ["digits-code, `code:5`", "digits-code, `code:7`"]
    assert [dict(line.kept) for line in board.lines[-2:]] == [{"calls": "", "image": ""}, {}]
    assert board.markdown().splitlines()[-2] == "- Calls and image together: digits-code, `code:5`."


def test_a_speed_up_that_the_passes_do_not_allow_keeps_no_promise():
    noisy = replace(FAST, target=replace(ALONE, passes_ms=50.0))  # 2.0 measured, 1.11 allowed
    text = scoreboard(POLICIES, "digits", [replace(RUN, rows=[noisy])]).markdown()
    assert "| 1.0 | 2.00 | +15.0% | imposed | calls, memory |" in text


def test_a_policy_timed_twice_is_refused():
    with pytest.raises(InputError, match=r"match:0.5 at draft_len 5 is timed twice on digits; name one of the files"):
        scoreboard(POLICIES, "digits", [DIGITS, replace(DIGITS, graphs=False)]).markdown()


def test_the_picture_shows_speed_against_acceptance():
    figure = speed_up_chart([RUN, DIGITS])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["TF32, draft bfloat16, CUDA graphs, 9 scales + bonus"] == [[0.375, 1.25], [1.0, 2.0]]
    ElementTree.fromstring(svg(figure))


def test_files_are_read_back_as_they_were_written(tmp_path: Path):
    runs, policies = tmp_path / "speed-a.json", tmp_path / "policies.json"
    runs.write_bytes(RUN.document())
    policies.write_bytes(policies_document("digits", "cpu", POLICIES))
    assert repr(read_speed(runs)) == repr(RUN)  # NaN is not equal to itself
    assert repr(read_policies(policies)) == repr(("digits", POLICIES))
    wrong = (
        (read_speed, "bench", policies),
        (read_policies, "policy_costs", runs),
        (read_speed, "bench", tmp_path / "no"),
    )
    for read, name, path in wrong:
        with pytest.raises(InputError, match=f"is no file of {name}"):
            read(path)


def measured_in(folder: Path) -> list[str]:
    """Write measurements and a page to a folder; return the options that name them."""
    (folder / "speed-a.json").write_bytes(RUN.document())
    (folder / "policies.json").write_bytes(policies_document("digits", "cpu", POLICIES))
    (folder / "page.md").write_text("a\n<!-- scoreboard: begin -->\nold\n<!-- scoreboard: end -->\nb\n")
    names = {"policies": "policies.json", "into": "page.md", "picture": "speed.svg", "trade-off": "quality.svg"}
    return [word for option, name in names.items() for word in (f"--{option}", str(folder / name))]


def test_the_script_writes_pages_and_picture_from_files(tmp_path: Path):
    main(measured_in(tmp_path))
    assert (tmp_path / "page.md").read_text() == (
        f"a\n<!-- scoreboard: begin -->\n{scoreboard(POLICIES, 'digits', [RUN]).markdown()}"
        "<!-- scoreboard: end -->\nb\n"
    )
    ElementTree.parse(tmp_path / "speed.svg")


def test_without_timings_or_markers_it_is_refused_and_the_page_left_alone(tmp_path: Path):
    words = measured_in(tmp_path)
    for name in ("none.json", "page.md"):
        with pytest.raises(InputError, match=rf"^speed=.*{name}: is no file of bench"):
            main([*words, "--speed", str(tmp_path / name)])
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(InputError, match=r"^into=.*page.md: must hold the lines <!-- scoreboard: begin -->"):
        main(words)
    (tmp_path / "speed-a.json").unlink()
    with pytest.raises(InputError, match=r"^speed=: names nothing"):
        main(words)
    assert (tmp_path / "page.md").read_text() == "nothing"
    assert not (tmp_path / "speed.svg").exists()


def test_the_published_tables_are_those_of_the_stored_measurements():
    root = Path(__file__).parents[2]
    runs = [read_speed(path) for path in sorted((root / "docs/measured").glob("speed-*.json"))]
    models, policies = read_policies(root / "docs/measured/policies.json")
    path = root / "docs/measured/quality.json"
    found = read_quality(path) if path.exists() else None
    others = [read_quality(path) for path in sorted((root / "docs/measured").glob("quality-*.json"))]
    board = scoreboard(policies, models, runs, measured=found, others=others)
    parts = {"scoreboard": board.markdown(), "speed": speed_table(runs)}
    figure = trade_off_chart(found)
    assert [axes.get_xlabel() for axes in figure.axes] == ["mean target calls an image"] * 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"kl:0.1", "code:5"}
    lines = quality_markdown(found).splitlines()
    assert len(lines) == 4 + len(found.rows)
    assert {line.count("|") for line in lines[2:]} == {13}
    page = root / "docs/speed.md"
    assert replaced_parts(page, parts) == page.read_text(), "run python -m scripts.scoreboard"


@pytest.mark.parametrize("seed", range(30))
def test_no_value_in_a_measured_file_is_a_bug(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chance, files = random.Random(seed), {name: ROOT / "docs" / "measured" / file for name, file in MEASURED.items()}
    name, odd = chance.choice(list(files)), chance.choice(ODD)
    value = json.loads(files[name].read_text())
    way: tuple[Any, ...] = ()
    while isinstance(place := _at(value, way), dict | list) and place and (len(way) < 2 or chance.random() < 0.7):
        way += (chance.choice(list(place) if isinstance(place, dict) else range(len(place))),)
    files[name] = tmp_path / "odd.json"
    files[name].write_text(json.dumps(changed(value, way, odd)))
    words = [word for each, path in files.items() for word in (f"--{each}", str(path))]
    with suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no run of the card: the picture's legend is empty
        main([*measured_in(tmp_path)[2:], *words])


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value
