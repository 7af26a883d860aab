"""Runs of published code, and of two decoders side by side: kept, gone on with, repeated, reduced and sent."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.decoders._runner import Other, Terms
from harness.errors import InputError
from harness.models._pair import ModelPair
from harness.mutants.positions import OFFSET
from harness.pool._employ import Parallelism
from harness.protocol._decoder import Implementation, Settings
from harness.protocol._request import Request
from harness.rounding._budget import SHIPPED_BUDGETS
from harness.runs._case import cases_of, of_checkouts, read_bundle, write_bundle
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._identity import code_of
from harness.runs._plan import Plan
from harness.runs._replay import Answer, replay_case, shrink_case
from harness.runs._runfile import RunFileOptions, read_run
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, command, tiny
from tests.published.checkout import make

SMALL = tiny(Layout((1, 2, 3, 4)))
NAME = "published:var"
MIXED = Request((0, 1, 2), 5, seeds=(5, 5, 6), images=(0, 1, 0))


def settings(checkout: Path, *options: tuple[str, str]) -> Settings:
    return Settings("", False, "", (("checkout", str(checkout)), *options))


def kept(path: Path, checkout: Path, against: Path | None, resume: bool = False) -> None:
    other = Other(NAME, (settings(against),)) if against is not None else None
    terms = Terms(in_process=True, sequential=True, against=other)
    plan = Plan.of([settings(checkout)], [MIXED, replace(MIXED, seed=7, seeds=None)])
    verify_decodes(SMALL, Decodes(NAME, plan, terms), store=RunFileOptions(path, resume, {}))


@pytest.fixture(autouse=True)
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.commands._inputs.load_digits", lambda: SMALL)


@pytest.mark.parametrize("rival", [False, True])
def test_a_defect_is_repeated_reduced_sent_and_fixed(tmp_path: Path, rival: bool):
    wrong, right = make(tmp_path, "var", "wrong-positions"), make(tmp_path, "var")
    kept(tmp_path / "run.db", wrong, right if rival else None)
    cases = cases_of(tmp_path / "run.db")
    assert len(cases) == 2
    case = cases[0]
    assert replay_case(case, SMALL, SHIPPED_BUDGETS).answer is Answer.STILL
    small = shrink_case(case, SMALL, SHIPPED_BUDGETS)
    assert (small.request.B, small.settings.draft_len) == (1, "")
    assert small.defect.component == case.defect.component
    write_bundle(small, SMALL, tmp_path / "case.sdvar")
    sent = read_bundle(tmp_path / "case.sdvar")
    assert sent.against == small.against
    assert replay_case(sent, SMALL, SHIPPED_BUDGETS).answer is Answer.STILL
    moved = of_checkouts(sent, (right, None))
    assert replay_case(moved, SMALL, SHIPPED_BUDGETS).answer is Answer.FIXED


def test_the_code_in_the_references_place_may_be_what_was_mended(tmp_path: Path):
    wrong, right = make(tmp_path, "var", "flat-guidance"), make(tmp_path, "var")
    kept(tmp_path / "run.db", right, wrong)
    case = cases_of(tmp_path / "run.db")[0]
    assert replay_case(case, SMALL, SHIPPED_BUDGETS).answer is Answer.STILL
    assert replay_case(of_checkouts(case, (None, right)), SMALL, SHIPPED_BUDGETS).answer is Answer.FIXED


def test_a_checkout_that_is_gone_is_no_fix(tmp_path: Path):
    wrong = make(tmp_path, "var", "wrong-positions")
    kept(tmp_path / "run.db", wrong, None)
    case = cases_of(tmp_path / "run.db")[0]
    found = replay_case(of_checkouts(case, (tmp_path / "gone", None)), SMALL, SHIPPED_BUDGETS)
    assert found.answer is Answer.CANNOT
    assert found.why.startswith("the decoder cannot be had: checkout=")
    with pytest.raises(InputError, match=r"against_checkout=\S+ is of no use: .* without one; drop it"):
        of_checkouts(case, (None, wrong))


def test_a_run_goes_on_beside_the_same_code_alone(tmp_path: Path):
    right, other = make(tmp_path, "var"), make(tmp_path, "var", "wrong-positions")
    path = tmp_path / "run.db"
    kept(path, right, right)
    before = read_run(path)[1]
    kept(path, right, right, resume=True)
    assert read_run(path)[1] == before
    with pytest.raises(InputError, match="against source"):
        kept(path, right, other, resume=True)
    with pytest.raises(InputError, match="decoder source"):
        kept(path, other, right, resume=True)
    with pytest.raises(InputError, match="against checkout"):
        kept(path, right, None, resume=True)


def test_the_source_of_a_checkout_is_its_own(tmp_path: Path):
    right, wrong = make(tmp_path, "var"), make(tmp_path, "var", "wrong-positions")
    digests = {code_of(NAME, str(folder)).source for folder in (right, wrong)}
    assert len(digests - {""}) == 2
    assert code_of("harness:build_decoder", str(right)).source.endswith(code_of(NAME, str(right)).source)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_line_repeats_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: str
):
    wrong, right = make(tmp_path, "code", "refine-emptied"), make(tmp_path, "code")
    line = ["verify", "--implementation", "published:code", "--checkout", str(wrong), "--option", "exit_num=2"]
    line += ["--against-checkout", str(right), "--against-option", "exit_num=2", "--seeds", "3:5", "--labels", "0,1"]
    assert command(monkeypatch, *line, "--run", str(tmp_path / "run.db"), "--workers", workers) == 1
    out = capsys.readouterr().out.splitlines()
    starts = "first difference", "then: decode only the batch"
    first, after = (next(text for text in out if text.startswith(word)) for word in starts)
    words = shlex.split(after.partition("): ")[2])
    assert [word for word in words if word.startswith("--")].count("--option") == 2  # exit_num, and the role
    assert command(monkeypatch, *words[1:]) == 1
    again = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("first difference"))
    assert again == first
    assert command(monkeypatch, "replay", str(tmp_path / "run.db"), "--case", "0") == 1
    assert "STILL FAILS" in capsys.readouterr().out
    fixed = ["replay", str(tmp_path / "run.db"), "--case", "0", "--checkout", str(right)]
    assert command(monkeypatch, *fixed) == 0
    assert "FIXED" in capsys.readouterr().out


def test_a_checkout_is_changed_by_sources_alone(tmp_path: Path):
    checkout = make(tmp_path, "var")

    def git(*words: str) -> None:
        who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", "-C", str(checkout), *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "As it is")
    (checkout / "models" / "__pycache__").mkdir()
    (checkout / "models" / "__pycache__" / "var.cpython-311.pyc").write_bytes(b"")
    code = code_of(NAME, str(checkout))
    assert (len(code.commit), code.changed) == (40, False)
    (checkout / "models" / "more.py").write_text("")
    assert code_of(NAME, str(checkout)).changed


@pytest.mark.slow
def test_two_factories_travel_to_workers():
    def mine(models: ModelPair, settings: Settings) -> Implementation:
        return build_decoder(models, settings)

    def theirs(models: ModelPair, settings: Settings) -> Implementation:
        return OFFSET(models, settings)

    other = Other("theirs", (Settings(2),), theirs)
    plan, terms = Plan.of([Settings(2)], [MIXED]), Terms(against=other)
    rows = [
        verify_decodes(SMALL, Decodes(mine, plan, terms), Parallelism(workers)).settings[0].rows for workers in (1, 2)
    ]
    serial, spread = ([(row.judgement.defects, row.judgement.draws, row.changes) for row in of] for of in rows)
    assert serial[0][0]
    assert repr(serial) == repr(spread)  # NaN is not itself
