"""The pytest plugin beside others: each runs its items and knows what came of them (`tox -e neighbours`)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.plugin.test_plugin import PLUGIN, ROOT, properties

PROJECT = """
from harness import build_decoder
from harness.mutants.positions import OFFSET

def right(models, settings):
    return build_decoder(models, settings)

def wrong(models, settings):
    return OFFSET(models, settings)
"""
OWN = "def test_plain(): pass\n"
# Package of a plugin -> its modules, options that make it work, and what is said of a broken law and a passing test.
NEIGHBOURS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "xdist": ("xdist.plugin xdist.looponfail", ("-n", "2"), "1 failed, 1 passed"),
    "pytest_retry": ("pytest_retry.retry_plugin", ("--retries", "1"), "1 failed, 1 passed, 77 deselected, 1 retried"),
    "pytest_rerunfailures": ("pytest_rerunfailures", ("--reruns", "1"), "1 failed, 1 passed, 77 deselected, 1 rerun"),
    "pytest_randomly": ("pytest_randomly", (), "1 failed, 1 passed"),
    "pytest_forked": ("pytest_forked", ("--forked",), "1 failed, 1 passed"),
    "pytest_jsonreport": (
        "pytest_metadata.plugin pytest_jsonreport.plugin", ("--json-report", "--json-report-file=said.json"),
        "1 failed, 1 passed",
    ),
    "pytest_github_actions_annotate_failures": (
        "pytest_github_actions_annotate_failures.plugin", (), "1 failed, 1 passed",
    ),
}  # fmt: skip


def run(folder: Path, *words: str, plugins: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest with no plugin but this one, Hypothesis's and those that are named."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    alone = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **alone, "GITHUB_ACTIONS": "true"}
    loaded = [word for name in (PLUGIN, "_hypothesis_pytestplugin", *plugins.split()) for word in ("-p", name)]
    command = [sys.executable, "-m", "pytest", *loaded, "-p", "no:cacheprovider", "-q", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PROJECT)
    (tmp_path / "test_own.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_runs_the_items_and_knows_what_came_of_them(name: str, project: Path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: tox -e neighbours")
    modules, options, last = NEIGHBOURS[name]
    if run(project, *options, plugins=modules).returncode != 0:
        pytest.skip(f"{name} does not run a plain test under pytest {pytest.__version__}")
    few = ("--sdvar-implementation", "mine:wrong", "--sdvar-examples", "2", "--sdvar-shrink-seconds", "1")
    words = (*options, *few, "-k", "positions.query or plain", "--junitxml", "junit.xml")
    done = run(project, *words, plugins=modules)
    assert done.returncode == 1, done.stdout
    assert "INTERNALERROR" not in done.stdout
    assert re.search(last.replace("77", r"\d+"), done.stdout)
    assert "positions.query                  1 examples" in done.stdout
    verdicts = {case: said.get("verdict") for case, said in properties(project / "junit.xml").items()}
    assert verdicts == {"positions.query": "DEFECT", "test_plain": None}
    if name == "pytest_jsonreport":
        said = json.loads((project / "said.json").read_text())
        assert said["summary"]["collected"] == 1 + sum(
            len(one["result"]) for one in said["collectors"] if one["nodeid"] == "sdvar"
        )
        outcomes = {test["nodeid"]: test["outcome"] for test in said["tests"]}
        assert outcomes == {"sdvar::positions.query": "failed", "test_own.py::test_plain": "passed"}
    if name == "pytest_github_actions_annotate_failures":
        line = PROJECT.splitlines().index("def wrong(models, settings):") + 1
        assert f"::error file=mine.py,line={line}::" in done.stdout + done.stderr


GIVEN = """
from dataclasses import replace
from hypothesis import Phase, given, settings, strategies as st
from harness import Request

few = settings(max_examples=2, deadline=None, database=None, phases=[Phase.generate])
seeds = given(seed=st.integers(0, 9))
SEEN = set()

@few
@seeds
def test_numbers(sdvar_pair, sdvar_noise, sdvar_reference, sdvar_judge, seed):
    assert sdvar_noise(Request((3,), seed=seed)).request.seed == seed
"""
JUDGED = """
class TestMethods:
    @few
    @seeds
    def test_right(self, sdvar_judge, sdvar_reference, seed):
        request = Request((3,), seed=seed)
        trace = sdvar_reference(request)
        SEEN.add(tuple(trace.target_calls))
        sdvar_judge(trace, request, sequential=True)

@few
@seeds
def test_wrong(sdvar_judge, sdvar_reference, seed):
    request = Request((3,), seed=seed)
    trace = sdvar_reference(request)
    sdvar_judge(replace(trace, tokens_BL=(trace.tokens_BL + 1) % 512), request, sequential=True)

def test_both_pairs_were_taken():
    assert SEEN == {(1,), (2,)}
"""
OWN_PAIR = """
import pytest
from harness import load_digits

@pytest.fixture(params=[1, 2])
def sdvar_pair(request):
    return load_digits().first_scales(request.param)
"""


def test_fixtures_stand_beside_hypothesis(project: Path):
    (project / "test_own.py").write_text(GIVEN)
    done = run(project, "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_pair_of_ones_own_has_any_scope_and_parameters(project: Path):
    (project / "conftest.py").write_text(OWN_PAIR)
    (project / "test_own.py").write_text(GIVEN.replace("def test_numbers(sdvar_pair, ", "def test_numbers(") + JUDGED)
    done = run(project, "-W", "error")
    assert "FailedHealthCheck" not in done.stdout
    assert "2 failed, 5 passed" in done.stdout, done.stdout
    assert done.stdout.count("- harness.plugin._checking.DefectFound") == 2
