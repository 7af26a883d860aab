"""No value in any field of a file is a bug of the harness: it is shown, or the file is refused in one line."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from harness import ModelPair, Request, Settings, Terms
from harness.__main__ import stopped
from harness.commands.replay import ReplayCases, chosen_cases
from harness.models import load_digits
from harness.runs._case import KEY, cases_of, read_bundle, write_bundle
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._plan import Plan
from harness.runs._runfile import RunFileOptions
from harness.schema import typed
from tests.bent import Bent, _wrong
from tests.helpers import command, seal_anew

ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**63), 10**400, 1.5, -0.0, float("nan"), float("inf"), 1e308, "", "x", "\x00",
    "\ud800", "\x1b[31m<script>", "9" * 5000, [], [[]], [None], [1, "x"], {}, {"a": 1}, {"": []}, [[[1]]],
    "token-identical", "cuda:99",
]  # fmt: skip
GONE = object()  # in the place of a value: it is left out
RAW: list[Any] = [  # in the place of a whole column
    "", "{", "null", "[" * 30000, '{"a":1,"a":2}', "\ufeff{}", "1_000", b"", b"\xff\xfe{", 5, 1.5,
]  # fmt: skip
MODELS = load_digits().first_scales(3)
TABLES = {
    "run": ["value"], "settings": ["value"], "tasks": ["request", "settings"], "pictures": ["value"],
    "judged": ["judgement", "counts", "changes"],
}  # fmt: skip
COLUMNS = ("verdict", "images", "draws", "seconds", "ended", "host_bytes", "refused", "peak_bytes", "task", "setting")


def wrong(models: ModelPair, settings: Settings) -> Bent:
    return Bent(models, settings, _wrong)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run.db"
    plan = Plan.of([Settings(1), Settings(2)], [Request((0, 1), seed) for seed in range(2)])
    factory = "tests.unit.runs.test_schema:wrong"
    verify_decodes(MODELS, Decodes(factory, plan, Terms(in_process=True)), store=RunFileOptions(path, recipe={}))
    return path


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value within a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = value.copy()
    if odd is GONE and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], odd)
    return copy


def rewrite(base: sqlite3.Connection, chance: random.Random) -> str:
    """Put an odd value into some field, or some column, and seal the file anew; return where."""
    odd, kind = chance.choice(ODD), chance.random()
    if kind < 0.3:
        table = chance.choice([*TABLES, "exhibits"])
        column = chance.choice([column for _, column, *_ in base.execute(f"PRAGMA table_info({table})")])
        odd, first = chance.choice(RAW), f"(SELECT min(rowid) FROM {table})"
        with suppress(sqlite3.IntegrityError):  # a number that is none
            base.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = {first}", (odd,))
        where = f"{table}.{column} = {odd!r:.40}"
    elif kind < 0.4:
        column = chance.choice(COLUMNS)
        kept = odd if isinstance(odd, int | float | str | None) and str(odd) != "\ud800" else json.dumps(odd)
        kept = str(kept) if isinstance(kept, int) and abs(kept) >= 2**63 else kept
        base.execute(f"UPDATE OR IGNORE judged SET {column} = ? WHERE rowid = 1", (kept,))
        where = f"judged.{column} = {odd!r:.40}"
    else:
        table = chance.choice(list(TABLES))
        column = chance.choice(TABLES[table])
        row, text = chance.choice(base.execute(f"SELECT rowid, {column} FROM {table}").fetchall())
        value = json.loads(text)
        path = chance.choice(list(places(value)))
        odd = GONE if path and chance.random() < 0.15 else odd
        base.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (json.dumps(changed(value, path, odd)), row))
        where = f"{table}.{column} {path} = {odd!r:.40}"
    seal_anew(base)
    return where


def line_of(read: Callable[[], object]) -> str:
    """Return what a command that reads so says on stderr."""
    try:
        read()
    except BaseException as error:
        return stopped(error)[1]
    return ""


@pytest.mark.parametrize("seed", range(40))
def test_no_value_in_a_run_file_is_a_bug(
    seed: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    chance, path = random.Random(seed), tmp_path / "odd.db"
    path.write_bytes(file.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        where = rewrite(base, chance)
    assert command(monkeypatch, "report", str(path), "--html", str(tmp_path / "page.html")) in (0, 2)
    said = capsys.readouterr().err + line_of(lambda: chosen_cases(ReplayCases(path)))
    assert "bug of the harness" not in said, where


@pytest.mark.parametrize("seed", range(40))
def test_no_value_in_a_bundle_is_a_bug(seed: int, file: Path, tmp_path: Path):
    chance, path = random.Random(seed), tmp_path / "case.sdvar"
    write_bundle(cases_of(file)[0], MODELS, path)
    with safe_open(path, "pt") as bundle:
        tensors = {name: bundle.get_tensor(name) for name in bundle.keys()}  # noqa: SIM118  # not a dict
        value = json.loads(bundle.metadata()[KEY])
    way, odd = chance.choice([*places(value)][1:]), chance.choice([*ODD, *[GONE] * 5])
    save_file(tensors, path, {KEY: json.dumps(changed(value, way, odd))})
    assert "bug of the harness" not in line_of(lambda: str(read_bundle(path))), (way, odd)


@pytest.mark.parametrize("odd", RAW)
def test_no_exhibit_is_a_bug(odd: Any, file: Path, tmp_path: Path):
    path = tmp_path / "odd.db"
    path.write_bytes(file.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute("UPDATE exhibits SET tensors = ?", (odd,))
        seal_anew(base)
    said = line_of(lambda: chosen_cases(ReplayCases(path)))
    assert "holds no record of a run that can be read" in said


def test_a_record_says_which_field_is_odd():
    assert typed(Settings(2)) == Settings(2)
    for record, field in (
        (Settings(2, bonus=3), "bonus"),
        (Request((0,), cfg=True), "cfg"),
        (Request((0,), seed=2**40), ""),
    ):  # type: ignore[arg-type]
        if field:
            with pytest.raises(TypeError, match=rf"^{type(record).__name__}\.{field} is "):
                typed(record)
        else:
            typed(record)
