"""A file that grows with a run: one SQLite file, written by one process, read by anybody at any time; and its seals.

Promise: what is written together is on the disk whole or not at all; one process writes a file at a time; a file of
another kind or schema is refused in one line, and so is a damaged one.

May it be believed? Every row that is written gets a seal, which holds a digest of the row and one of all seals until
then; a row that is another one now, is gone, or was never sealed is named. Whoever writes the file holds the last
digest, and compares at the end; whoever has the file alone sees what was not sealed anew. It is no signature. A file
that this user wrote on this machine is known again, by a mark that nobody else's knowledge suffices to make for other
code; others may name code, and whether that runs here is for whoever reads them to say. It is no lock: who can read
this machine's secrets can make marks.

Why SQLite: a killed run leaves the last transaction, any tool reads it, and Python brings it along.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from harness.content import refuse_other
from harness.decoders import OWN_DECODER
from harness.errors import InputError
from harness.files import check_readable
from harness.runs._records import readable, to_json

REMEDY = "pass --resume to go on with it, or another --run"
NOTES = "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


@dataclass(frozen=True)
class FileKind:
    application: int  # SQLite's mark of whose file it is
    schema: int  # version of the tables
    tables: tuple[str, ...]  # statements that make them; `run`, which holds notes by key, is there always
    command: str  # that writes it
    sealed: bool = False  # every row has a seal

    @property
    def remedy(self) -> str:
        """What to do about a file that is none of them."""
        return f"pass a file of {self.command} --run"

    def readable(self, path: Path, name: str = "run") -> AbstractContextManager[None]:
        """Turn what a damaged file does into one `InputError`."""
        return readable(name, path, self.remedy)

    def check(self, base: sqlite3.Connection, path: Path, name: str, again: bool = False) -> None:
        """Refuse a file of another kind or schema, or with something else than was written. Raises `InputError`.

        `again` where its seals were looked at already.
        """
        mark, schema = (base.execute(f"PRAGMA {word}").fetchone()[0] for word in ("application_id", "user_version"))
        if mark != self.application:
            raise InputError(name, str(path), "is no run file", self.remedy)
        if schema != self.schema:
            rule = f"has schema {schema}, and this version reads {self.schema}"
            raise InputError(name, str(path), rule, "use the version of the harness that wrote it")
        if self.sealed and not again and (broken := broken_seal(base)):
            raise rewritten(path, broken, name)

    @contextmanager
    def reading(self, path: Path, name: str = "run", again: bool = False) -> Iterator[sqlite3.Connection]:
        """Open a file to read it, of a run that goes on, too; `again`, and what is refused, as of `check`."""
        refuse_other(path, name, ("sqlite",), self.remedy)
        with self.readable(path, name), closing(_opened(path)) as base:
            self.check(base, path, name, again)
            yield base


class GrowingFile:
    """A file that this process, by `create` or `go_on`, writes and locks until it is closed or the process ends."""

    kind: ClassVar[FileKind]

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.base = sqlite3.connect(path, isolation_level=None)
        self.digest = BEGIN  # what the last seal is called: what is held here, whatever becomes of the file

    @classmethod
    def _create(
        cls, path: Path, notes: Mapping[str, object], rows: Mapping[str, Sequence[tuple[object, ...]]] | None = None
    ) -> Self:
        """Make the file of a new run. Raises `InputError` where it is there or being written, or cannot be written."""
        if is_begun(path):
            raise InputError("run", str(path), "exists already", REMEDY)
        file = cls(path, _locked(path))
        try:
            with file.transaction():
                for statement in (NOTES, *cls.kind.tables, *([SEALS] if cls.kind.sealed else [])):
                    file.base.execute(statement)
                file.base.execute(f"PRAGMA application_id = {cls.kind.application}")
                file.base.execute(f"PRAGMA user_version = {cls.kind.schema}")
                for key, value in notes.items():
                    file.insert("run", (key, to_json(value)))
                for table, values in (rows or {}).items():
                    for row in values:
                        file.insert(table, row)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    @classmethod
    def go_on(cls, path: Path, differing: Callable[[Self], list[str]] = lambda file: []) -> Self:
        """Open a stopped run's file. Raises `InputError` where it is being written, or another run's (`differing`)."""
        check_readable(path, "run", cls.kind.remedy)
        file = cls(path, _locked(path))
        try:
            with cls.kind.readable(path):
                cls.kind.check(file.base, path, "run")
                file.digest = last_seal(file.base) if cls.kind.sealed else BEGIN
                clauses = differing(file)
            if clauses:
                rule = f"is the file of another run: {'; '.join(clauses[:3])}"
                remedy = "repeat the command that began it, or pass another --run"
                raise InputError("resume", str(path), rule, remedy)
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def check_kept(cls, path: Path, digest: str) -> None:
        """Refuse a file that lacks what its writer wrote up to the seal called `digest`. Raises `InputError`."""
        if not is_begun(path):
            raise rewritten(path, "it is not there any more")
        with cls.kind.reading(path) as base:
            if last_seal(base) != digest:
                raise rewritten(path, "its last seal is another one")

    def insert(self, table: str, values: Sequence[object], otherwise: str = "ABORT") -> None:
        """Add a row, within a `transaction`; `otherwise`, where there is one of its key: ABORT, IGNORE or REPLACE."""
        marks = ", ".join("?" * len(values))
        done = self.base.execute(f"INSERT OR {otherwise} INTO {table} VALUES ({marks})", values)
        if self.kind.sealed and done.rowcount > 0 and done.lastrowid is not None:
            self.digest = seal(self.base, table, done.lastrowid, self.digest)

    def note(self, key: str, value: object) -> None:
        """Keep, or replace, one thing that is known of the run as a whole."""
        with self.transaction():
            self.insert("run", (key, to_json(value)), "REPLACE")

    def noted(self, key: str) -> Any:
        """Return one thing that is known of the run as a whole; None where it is not."""
        with self.kind.readable(self.path):
            return notes_of(self.base).get(key)

    def close(self) -> None:
        self.base.close()
        os.close(self._descriptor)  # last: closing any descriptor of a file ends SQLite's own locks on it

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write what follows whole or not at all. Raises `InputError` where it cannot be written."""
        try:
            self.base.execute("BEGIN IMMEDIATE")
            before = self.digest
            try:
                yield
            except BaseException:
                self.digest = before
                self.base.execute("ROLLBACK")
                raise
            self.base.execute("COMMIT")
        except sqlite3.Error as error:
            rule, remedy = f"cannot be written ({error})", "make room there, or name another file"
            raise InputError("run", str(self.path), rule, remedy) from None


def rewritten(path: Path, why: str, name: str = "run") -> InputError:
    """Return the refusal of a file that somebody else wrote into."""
    rule = f"does not hold what was written ({why}): somebody else wrote into it"
    return InputError(name, str(path), rule, "believe nothing in it, and repeat the run into another file")


def notes_of(base: sqlite3.Connection) -> dict[str, Any]:
    """Return the notes of an open file, by key."""
    return {key: json.loads(value) for key, value in base.execute("SELECT key, value FROM run")}


def is_begun(path: Path) -> bool:
    """Tell whether there is a run to go on with: a process that was killed early leaves no file, or an empty one."""
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file to read it. What a killed run left half done is undone, which takes the right to write."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def _locked(path: Path) -> int:
    """Lock a file for this process, made if need be. Raises `InputError` where another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        rule = "is being written by another run"
        raise InputError("run", str(path), rule, "wait for it, or pass another --run") from None
    return descriptor


COLUMNS = "place TEXT NOT NULL, content TEXT NOT NULL, digest TEXT NOT NULL"
SEALS = f"CREATE TABLE seals (number INTEGER PRIMARY KEY, {COLUMNS})"
NAMES = ("number", "place", "content", "digest")
BEGIN = "sdvar-harness"
DROPPED = ("pictures",)  # tables of which rows are dropped again: only the worst ones are kept
ANYWHERE = ("seals", "sqlite_sequence")


def seal(base: sqlite3.Connection, table: str, row: int, before: str) -> str:
    """Seal a row, by its rowid, after the seal that is called `before`; return what this one is called."""
    keys = _keys(base, table)
    values = base.execute(f"SELECT * FROM {table} WHERE rowid = ?", (row,)).fetchone()
    place, content = _place(table, keys, values), _digest(repr(values))
    digest = _digest(f"{before} {place} {content}")
    base.execute("INSERT INTO seals (place, content, digest) VALUES (?, ?, ?)", (place, content, digest))
    return digest


def last_seal(base: sqlite3.Connection) -> str:
    """Return what the last seal is called."""
    found = base.execute("SELECT digest FROM seals ORDER BY number DESC LIMIT 1").fetchone()
    return str(found[0]) if found else BEGIN


def broken_seal(base: sqlite3.Connection) -> str:
    """Return what is no longer as it was written, one clause; empty where everything is."""
    before, sealed = BEGIN, dict[str, str]()
    for number, place, content, digest in base.execute(f"SELECT {', '.join(NAMES)} FROM seals ORDER BY number"):
        before = _digest(f"{before} {place} {content}")
        if digest != before:
            return f"seal {number} does not follow from those before it"
        sealed[str(place)] = str(content)
    there = dict(_rows(base))
    changed = [place for place, content in there.items() if sealed.get(place) != content]
    changed += [place for place in sealed.keys() - there.keys() if place.partition(" ")[0] not in DROPPED]
    return f"{min(changed)} is not what was written" if changed else ""


def _rows(base: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Yield the place and the digest of every row."""
    tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in sorted(set(tables) - set(ANYWHERE)):
        keys = _keys(base, table)
        for values in base.execute(f'SELECT * FROM "{table}"'):
            yield _place(table, keys, values), _digest(repr(values))


def _keys(base: sqlite3.Connection, table: str) -> list[int]:
    """Return which columns of a table name a row."""
    return [number for number, *_, is_key in base.execute(f'PRAGMA table_info("{table}")') if is_key]


def _place(table: str, keys: list[int], values: tuple[object, ...]) -> str:
    return " ".join([table, *(str(values[key]) for key in keys)])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


# known on this machine alone: its id, or where an image has none, what its system drew when it started
MACHINE = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
SHORTEST = 32  # hexadecimal digits: an image may come with an empty id, or with a word in its place


def origin_mark(texts: Sequence[str]) -> str:
    """Return the mark of this user and this machine on what a file says that it is of."""
    secret = os.urandom(SHORTEST)  # with neither, no file is known again
    for file in MACHINE:
        with suppress(OSError):
            if len(found := file.read_bytes().strip()) >= SHORTEST:
                secret = found
                break
    mark = hashlib.blake2b(key=secret[:64], digest_size=16)
    for text in (str(os.getuid()), *texts):
        mark.update(f"{len(text)} {text};".encode(errors="surrogatepass"))
    return mark.hexdigest()


def check_trusted(path: Path, named: Sequence[tuple[str, str]], given: Sequence[Path | None]) -> None:
    """Refuse to run what somebody else's file names. Raises `InputError` where that is code, and not the harness's.

    `named` are factory and checkout of the decoder, and of the one in the reference's place; `given` the checkouts that
    the command line named for them: those are its user's own choice.
    """
    foreign = []
    for (factory, checkout), own in zip(named, given, strict=False):
        if factory != OWN_DECODER and not factory.startswith("published:"):
            foreign.append(factory)
        if checkout and own is None:
            foreign.append(f"checkout {checkout}")
    if foreign:
        rule = f"comes from elsewhere, and names code that would run here: {', '.join(foreign)}"
        raise InputError("file", str(path), rule, "look at that code, and pass --trust")
