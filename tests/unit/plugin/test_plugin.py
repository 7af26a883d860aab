"""The pytest plugin as somebody meets it who has a decoder and no clone of this repository."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.laws import LAWS, Case, Violation, check
from harness.plugin._digits import USUAL
from harness.plugin._items import NAMES
from tests.unit.report.reading import read

ROOT = Path(__file__).parents[3]
PLUGIN = "harness.plugin.hooks"
PROJECT = """
from harness import build_decoder
from harness.mutants.positions import OFFSET

def right(models, settings):
    return build_decoder(models, settings)

def wrong(models, settings):
    return OFFSET(models, settings)

def picky(models, settings):
    from harness import InputError
    raise InputError("draft_len", settings.draft_len, "is never right", "pass another")
"""
FEW = ("--sdvar-examples", "3", "--sdvar-shrink-seconds", "1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PROJECT)
    return tmp_path


def pytest_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, as for a user whose environment holds the plugin."""
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "-q", *words]
    # which, before 5.2, warns of every run inside a run under xdist
    command += ["-p", "no:benchmark"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def properties(file: Path) -> dict[str, dict[str, str]]:
    cases = ET.parse(file).getroot().iter("testcase")
    return {
        case.attrib["name"]: {of.attrib["name"]: of.attrib["value"] for of in case.iter("property")} for case in cases
    }


def test_a_run_that_has_nothing_to_do_with_it_does_not_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other people's import numpy
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_light(): assert not {'torch', 'numpy', 'hypothesis.core', 'rich'} & set(sys.modules)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-config --strict-markers -W error\n")
    done = pytest_in(tmp_path, "-p", "no:hypothesispytest", "-s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sdvar" not in done.stdout
    assert "1 passed" in done.stdout


def test_every_option_has_the_prefix():
    class Options:
        def __init__(self) -> None:
            self.names: list[str] = []

        def getgroup(self, name: str, words: str) -> Options:
            return self

        def addoption(self, name: str, **rest: object) -> None:
            self.names.append(name)

    from harness.plugin.hooks import pytest_addoption

    options = Options()
    pytest_addoption(options)
    assert options.names
    assert [name for name in options.names if not name.startswith("--sdvar-")] == []


def test_laws_and_cases_are_items_without_a_file(project: Path):
    done = pytest_in(project, "--sdvar-implementation", "mine:right", "--collect-only")
    assert done.returncode == 0, done.stdout
    listed = [line for line in done.stdout.splitlines() if line.startswith("sdvar::")]
    assert listed == [f"sdvar::{name}" for name in (*(law.id for law in LAWS), *USUAL)]
    assert f"{len(listed)} tests collected" in done.stdout
    few = pytest_in(project, "--sdvar-implementation", "mine:right", "--collect-only", "-k", "positions.query")
    assert f"1/{len(listed)} tests collected ({len(listed) - 1} deselected)" in few.stdout


@pytest.mark.parametrize("name", ["mine:right", "harness:build_decoder"])
def test_an_item_is_where_the_factory_is_if_that_is_in_the_project(name: str, project: Path):
    """As editors, annotations and lists of tests ask: session.items, their path and location."""
    (project / "conftest.py").write_text(
        "def pytest_collection_finish(session):\n"
        "    print(*{(str(item.path), *item.location[:2]) for item in session.items})\n"
    )
    done = pytest_in(project, "--sdvar-implementation", name, "--collect-only", "-s")
    line = PROJECT.splitlines().index("def right(models, settings):")
    place = (str(project / "mine.py"), "mine.py", line) if name == "mine:right" else (str(project), ".", None)
    assert f"\n{place}\n" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_right_decoder_passes_beside_the_projects_own_tests(project: Path):
    (project / "test_own.py").write_text(
        "from harness import Request, Settings\nfrom mine import right\n\n"
        "def test_one(sdvar_pair, sdvar_judge):\n"
        "    sdvar_judge(right(sdvar_pair, Settings(draft_len=2)), Request((3,), seed=1))\n"
    )
    done = pytest_in(
        project, "--sdvar-implementation", "mine:right", *FEW, "-k", "positions or test_one", "-W", "error"
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
    assert "positions.query                  3 examples" in done.stdout


def test_a_wrong_decoder_fails_by_law_and_component_and_the_replay_repeats_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    junit, page = project / "laws.xml", project / "page.html"
    words = ("--sdvar-implementation", "mine:wrong", *FEW, "-k", "positions.query or positions.split")
    done = pytest_in(project, *words, "--junitxml", str(junit), "--sdvar-report", str(page))
    assert done.returncode == 1, done.stdout
    assert "law positions.query is broken" in done.stdout
    assert "watches: build_combined_query" in done.stdout
    told = properties(junit)
    assert set(told["positions.query"]) == set(NAMES)
    assert told["positions.query"]["verdict"] == "DEFECT"
    assert told["positions.query"]["component"] == "build_combined_query"
    assert told["positions.split"]["verdict"] == "IDENTICAL"
    assert told["positions.split"]["replay"] == (
        "python -m pytest -k positions.split --sdvar-implementation=mine:wrong --sdvar-examples=3"
    )
    monkeypatch.syspath_prepend(str(project))
    with pytest.raises(Violation, match=r"positions\.query"):
        exec(told["positions.query"]["replay"], {"Case": Case, "check": check})
    shown = read(page.read_bytes())
    assert "✕ DEFECT" in shown.words
    assert "broken: positions.query" in shown.words
    assert told["positions.query"]["replay"] in shown.words


def known_failures(project: Path, *words: str) -> None:
    """Run one law that is known to fail, and does, and one that does not."""
    (project / "known.toml").write_text(
        '"positions.query" = "off by one, #12"\n"positions.split" = "it is right, in truth"\n'
    )
    junit = project / "laws.xml"
    words = ("--sdvar-implementation", "mine:wrong", *FEW, "--sdvar-known-failures", "known.toml", *words)
    done = pytest_in(project, *words, "-k", "positions.query or positions.split", "--junitxml", str(junit))
    assert done.returncode == 1, done.stdout
    assert "1 failed, " in done.stdout
    assert "1 xfailed" in done.stdout
    assert "[XPASS(strict)] it is right, in truth" in done.stdout
    assert "fails, as is known: off by one, #12" in done.stdout
    told = properties(junit)
    assert told["positions.query"]["verdict"] == "DEFECT"
    assert told["positions.split"]["verdict"] == "IDENTICAL"


@pytest.mark.slow
def test_known_failures_must_fail(project: Path):
    known_failures(project)


@pytest.mark.slow
def test_known_failures_must_fail_in_every_process(project: Path):
    known_failures(project, "-n", "2")


@pytest.mark.slow
def test_only_known_failures_pass(project: Path):
    (project / "known.toml").write_text('"positions.query" = "off by one, #12"\n')
    words = ("--sdvar-implementation", "mine:wrong", *FEW, "--sdvar-known-failures", "known.toml")
    done = pytest_in(project, *words, "-k", "positions.query")
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout


@pytest.mark.slow
def test_what_is_refused_always_is_no_pass(project: Path):
    (project / "known.toml").write_text('"digits[close-2]" = "a refusal is no defect"\n')
    words = ("--sdvar-implementation", "mine:picky", *FEW, "--sdvar-known-failures", "known.toml")
    done = pytest_in(project, *words, "-k", "positions.trace or own-1 or close-2")
    assert done.returncode == 1, done.stdout
    assert "3 failed" in done.stdout
    assert "law positions.trace is unproven" in done.stdout
    assert "draft_len=1: is never right; pass another" in done.stdout


def test_bad_options_are_one_line_before_anything_runs(project: Path):
    done = pytest_in(project, "--sdvar-implementation", "nowhere:factory")
    assert done.returncode == 4, done.stdout
    assert "implementation=nowhere:factory: cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_digits_name_the_component_of_a_wrong_decoder(project: Path):
    junit = project / "digits.xml"
    done = pytest_in(project, "--sdvar-implementation", "mine:wrong", "-k", "close-2", "--junitxml", str(junit))
    assert done.returncode == 1, done.stdout
    assert "FAILED sdvar::digits[close-2] - DEFECT: component positions" in done.stdout
    told = properties(junit)["digits[close-2]"]
    assert told["component"] == "positions"
    assert told["replay"].startswith("sdvar-harness verify --implementation mine:wrong --draft-noise 0.002 --seeds 1")
