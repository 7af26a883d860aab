"""JUnit files of laws and regressions: verdict, component and replay of every test, seen with planted bugs."""

from __future__ import annotations

import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness import laws
from harness.laws import Case, Violation
from harness.plugin._items import NAMES
from tests.helpers import laws_of

ROOT = Path(__file__).parents[2]
OFFSET = "harness.mutants.positions:OFFSET"
NAIVE = "tests.naive:naive"  # it has no parts
# A changed weight, planted from outside: code vectors are a thousandth longer.
BENT = """
from functools import cache
from harness.golden import _cases as cases
from tests.regression.test_recorded import bent
straight = cases.filled
cases.filled = cache(lambda *sizes: bent(straight(*sizes)))
"""


def properties_by_test(path: Path, *arguments: str, plugins: str = "") -> dict[str, dict[str, str]]:
    """Run pytest into a JUnit file; return the properties by test."""
    words = [sys.executable, "-m", "pytest", "-q", "--junitxml", str(path), *arguments]
    words += ["-p", plugins] if plugins else []
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert path.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    cases = ET.parse(path).getroot().iter("testcase")
    return {
        case.attrib["name"]: {of.attrib["name"]: of.attrib["value"] for of in case.iter("property")} for case in cases
    }


def test_a_planted_bug_is_told_with_its_component_and_replay(tmp_path: Path):
    given = ("tests/property/test_positions.py", "--implementation", OFFSET, "--examples", "3")
    by_test = properties_by_test(tmp_path / "laws.xml", *given, "--hypothesis-seed", "0", "--shrink-seconds", "1")
    assert len(by_test) == len(laws_of("positions")) + 1
    assert all(properties.keys() == set(NAMES) for properties in by_test.values())
    verdicts = {name: properties["verdict"] for name, properties in by_test.items()}
    assert verdicts["test_law_of_positions[positions.query]"] == "DEFECT"
    assert verdicts["test_law_of_positions[positions.split]"] == "IDENTICAL"
    query = by_test["test_law_of_positions[positions.query]"]
    assert query["component"] == "build_combined_query"
    assert query["replay"].startswith(
        "from harness.laws import Case, check; check('positions.query', 'harness.mutants."
    )
    with pytest.raises(Violation, match=r"positions\.query"):
        exec(query["replay"], {"Case": Case, "check": laws.check})  # as is promised
    split = shlex.split(by_test["test_law_of_positions[positions.split]"]["replay"])
    assert split[:4] == [
        "python",
        "-m",
        "pytest",
        "tests/property/test_positions.py::test_law_of_positions[positions.split]",
    ]
    assert split[4:] == [f"--sdvar-implementation={OFFSET}", "--sdvar-examples=3", "--sdvar-seed=0"]
    assert by_test["test_spans_partition_the_pyramid"]["component"] == "positions"


def test_a_law_that_does_not_apply_is_told_as_that_and_one_never_exercised_as_inconclusive(tmp_path: Path):
    given = ("tests/property/test_positions.py", "tests/property/test_guidance.py", "--implementation", NAIVE)
    pyramid = ("--patch-nums", "1", "--examples", "2")  # of one scale nothing is ever guided
    by_test = properties_by_test(
        tmp_path / "laws.xml", *given, *pyramid, "-k", "query or unconditional or formula or off"
    )
    assert by_test["test_law_of_positions[positions.query]"]["verdict"] == "not applicable"
    verdicts = {properties["verdict"] for properties in by_test.values()}
    assert "INCONCLUSIVE" in verdicts
    assert "DEFECT" not in verdicts


@pytest.mark.slow
def test_a_changed_weight_is_told_by_the_component_that_goldens_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bent_weight.py").write_text(BENT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    one = "tests/regression/test_recorded.py::test_all_variants_hold"
    other = "tests/regression/test_own_goldens.py::test_together_they_are_small_enough_for_git"
    by_test = properties_by_test(tmp_path / "bent.xml", one, other, plugins="bent_weight")
    found = by_test["test_all_variants_hold"]
    assert found["verdict"] == "DEFECT"
    assert found["component"] == "logits"  # what feeds every later scale is wrong
    recording = "tests/regression/recorded/recorded-variants-cpu.safetensors"
    assert found["replay"].startswith(f"sdvar-harness golden check {recording} --only ")
    held = {"verdict": "IDENTICAL", "component": "golden", "replay": f"python -m pytest {other}"}
    assert by_test["test_together_they_are_small_enough_for_git"] == held


def test_modules_of_regressions_name_what_they_watch():
    modules = sorted((ROOT / "tests" / "regression").glob("test_*.py"))
    assert modules
    assert [path.name for path in modules if 'COMPONENT = "' not in path.read_text()] == []
