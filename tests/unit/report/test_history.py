"""Many runs at once: a row a run, worst first, verdicts over time; what changed between two; quick for a thousand."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from harness.decoders._runner import Other, Terms
from harness.mutants.positions import OFFSET
from harness.protocol._decoder import Settings
from harness.report._history import REFUSED, UNFINISHED, UNREADABLE, History, changes_between, run_files, summary_of
from harness.report.html._commands import changes_page, history_page
from harness.runs._decodes import recorded_result
from harness.runs._runfile import RunFile, RunFileOptions, read_run
from harness.speculative.sampler import build_decoder
from harness.verification import Question, answer_question
from harness.wording import date_of
from tests.certificates import FOLDER as CERTIFICATES
from tests.certificates import sealed
from tests.helpers import command
from tests.unit.report.reading import read
from tests.unit.report.sample_runs import HERE, MODELS, run
from tests.unit.runs.test_runfile import REQUESTS


def answered(path: Path, factory=build_decoder, length: int = 2) -> None:
    """Make a run as every door does."""
    question = Question(factory, (Settings(length),), tuple(REQUESTS[:2]), HERE)
    answer_question(MODELS, question, store=RunFileOptions(path, recipe={}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a right run, a wrong one, one that is not finished, a damaged one, and other files."""
    place = tmp_path_factory.mktemp("runs")
    answered(place / "right.db")
    answered(place / "wrong.db", OFFSET)
    kept, rows = read_run(place / "right.db")
    file = RunFile.create(place / "half.db", kept)
    file.write(rows[:1])
    file.close()
    shutil.copy(place / "right.db", place / "forged.db")
    with closing(sqlite3.connect(place / "forged.db")) as base:
        base.execute("UPDATE judged SET images = 9")
        base.commit()
    (place / "notes.txt").write_text("no run")
    with closing(sqlite3.connect(place / "other.db")) as base:
        base.execute("CREATE TABLE a (b)")
        base.commit()
    (place / "deeper").mkdir()
    return place


def test_a_folder_is_its_run_files_worst_first(folder: Path):
    runs = History.of(run_files([folder])).runs
    assert [(run.file.name, run.verdict) for run in runs] == [
        ("wrong.db", "DEFECT"), ("forged.db", UNREADABLE), ("half.db", UNFINISHED), ("right.db", "IDENTICAL"),
    ]  # fmt: skip
    wrong, forged, half, right = runs
    first = recorded_result(folder / "wrong.db").first_divergence
    assert first is not None
    assert wrong.why == first.brief == f"positions, scale {first.scale}, position {first.position}"
    assert "somebody else wrote into it" in forged.why
    assert (half.images, half.ended > 0) == (2, True)
    assert (right.images, right.wrong_tokens, right.why) == (4, 0, "")
    assert wrong.wrong_tokens == recorded_result(folder / "wrong.db").totals["wrong_tokens"] > 0
    assert right.decoder == "harness.speculative.sampler:build_decoder"


def test_the_command_prints_and_writes_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    html = tmp_path / "runs.html"
    assert command(monkeypatch, "report", str(folder), "--html", str(html)) == 0
    out = capsys.readouterr().out.splitlines()
    words = [word for line in out[3:-3] for word in line.split() if word.isupper() and len(word) > 5]
    assert words == ["DEFECT", UNREADABLE, UNFINISHED, "IDENTICAL"]
    assert out[-3] == "1 DEFECT, 1 UNREADABLE, 1 UNFINISHED, 1 IDENTICAL of 4 runs"
    assert out[-2] == f"next: look at the newest DEFECT: sdvar-harness report {folder / 'wrong.db'} --html page.html"
    page = read(html.read_bytes())
    assert "✕ DEFECT 4 runs of 2 decoders: 1 DEFECT, 1 UNREADABLE, 1 UNFINISHED, 1 IDENTICAL." in page.words
    assert page.text.index("wrong.db") < page.text.index("forged.db") < page.text.index("right.db")
    two = [str(folder / name) for name in ("right.db", "wrong.db")]
    assert command(monkeypatch, "report", *two, "--quiet") == 0
    assert capsys.readouterr().out == "1 DEFECT, 1 IDENTICAL of 2 runs\n"


def test_verdicts_over_time_say_where_one_changed(tmp_path: Path):
    for number, factory in enumerate((build_decoder, OFFSET, build_decoder)):
        answered(tmp_path / f"{number}.db", lambda models, settings, of=factory: of(models, settings))
    page = read(history_page(History.of(run_files([tmp_path]))))
    states = [abbr["title"] for abbr in page.all("abbr")]
    ended = [summary_of(tmp_path / f"{number}.db").ended for number in range(3)]
    assert [run.file.name for run in History.of(run_files([tmp_path])).runs] == ["1.db", "2.db", "0.db"]  # newest first
    words = ("IDENTICAL", "DEFECT", "IDENTICAL")
    assert states == [f"{word}, {date_of(seconds)}" for word, seconds in zip(words, ended, strict=True)]
    assert "IDENTICAL to DEFECT" in page.words
    assert "DEFECT to IDENTICAL" in page.words
    alone = read(history_page(History.of([tmp_path / "0.db"])))
    assert "Where a verdict changed" not in alone.words


def test_runs_that_ask_another_contract_are_no_change_of_verdict(tmp_path: Path):
    for number, policy in enumerate(("coupled", "rejection")):
        question = Question(build_decoder, (Settings(2, policy=policy),), tuple(REQUESTS[:2]), HERE)
        answer_question(MODELS, question, store=RunFileOptions(tmp_path / f"{number}.db", recipe={}))
    runs = History.of(run_files([tmp_path])).runs
    assert {run.contract: run.verdict for run in runs} == {"A": "IDENTICAL", "B": "INCONCLUSIVE"}
    words = read(history_page(History(runs))).words
    assert "Where a verdict changed" not in words
    assert ", contract A" in words and ", contract B" in words


def test_a_run_against_another_decoder_is_no_run_of_the_same_question(tmp_path: Path):
    other = Other("harness.mutants.positions:OFFSET", (Settings(2),), OFFSET)
    for number, against in enumerate((None, other)):
        terms, named = Terms(in_process=True, against=against), "harness.speculative.sampler:build_decoder"
        question = Question(named, (Settings(2),), tuple(REQUESTS[:2]), terms)
        answer_question(MODELS, question, store=RunFileOptions(tmp_path / f"{number}.db", recipe={}))
    runs = History.of(run_files([tmp_path])).runs
    assert [(run.contract, run.verdict) for run in runs] == [
        ("against harness.mutants.positions:OFFSET", "DEFECT"), ("A", "IDENTICAL"),
    ]  # fmt: skip
    words = read(history_page(History(runs))).words
    assert "Where a verdict changed" not in words
    assert ", against harness.mutants.positions:OFFSET" in words


def test_what_changed_between_two_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    one, other = (recorded_result(folder / name) for name in ("right.db", "wrong.db"))
    changes = {what: (before, after) for what, before, after in changes_between(one, other)}
    assert [*changes][:2] == ["verdict", "first divergence"]
    assert changes["verdict"] == ("IDENTICAL", "DEFECT")
    assert changes["wrong tokens"] == ("0", str(other.totals["wrong_tokens"]))
    assert changes["first divergence"] == ("–", str(other.first_divergence))
    assert changes["decoder implementation"][0] == "harness.speculative.sampler:build_decoder"
    assert changes["draft_len=2"][1].startswith("DEFECT, ")
    assert "images" not in changes
    assert "weights target" not in changes
    assert changes_between(one, one) == []
    answered(tmp_path / "longer.db", length=3)
    settings = {what: pair for what, *pair in changes_between(one, recorded_result(tmp_path / "longer.db"))}
    assert settings["draft_len=2"][1] == settings["draft_len=3"][0] == "–"
    page = read(changes_page((one, other), ("right.db", "wrong.db")))
    assert "IDENTICAL → DEFECT" in page.words
    html, names = tmp_path / "two.html", [str(folder / name) for name in ("right.db", "wrong.db")]
    assert command(monkeypatch, "report", "--compare", *names, "--html", str(html)) == 0
    assert f"{len(changes)} differences between the two runs" in capsys.readouterr().out
    assert "What is not listed is equal." in read(html.read_bytes()).words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "{}"], "compare=True: takes two runs, and there are 4; pass two files"),
        (["{}/deeper"], "deeper: holds no run file, and no certificate; pass a folder of files of verify --run"),
        (["{}/nothing.db"], "no such file"),
        (["{}", "--html", "{}/right.db"], "is the file of"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    before = (folder / "right.db").read_bytes()
    assert command(monkeypatch, "report", *(word.format(folder) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert (folder / "right.db").read_bytes() == before


PAGE_OF_MANY = """
import sys, time
from pathlib import Path
from harness.report._history import History, run_files
from harness.report.html._commands import history_page
start = time.process_time()
page = history_page(History.of(run_files([Path(sys.argv[1])])))
seconds = time.process_time() - start
print(b"1,000 runs of 2 decoders: 500 DEFECT, 500 UNFINISHED." in page, len(page), seconds)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])  # ru_maxrss would count who started this, too
"""


def test_a_thousand_runs_take_seconds_and_little_memory(tmp_path: Path):
    for name, factory in (("right", build_decoder), ("wrong", OFFSET)):
        run(tmp_path / f"{name}.db", factory)
        for number in range(500):
            shutil.copy(tmp_path / f"{name}.db", tmp_path / f"{name}-{number:03d}.db")
        (tmp_path / f"{name}.db").unlink()
    # in a process of its own: what others took here before is not its memory
    done = subprocess.run(
        [sys.executable, "-c", PAGE_OF_MANY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    said, size, seconds, kibibytes = done.stdout.split()
    assert said == "True"
    assert int(size) < 2_000_000
    assert float(seconds) < 10  # of the processor: other work may share the machine
    assert int(kibibytes) < 2**20


def test_certificates_have_a_row_each_and_what_does_not_hold_together_is_refused(tmp_path: Path):
    names = (
        "identical",
        "defect",
        "tie",
        "law",
        "signed",
        "another-root",
        "another-digest",
        "white-space",
        "nested",
        "a-key-twice",
    )
    for name in names:
        shutil.copy(CERTIFICATES / f"{name}.json", tmp_path)
    statement = json.loads((tmp_path / "identical.json").read_text())
    statement["predicate"]["exercised"]["missing"].pop("bonus scales")
    (tmp_path / "forged.json").write_bytes(sealed(statement))
    answered(tmp_path / "run.db")
    history = History.of(run_files([tmp_path]))
    verdicts = {run.file.stem: run.verdict for run in history.runs}
    assert verdicts == {
        "identical": "IDENTICAL", "defect": "DEFECT", "tie": "TIE", "law": "INCONCLUSIVE", "signed": "IDENTICAL",
        "run": "IDENTICAL", **dict.fromkeys(("forged", *names[5:]), REFUSED),
    }  # fmt: skip
    rows = {run.file.stem: run for run in history.runs}
    assert "not exercised: drafts, " in rows["identical"].why and "signature is not looked at" in rows["signed"].why
    assert (rows["defect"].images, rows["defect"].wrong_tokens) == (6, 3) and "scale 2, position" in rows["defect"].why
    assert "does not hold together (its root is of other tokens)" in rows["another-root"].why
    assert "does not say once whether this was exercised: bonus scales" in rows["forged"].why
    assert (
        history.runs[0].file.stem == "defect" and history.command == f"sdvar-harness check {tmp_path / 'defect.json'}"
    )
    page = read(history_page(history))
    assert "REFUSED" in page.text and "not exercised" in page.text
