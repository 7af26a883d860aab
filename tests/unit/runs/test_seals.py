"""A run file cannot be rewritten unseen: neither while it grows, nor when somebody reads it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harness import InputError, ModelPair, Request, Settings, Terms, Verdict, build_decoder
from harness.runs._case import cases_of
from harness.runs._database import broken_seal
from harness.runs._decodes import Decodes, Step, recorded_result, verify_decodes
from harness.runs._plan import Plan
from harness.runs._runfile import RUN_FILE, RunFile, RunFileOptions, read_run
from harness.verification import Question, answer_question
from tests.helpers import Layout, seal_anew, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUESTS = [Request((0, 1), seed) for seed in range(3)]
REWRITTEN = "does not hold what was written"


def honest(models: ModelPair, settings: Settings) -> object:
    return build_decoder(models, settings)


DECODES = Decodes(honest, Plan.of([Settings(2)], REQUESTS), Terms(in_process=True))


def question() -> Question:
    return Question(honest, (Settings(2),), tuple(REQUESTS), Terms(in_process=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.db"
    verify_decodes(
        MODELS, Decodes(honest, Plan.of([Settings(2)], REQUESTS), Terms(in_process=True)), store=RunFileOptions(path)
    )
    return path


CHANGES = [
    "UPDATE judged SET judgement = replace(judgement, '\"draws\":', '\"draws\": 1') WHERE task = 1",
    "UPDATE judged SET defects = 0, verdict = 'TIE'",
    "UPDATE judged SET peak_bytes = 8",
    "DELETE FROM judged WHERE task = 2",
    "INSERT INTO judged SELECT 9, setting, verdict, images, draws, identical, ties, wrong_tokens, defects, seconds, "
    "reference_seconds, ended, host_bytes, device_bytes, judgement, counts, refused, changes, peak_bytes, tokens "
    "FROM judged LIMIT 1",
    "UPDATE tasks SET request = replace(request, '1.5', '3.5')",
    "UPDATE settings SET value = replace(value, '2', '3')",
    "UPDATE run SET value = '{}' WHERE key = 'terms'",
    "DELETE FROM run WHERE key = 'budget'",
    "INSERT INTO run VALUES ('laws', '{\"cases\": 2, \"held\": 69}')",
    "CREATE TABLE more (x); INSERT INTO more VALUES (1)",
    "DELETE FROM seals WHERE number = 3",
    "UPDATE seals SET content = 'x' WHERE number = 3",
    "DELETE FROM seals",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_rewritten_is_refused_by_whoever_reads_it(change: str, file: Path):
    read_run(file)
    with closing(sqlite3.connect(file)) as base:
        base.executescript(change)
    for read in (read_run, recorded_result, cases_of, RunFile.go_on):
        with pytest.raises(InputError, match=REWRITTEN):
            read(file)


def wrong_row(base: sqlite3.Connection) -> None:
    base.execute("UPDATE judged SET seconds = 1.0 WHERE task = 0")


def sealed_anew(base: sqlite3.Connection) -> None:
    """Rewrite a row, and make all seals anew, as somebody does who knows how."""
    wrong_row(base)
    seal_anew(base)


def emptied(base: sqlite3.Connection) -> None:
    base.execute("DELETE FROM judged")
    base.execute("DELETE FROM seals")


@pytest.mark.parametrize("change", [wrong_row, sealed_anew, emptied])
@pytest.mark.parametrize("when", [1, 2])
def test_what_is_rewritten_while_it_grows_is_refused_at_the_end(
    change: Callable[[sqlite3.Connection], None], when: int, tmp_path: Path
):
    path, changed = tmp_path / "run.db", []

    class Bar:
        def advance(self, *of: object, **named: object) -> None:
            with closing(sqlite3.connect(path, isolation_level=None)) as base:
                if not changed and base.execute("SELECT count(*) FROM judged").fetchone()[0] >= when:
                    changed.append(change(base))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *of: object) -> None:
            return None

    with pytest.raises(InputError, match=REWRITTEN):
        answer_question(MODELS, question(), store=RunFileOptions(path), watch=lambda *of, **named: Bar())  # type: ignore[arg-type,return-value]


def test_a_file_that_is_gone_at_the_end_is_no_output(tmp_path: Path):
    path = tmp_path / "run.db"
    result = answer_question(MODELS, question(), store=RunFileOptions(path))
    path.unlink()
    with pytest.raises(InputError, match="it is not there any more"):
        RunFile.check_kept(path, result.sealed)


def test_what_is_as_it_was_written_is_read(file: Path):
    with RUN_FILE.reading(file) as base:
        assert broken_seal(base) == ""
    assert len(read_run(file)[1]) == 3
    store = RunFileOptions(file, resume=True)
    more: list[Step] = []
    result = verify_decodes(MODELS, DECODES, store=store, progress=more.append)
    assert (result.verdict is not Verdict.DEFECT, len(more)) == (True, 1)
