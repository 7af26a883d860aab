"""May a run file be believed? Nothing in it is rewritten unseen, and a file of somebody else is known from one's own.

Promise: every row that is written gets a seal, which holds a digest of the row and one of all seals until then; a row
that is another one now, is gone, or was never sealed is named. Whoever writes the file holds the last digest, and
compares at the end; whoever has the file alone sees what was not sealed anew. It is no signature. A file that this user
wrote on this machine is known again, by a mark that nobody else's knowledge suffices to make for other code; others may
name code, and whether that runs here is for whoever reads them to say. It is no lock: who can read this machine's
secrets can make marks.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harness.decoders import OWN_DECODER
from harness.errors import InputError

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
