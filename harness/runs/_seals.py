"""A running digest over what a run file holds, so that it cannot be rewritten unseen.

Promise: every row that is written gets a seal, which holds a digest of the row and one of all seals until then; a row
that is another one now, is gone, or was never sealed is named. Whoever writes the file holds the last digest, and
compares at the end; whoever has the file alone sees what was not sealed anew. It is no signature.
"""

import hashlib
import sqlite3
from collections.abc import Iterator

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
