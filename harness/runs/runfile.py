"""The run file: one SQLite file that holds a run as it happens.

Promise: a row is on the disk when its request is judged, whole or not at all; one process writes a file at a time; and
what is read back is what was written. docs/runs.md describes the tables.

Why SQLite: a killed run leaves the last transaction, any tool reads it, and Python brings it along.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import InputError
from harness.files import check_readable
from harness.protocol.request import request_of, request_values
from harness.runs import records
from harness.runs.pictures import MOST_EXHIBITS, MOST_PICTURES, Picture, packed, unpacked
from harness.runs.plan import Plan, Task
from harness.runs.records import JudgedRow, settings_of, to_json

SCHEMA = 2  # docs/runs.md describes it; 1 kept no pictures
APPLICATION = 0x5D7A5ADA  # SQLite's mark of whose file it is
TABLES = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE settings (number INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE tasks (number INTEGER PRIMARY KEY, request TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE judged (
    task INTEGER NOT NULL, setting INTEGER NOT NULL, verdict TEXT NOT NULL,
    images INTEGER NOT NULL, draws INTEGER NOT NULL, identical INTEGER NOT NULL, ties INTEGER NOT NULL,
    wrong_tokens INTEGER NOT NULL, defects INTEGER NOT NULL,
    seconds REAL NOT NULL, reference_seconds REAL NOT NULL,
    ended REAL NOT NULL, host_bytes INTEGER NOT NULL, device_bytes INTEGER NOT NULL,
    judgement TEXT NOT NULL, counts TEXT, refused TEXT NOT NULL, changes TEXT NOT NULL,
    peak_bytes INTEGER NOT NULL,
    PRIMARY KEY (task, setting)
);
CREATE TABLE exhibits (
    task INTEGER NOT NULL, setting INTEGER NOT NULL, tensors BLOB NOT NULL, PRIMARY KEY (task, setting)
);
CREATE TABLE pictures (
    task INTEGER NOT NULL, setting INTEGER NOT NULL, row INTEGER NOT NULL, badness REAL NOT NULL,
    value TEXT NOT NULL, decoder BLOB NOT NULL, reference BLOB NOT NULL, PRIMARY KEY (task, setting, row)
);
"""
WORST_FIRST = "ORDER BY badness DESC, task, setting, row"  # `Picture.rank`
REMEDY = "pass --resume to go on with it, or another --run"


@dataclass(frozen=True)
class Kept:
    """What a run file says of its run.

    Args:
        about: identity, budget, contracts, recipe: whatever was written when the run began.
        plan: what it has to do.
    """

    about: dict[str, Any]
    plan: Plan


class RunFile:
    """A run file that this process writes, locked against others until it is closed or the process ends.

    Args:
        path: the file; `create` and `go_on` open it.
        descriptor: of the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self._base = sqlite3.connect(path, isolation_level=None)
        self._exhibits = 0

    @classmethod
    def create(cls, path: Path, kept: Kept) -> RunFile:
        """Make the file of a new run.

        Raises:
            InputError: it is there already, another process writes it, or it cannot be written.
        """
        if path.exists() and path.stat().st_size:
            raise InputError("run", str(path), "is there already", REMEDY)
        file = cls(path, locked(path))
        try:
            file._begin(kept)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def _begin(self, kept: Kept) -> None:
        with self._writing("run"), self._transaction():
            for statement in TABLES.split(";")[:-1]:
                self._base.execute(statement)
            self._base.execute(f"PRAGMA application_id = {APPLICATION}")
            self._base.execute(f"PRAGMA user_version = {SCHEMA}")
            pairs = [(key, to_json(value)) for key, value in kept.about.items()]
            self._base.executemany("INSERT INTO run VALUES (?, ?)", pairs)
            plan = kept.plan
            settings = [
                (k, to_json(records.settings_values(setting, plan.draft_of(k))))
                for k, setting in enumerate(plan.settings)
            ]
            self._base.executemany("INSERT INTO settings VALUES (?, ?)", settings)
            tasks = [(t.number, to_json(request_values(t.request)), to_json(t.settings)) for t in plan.tasks]
            self._base.executemany("INSERT INTO tasks VALUES (?, ?, ?)", tasks)

    @classmethod
    def go_on(cls, path: Path) -> RunFile:
        """Open the file of a run that stopped. Raises `InputError` where another process writes it."""
        check_readable(path, "run", "pass the file of a run")
        file = cls(path, locked(path))
        file._exhibits = file._one("SELECT count(*) FROM exhibits")
        return file

    def write(
        self,
        rows: Sequence[JudgedRow],
        exhibits: Sequence[tuple[int, int, dict[str, Tensor]]] = (),
        pictures: Sequence[Picture] = (),
    ) -> None:
        """Add what one request came to; all of it or nothing.

        Args:
            rows: of one task.
            exhibits: task, setting and tensors; those of the run's first divergences are kept.
            pictures: of some of its images; the worst ones of the run are kept.
        """
        with self._writing("run"), self._transaction():
            for row in rows:
                made = row.judgement
                counts = [
                    made.count(name) for name in ("images", "draws", "identical", "ties", "wrong_tokens", "defects")
                ]
                self._base.execute(
                    "INSERT OR REPLACE INTO judged VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        row.task, row.setting, made.verdict.value, *counts, row.seconds, row.reference_seconds,
                        row.ended, row.host_bytes, row.device_bytes,
                        to_json(records.judgement_values(made)),
                        to_json(records.counts_values(row.counts)) if row.counts else None, row.refused,
                        to_json(row.changes), row.peak_bytes,
                    ),
                )  # fmt: skip
            for task, setting, tensors in exhibits:
                if tensors and self._exhibits < MOST_EXHIBITS:
                    self._base.execute(
                        "INSERT OR IGNORE INTO exhibits VALUES (?,?,?)", (task, setting, packed(tensors))
                    )
                    self._exhibits += 1
            for picture in pictures:
                place = picture.task, picture.setting, picture.row, picture.badness
                value = to_json(records.picture_values(picture))
                self._base.execute(
                    "INSERT OR REPLACE INTO pictures VALUES (?,?,?,?,?,?,?)",
                    (*place, value, picture.decoder, picture.reference),
                )
            if pictures:
                chosen = f"SELECT rowid FROM pictures {WORST_FIRST} LIMIT {MOST_PICTURES}"
                self._base.execute(f"DELETE FROM pictures WHERE rowid NOT IN ({chosen})")

    def note(self, key: str, value: Any) -> None:
        """Keep, or replace, one thing that is known when the run is over; `Kept.about` has it."""
        with self._writing("run"), self._transaction():
            self._base.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, to_json(value)))

    def noted(self, key: str) -> Any:
        """Return one thing that `note`, or the beginning of the run, kept; None where nothing did."""
        with _reading(self.path):
            found = self._base.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
            return json.loads(found[0]) if found else None

    def rows(self) -> list[JudgedRow]:
        """Return what is judged, in the order of the plan."""
        return list(_rows(self._base, self.path))

    def close(self) -> None:
        """Close the file and let go of it."""
        self._base.close()
        os.close(self._descriptor)  # last: closing any descriptor of a file ends SQLite's own locks on it

    def _one(self, question: str) -> int:
        with _reading(self.path):
            return int(self._base.execute(question).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            rule, remedy = f"cannot be written ({error})", "make room there, or name another file"
            raise InputError(name, str(self.path), rule, remedy) from None


def locked(path: Path) -> int:
    """Lock a file for this process, made if need be. Raises `InputError` where another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        rule = "is being written by another run"
        raise InputError("run", str(path), rule, "wait for it, or pass another --run") from None
    return descriptor


def read(path: Path, name: str = "run") -> tuple[Kept, list[JudgedRow]]:
    """Read a run file, of a run that goes on, too.

    Raises:
        InputError: it is none, or of another schema.
    """
    check_readable(path, name, "pass a file of verify --run")
    with _reading(path, name), closing(_opened(path)) as base:
        mark, schema = (base.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version"))
        if mark != APPLICATION:
            raise InputError(name, str(path), "is no run file", "pass a file of verify --run")
        if schema != SCHEMA:
            rule = f"has schema {schema}, and this version reads {SCHEMA}"
            raise InputError(name, str(path), rule, "use the version of the harness that wrote it")
        about = {key: json.loads(value) for key, value in base.execute("SELECT key, value FROM run")}
        rows = base.execute("SELECT value FROM settings ORDER BY number").fetchall()
        settings = [settings_of(json.loads(value)) for (value,) in rows]
        tasks = base.execute("SELECT number, request, settings FROM tasks ORDER BY number").fetchall()
        plan = Plan(
            tuple(one for one, _ in settings),
            tuple(Task(number, request_of(json.loads(a)), tuple(json.loads(b))) for number, a, b in tasks),
            tuple(noise for _, noise in settings),
        )
        return Kept(about, plan), list(_rows(base, path))


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file to read it. What a killed run left half done is undone, which takes the right to write."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def exhibit_of(path: Path, row: JudgedRow) -> dict[str, Tensor]:
    """Return the tensors around a row's first divergence; nothing where none were kept."""
    with _reading(path), closing(_opened(path)) as base:
        question = "SELECT tensors FROM exhibits WHERE task = ? AND setting = ?"
        found = base.execute(question, (row.task, row.setting)).fetchone()
    return unpacked(found[0]) if found else {}


def case_number(path: Path, row: JudgedRow) -> int | None:
    """Return the number by which `replay` knows a row's first defect; None where the row was recorded without one."""
    with _reading(path), closing(_opened(path)) as base:
        earlier = "SELECT count(*) FROM judged WHERE defects > 0 AND (setting, task) < (?, ?)"
        own = "SELECT count(*) FROM judged WHERE defects > 0 AND (setting, task) = (?, ?)"
        before, there = (base.execute(of, (row.setting, row.task)).fetchone()[0] for of in (earlier, own))
    return int(before) if there else None


def pictures_of(path: Path) -> list[Picture]:
    """Return the pictures that a run file keeps, worst first."""
    with _reading(path), closing(_opened(path)) as base:
        found = base.execute(f"SELECT value, decoder, reference FROM pictures {WORST_FIRST}").fetchall()
        return [records.picture_of(json.loads(value), ours, theirs) for value, ours, theirs in found]


def is_begun(path: Path) -> bool:
    """Tell whether there is a run to go on with: a process that was killed early leaves no file, or an empty one."""
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


def _rows(base: sqlite3.Connection, path: Path) -> Iterator[JudgedRow]:
    names = "task, setting, judgement, counts, changes, peak_bytes, seconds, reference_seconds, ended, host_bytes"
    with _reading(path):
        for task, setting, judgement, counts, changes, peak, *rest in base.execute(
            f"SELECT {names}, device_bytes, refused FROM judged ORDER BY task, setting"
        ):
            made = records.counts_of(json.loads(counts)) if counts else None
            judged = records.judgement_of(json.loads(judgement))
            row = JudgedRow(task, setting, judged, made, *rest)
            yield replace(row, changes=tuple(map(str, json.loads(changes))), peak_bytes=peak)


@contextmanager
def _reading(path: Path, name: str = "run") -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise records.unreadable(name, path, error) from None
