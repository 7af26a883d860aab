"""The file of a drawing: one SQLite file that holds features, counts and tokens as they are drawn.

Promise: a portion is on the disk when it is drawn, whole or not at all; one process writes a file at a time; a file of
another drawing is refused, and what differs is named. What is read back is what was written, bit for bit.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import check_readable
from harness.quality.draw import Drawn
from harness.runs.identity import differences
from harness.runs.keep import RunStore
from harness.runs.runfile import REMEDY, is_begun, locked

APPLICATION = 0x5D7A5ADB  # SQLite's mark of whose file it is; a verification's ends with A
SCHEMA = 1
TENSORS = ("features_BD", "classes_B", "calls_B", "tokens_BL")
TABLES = (
    "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE drawn (portion INTEGER NOT NULL, source INTEGER NOT NULL, seconds REAL NOT NULL, "
    "failed TEXT NOT NULL, shapes TEXT NOT NULL, "
    f"{', '.join(f'{name} BLOB NOT NULL' for name in TENSORS)}, PRIMARY KEY (portion, source))",
)


class DrawnFile:
    """The file of a drawing that this process writes; locked until it is closed.

    Args:
        path: the file.
        about: what the drawing is of, as JSON values; compared by name with what a file says.
        resume: go on with a file that is there.

    Raises:
        InputError: it is there already and not resumed, is being written, is no such file, or of another drawing.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool) -> None:
        begun = is_begun(path)
        if begun and not resume:
            raise InputError("run", str(path), "is there already", REMEDY)
        if begun:
            check_readable(path, "run", "pass a file of quality --run")
        self.path, self._descriptor = path, locked(path)
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            if begun:
                self._check(about)
            else:
                self._begin(about)
        except BaseException:
            self.close()
            if not begun:
                path.unlink(missing_ok=True)
            raise

    def portions(self) -> dict[int, list[Drawn]]:
        """Return what is drawn, by portion."""
        found: dict[int, list[Drawn]] = {}
        with self._trusted():
            names = ", ".join(TENSORS)
            for portion, seconds, failed, shapes, *blobs in self._base.execute(
                f"SELECT portion, seconds, failed, shapes, {names} FROM drawn ORDER BY portion, source"
            ):
                tensors = [_tensor(blob, *shape) for blob, shape in zip(blobs, json.loads(shapes), strict=True)]
                named = dict(zip(TENSORS, tensors, strict=True))
                found.setdefault(portion, []).append(Drawn(**named, seconds=seconds, failed=failed))
        return found

    def write(self, portion: int, drawn: Sequence[Drawn]) -> None:
        """Add one portion of every source; all of it or nothing."""
        with self._transaction():
            for source, each in enumerate(drawn):
                tensors = [getattr(each, name) for name in TENSORS]
                shapes = json.dumps([[list(of.shape), str(of.dtype).removeprefix("torch.")] for of in tensors])
                values = (portion, source, each.seconds, each.failed, shapes, *map(_bytes, tensors))
                self._base.execute(f"INSERT INTO drawn VALUES ({', '.join('?' * len(values))})", values)

    def close(self) -> None:
        """Close the file and let go of it."""
        self._base.close()
        os.close(self._descriptor)

    def _begin(self, about: Mapping[str, Any]) -> None:
        with self._transaction():
            for statement in TABLES:
                self._base.execute(statement)
            self._base.execute(f"PRAGMA application_id = {APPLICATION}")
            self._base.execute(f"PRAGMA user_version = {SCHEMA}")
            self._base.executemany(
                "INSERT INTO run VALUES (?, ?)", [(key, json.dumps(value)) for key, value in about.items()]
            )

    def _check(self, about: Mapping[str, Any]) -> None:
        with self._trusted():
            mark, schema = (
                self._base.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version")
            )
            if (mark, schema) != (APPLICATION, SCHEMA):
                rule = "is no file of quality --run that this version reads"
                raise InputError("run", str(self.path), rule, "pass another --run")
            there = {key: json.loads(value) for key, value in self._base.execute("SELECT key, value FROM run")}
        found = differences(json.loads(json.dumps(dict(about))), there)
        if found:
            rule = f"is the file of another run: {'; '.join(found[:3])}"
            raise InputError("resume", str(self.path), rule, "repeat the command that began it, or pass another --run")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            rule, remedy = f"cannot be written ({error})", "make room there, or name another file"
            raise InputError("run", str(self.path), rule, remedy) from None

    @contextmanager
    def _trusted(self) -> Iterator[None]:
        """Turn what a damaged file does into one error."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, AttributeError, RuntimeError) as error:
            rule = f"cannot be read ({error})"
            raise InputError("run", str(self.path), rule, "pass another --run") from None


def opened(store: RunStore, about: Mapping[str, Any]) -> DrawnFile | None:
    """Return the file of a drawing; None where nothing is kept. Raises `InputError` as `DrawnFile` does."""
    return DrawnFile(store.file, about, store.resume) if store.file is not None else None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _tensor(blob: bytes, shape: list[int], dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    return torch.frombuffer(bytearray(blob), dtype=kind).reshape(shape) if blob else torch.zeros(shape, dtype=kind)
