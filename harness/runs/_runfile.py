"""The run file of a verification: its plan, and what is judged, as it happens.

Promise: a row is on the disk when its request is judged; what is read back is what was written. A file of another
decoder, other weights, another version, machine, mode, plan or judgement is not gone on with, and what differs is
named. docs/runs.md describes the tables.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from safetensors.torch import load, save
from torch import Tensor

from harness.errors import InputError
from harness.protocol import request_of, request_values
from harness.runs import _records as records
from harness.runs._database import REMEDY, FileKind, GrowingFile, is_begun, notes_of, origin_mark
from harness.runs._identity import RunHeader
from harness.runs._plan import Plan, Task
from harness.runs._records import JudgedRow, KeptFigures, LawsTried, QualityClaims, settings_of, to_json
from harness.runs.pictures import MOST_EXHIBITS, MOST_PICTURES, Picture
from harness.schema import record_of, typed
from harness.wording import count_of

TABLES = """
CREATE TABLE settings (number INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE tasks (number INTEGER PRIMARY KEY, request TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE judged (
    task INTEGER NOT NULL, setting INTEGER NOT NULL, verdict TEXT NOT NULL,
    images INTEGER NOT NULL, draws INTEGER NOT NULL, identical INTEGER NOT NULL, ties INTEGER NOT NULL,
    wrong_tokens INTEGER NOT NULL, defects INTEGER NOT NULL,
    seconds REAL NOT NULL, reference_seconds REAL NOT NULL,
    ended REAL NOT NULL, host_bytes INTEGER NOT NULL, device_bytes INTEGER NOT NULL,
    judgement TEXT NOT NULL, counts TEXT, refused TEXT NOT NULL, changes TEXT NOT NULL,
    peak_bytes INTEGER NOT NULL, tokens BLOB NOT NULL,
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
SCHEMA = 4  # docs/runs.md describes it; 1 kept no pictures, 2 no seals, 3 no tokens
RUN_FILE = FileKind(0x5D7A5ADA, SCHEMA, tuple(TABLES.split(";")[:-1]), command="verify", sealed=True)
NAMES_CODE = ("identity", "terms")  # notes that name what would run
WORST_FIRST = "ORDER BY badness DESC, task, setting, row"  # `Picture.rank`


@dataclass(frozen=True)
class RunFileOptions:
    """What is kept of a run, and where. Raises `InputError` where there is nothing to resume."""

    file: Path | None = None  # the run file; None = nothing is kept
    resume: bool = False  # go on where the run in that file stopped
    # options of the command line that repeat the run, without those of what is drawn; None = no command line made it,
    # and nobody asks what the run is of
    recipe: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.file is None:
            raise InputError("resume", True, "goes on with a run that was kept", "pass --run FILE too")

    def check_new(self) -> None:
        """Refuse a file that is there, before any work, where no run is gone on with. Raises `InputError`."""
        if self.file is not None and not self.resume and is_begun(self.file):
            raise InputError("run", str(self.file), "exists already", REMEDY)


UNKEPT = RunFileOptions()


@dataclass(frozen=True)
class Kept:
    record: RunHeader  # what was written when the run began
    plan: Plan  # what it has to do
    laws: LawsTried | None = None  # those that were tried after its decodes
    claims: QualityClaims | None = None  # on the quality of images
    quality: KeptFigures | None = None  # what was measured of it
    is_own: bool = False  # this user wrote it on this machine


class RunFile(GrowingFile):
    kind = RUN_FILE

    @classmethod
    def create(cls, path: Path, run: Kept) -> Self:
        """Make the file of a new run. Raises `InputError` where there is one, or none can be written."""
        plan = run.plan
        settings = [to_json(records.settings_values(each, plan.drafts[k])) for k, each in enumerate(plan.settings)]
        tasks = [(t.number, to_json(request_values(t.request)), to_json(t.settings)) for t in plan.tasks]
        notes = run.record.as_dict()
        notes["origin"] = origin_mark([*(to_json(notes[name]) for name in NAMES_CODE), *settings])
        return cls._create(path, notes, {"settings": list(enumerate(settings)), "tasks": tasks})

    def write(
        self, rows: Sequence[JudgedRow], exhibits: Sequence[tuple[int, int, dict[str, Tensor]]] = (),
        pictures: Sequence[Picture] = (),
    ) -> None:  # fmt: skip
        """Add what one request came to, all or nothing; the run's first exhibits and worst pictures are kept."""
        with self.transaction():
            for row in rows:
                self.insert("judged", _columns(row), "REPLACE")
            for task, setting, tensors in exhibits:
                if tensors and self.base.execute("SELECT count(*) FROM exhibits").fetchone()[0] < MOST_EXHIBITS:
                    self.insert("exhibits", (task, setting, save(tensors)), "IGNORE")
            for picture in pictures:
                place = picture.task, picture.setting, picture.row, picture.badness
                value = to_json({k: v for k, v in asdict(picture).items() if k not in ("decoder", "reference")})
                self.insert("pictures", (*place, value, picture.decoder, picture.reference), "REPLACE")
            if pictures:
                worst = f"SELECT rowid FROM pictures {WORST_FIRST} LIMIT {MOST_PICTURES}"
                self.base.execute(f"DELETE FROM pictures WHERE rowid NOT IN ({worst})")

    def rows(self) -> list[JudgedRow]:
        """Return what is judged, in the order of the plan."""
        with self.kind.readable(self.path):
            return list(_rows(self.base))


def read_run(path: Path, name: str = "run") -> tuple[Kept, list[JudgedRow]]:
    """Read a run file, of a run that goes on, too. Raises `InputError` where it is none, or of another schema."""
    with RUN_FILE.reading(path, name) as base:
        rows = base.execute("SELECT value FROM settings ORDER BY number").fetchall()
        settings = [settings_of(json.loads(value)) for (value,) in rows]
        tasks = base.execute("SELECT number, request, settings FROM tasks ORDER BY number").fetchall()
        plan = Plan(
            tuple(one for one, _ in settings),
            tuple(typed(Task(number, request_of(json.loads(a)), tuple(json.loads(b)))) for number, a, b in tasks),
            tuple(noise for _, noise in settings),
        )
        notes = notes_of(base)
        laws = record_of(LawsTried, notes["laws"]) if "laws" in notes else None
        claims = record_of(QualityClaims, notes["claims"]) if "claims" in notes else None
        quality = KeptFigures(notes["quality"]) if "quality" in notes else None
        said = [to_json(notes[name]) for name in NAMES_CODE] + [value for (value,) in rows]
        is_own = notes.get("origin") == origin_mark(said)
        run = Kept(RunHeader.from_dict(notes), plan, laws, claims, quality, is_own)
        asked, judged = {(task.number, setting) for task in plan.tasks for setting in task.settings}, list(_rows(base))
        if any(setting not in range(len(settings)) for _, setting in asked):
            raise ValueError("its requests are to be drawn under settings that it has not")
        if not {(row.task, row.setting) for row in judged} <= asked:
            raise ValueError("it judges what it does not ask for")
        return run, judged


def begin(store: RunFileOptions, record: RunHeader, plan: Plan) -> RunFile | None:
    """Return a run's file, or None; raise `InputError` where it is there, being written, or another run's."""
    if store.file is None:
        return None
    here = Kept(record, plan)
    if not (store.resume and is_begun(store.file)):
        return RunFile.create(store.file, here)
    return RunFile.go_on(store.file, lambda file: other_run(here, read_run(file.path)[0]))


def other_run(here: Kept, recorded: Kept) -> list[str]:
    """List why a recorded run is another one, one clause each."""
    clauses, plans = here.record.differences(recorded.record), (here.plan, recorded.plan)
    if len({(plan.settings, plan.drafts) for plan in plans}) > 1:
        settings = [", ".join(map(str, plan.settings)) for plan in plans]
        clauses.append(f"settings (here {settings[0]}, recorded {settings[1]})")
    if here.plan.tasks != recorded.plan.tasks:
        clauses.append(f"requests (here {_drawn(here.plan)}, recorded {_drawn(recorded.plan)})")
    return clauses


def _drawn(plan: Plan) -> str:
    requests = [task.request for task in plan.tasks]
    images = sum(request.B for request in requests)
    batches = count_of(len(requests), "batch", "batches")
    return f"{count_of(images, 'image')} in {batches} of {max(request.B for request in requests)} at most"


def exhibit_of(path: Path, row: JudgedRow) -> dict[str, Tensor]:
    """Return the tensors around a row's first divergence; nothing where none were kept."""
    with RUN_FILE.reading(path, again=True) as base:
        question = "SELECT tensors FROM exhibits WHERE task = ? AND setting = ?"
        blobs = base.execute(question, (row.task, row.setting)).fetchone()
        return load(blobs[0]) if blobs else {}


def case_number(path: Path, row: JudgedRow) -> int | None:
    """Return the number by which `replay` knows a row's first defect; None where the row was recorded without one."""
    with RUN_FILE.reading(path, again=True) as base:
        earlier = "SELECT count(*) FROM judged WHERE defects > 0 AND (setting, task) < (?, ?)"
        own = "SELECT count(*) FROM judged WHERE defects > 0 AND (setting, task) = (?, ?)"
        before, there = (base.execute(query, (row.setting, row.task)).fetchone()[0] for query in (earlier, own))
    return int(before) if there else None


def pictures_of(path: Path) -> list[Picture]:
    """Return the pictures that a run file keeps, worst first."""
    with RUN_FILE.reading(path, again=True) as base:
        rows = base.execute(f"SELECT value, decoder, reference FROM pictures {WORST_FIRST}").fetchall()
        return [record_of(Picture, {**json.loads(v), "decoder": ours, "reference": theirs}) for v, ours, theirs in rows]


def _columns(row: JudgedRow) -> tuple[object, ...]:
    judgement = row.judgement
    counted = [judgement.count(name) for name in ("images", "draws", "identical", "ties", "wrong_tokens", "defects")]
    counts = to_json(vars(row.counts) | {"covered": row.counts.covered.as_dict()}) if row.counts else None
    return (
        row.task, row.setting, judgement.verdict.value, *counted, row.seconds, row.reference_seconds,
        row.ended, row.host_bytes, row.device_bytes, to_json(records.judgement_values(judgement)), counts,
        row.refused, to_json(row.changes), row.peak_bytes, row.tokens,
    )  # fmt: skip


def _rows(base: sqlite3.Connection) -> Iterator[JudgedRow]:
    names = [each.name for each in fields(JudgedRow)]
    for values in base.execute(f"SELECT {', '.join(names)} FROM judged ORDER BY task, setting"):
        row = dict(zip(names, values, strict=True))
        row |= {name: json.loads(row[name]) for name in ("judgement", "counts", "changes") if row[name] is not None}
        yield record_of(JudgedRow, row)
