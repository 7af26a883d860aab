"""A run is kept as it happens, gone on with, and never mixed with another."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from harness.decoders._runner import Terms
from harness.errors import InputError, StopSignal
from harness.judge._verdict import Distance, Divergence, Judgement, Verdict
from harness.models._pair import ModelPair
from harness.mutants.positions import OFFSET
from harness.protocol._decoder import Implementation, Settings
from harness.protocol._request import Request, request_of, request_values
from harness.provenance import versions
from harness.rounding import quick_budget
from harness.runs._decodes import MOST_DEATHS, Decodes, RunInterrupted, Step, recorded_result, verify_decodes
from harness.runs._identity import NetworksUsed, RunHeader
from harness.runs._plan import Plan
from harness.runs._records import Counts, JudgedRow, judgement_values
from harness.runs._runfile import Kept, RunFile, RunFileOptions, exhibit_of, read_run
from harness.runs.pictures import MOST_BYTES, MOST_EXHIBITS
from harness.schema import record_of
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny, with_weight

MODELS = tiny(Layout((1, 2, 3)))
REQUESTS = [Request((0, 1), seed) for seed in range(5)]
PLAN = Plan.of([Settings(1), Settings(2)], REQUESTS)
HERE = Terms(in_process=True)
RECORD = RunHeader(None, NetworksUsed.of(MODELS), HERE, (), quick_budget(MODELS), PLAN.images, None, ())


def kept(path: Path, resume: bool = False) -> RunFileOptions:
    return RunFileOptions(path, resume=resume, recipe={})


def run(path: Path, models: ModelPair = MODELS, plan: Plan = PLAN, resume: bool = False, **terms: object):
    return verify_decodes(models, Decodes(build_decoder, plan, replace(HERE, **terms)), store=kept(path, resume))


def stop_after(count: int):
    """Return a progress that plays a signal when so many decodes are judged."""
    done: list[Step] = []

    def progress(step: Step) -> None:
        done.append(step)
        if len(done) == count:
            raise StopSignal(15)

    return progress


def test_a_row_is_what_was_written(tmp_path: Path):
    found = Divergence("draw", 'a "quoted" Δ, \udcff', 3, 1, 2, 4, 5, 6, 7, float("inf"), 0.5)
    judgement = Judgement(
        2, 20, 17, [replace(found, margin=1e-7)], 1, defects=[found], distances=[Distance(0.1, 0.2, 0.3)]
    )
    judgement.surprise = [[0.25, -1.5, 2.0]]
    again = record_of(Judgement, judgement_values(judgement))
    assert str(again) == str(judgement)  # NaN is not equal to itself
    request = Request((3, 1), 7, seeds=(7, 9), images=(0, 4), top_p=0.9)
    assert request_of(request_values(request)) == request
    file = RunFile.create(tmp_path / "a.db", Kept(RECORD, PLAN))
    file.write([JudgedRow(1, 0, judgement, Counts([1], [2], [[3]]), 0.5, 0.25)])
    file.close()
    again, rows = read_run(tmp_path / "a.db")
    assert again == Kept(RECORD, PLAN, is_own=True)
    assert str(rows) == str([JudgedRow(1, 0, judgement, Counts([1], [2], [[3]]), 0.5, 0.25)])


@pytest.mark.parametrize("judged", [1, 3])
def test_a_run_that_was_stopped_goes_on_to_the_serial_result(judged: int, tmp_path: Path):
    run(tmp_path / "whole.db")
    path = tmp_path / "a.db"
    stop_within = stop_after(2 * judged + 1)  # in the midst of a task, of two decodes
    with pytest.raises(RunInterrupted) as stop:
        verify_decodes(MODELS, Decodes(build_decoder, PLAN, HERE), store=kept(path), progress=stop_within)
    assert stop.value.status == 143
    assert (stop.value.result.images, stop.value.result.is_whole) == (4 * judged, False)
    assert len(read_run(path)[1]) == 2 * judged
    steps: list[Step] = []
    result = verify_decodes(
        MODELS, Decodes(build_decoder, PLAN, HERE), store=kept(path, resume=True), progress=steps.append
    )
    assert (len(steps), steps[0].images) == (1 + 2 * (len(REQUESTS) - judged), 4 * judged)
    assert result.is_whole
    assert result.verdict is Verdict.IDENTICAL
    whole, again = read_run(tmp_path / "whole.db")[1], read_run(path)[1]
    assert [(r.task, r.setting, r.judgement, r.counts) for r in whole] == [
        (r.task, r.setting, r.judgement, r.counts) for r in again
    ]


def test_two_runs_into_one_file_at_once_are_refused(tmp_path: Path):
    path = tmp_path / "a.db"
    first = RunFile.create(path, Kept(RECORD, PLAN))
    with pytest.raises(InputError, match=r"run=.*a\.db: is being written by another run; wait for it"):
        RunFile.go_on(path)
    assert read_run(path)[0].plan == PLAN  # reading is free
    first.close()
    RunFile.go_on(path).close()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path):
    run(tmp_path / "a.db")
    with pytest.raises(InputError, match="exists already; pass --resume to go on with it, or another --run"):
        run(tmp_path / "a.db")


class Refuses:
    """A decoder that refuses every request but those of some seeds."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, seeds: tuple[int, ...]) -> None:
        self.inner, self.seeds = build_decoder(models, settings), seeds

    def decode(self, request, noise):
        if request.seed not in self.seeds:
            raise InputError("seed", request.seed, "is none of mine", "pass another one")
        return self.inner.decode(request, noise)


def test_a_refusal_leaves_no_file_where_nothing_was_judged(tmp_path: Path):
    for seeds, rows in (((), 0), ((REQUESTS[0].seed,), len(PLAN.settings))):
        path, factory = tmp_path / f"{rows}.db", partial(Refuses, seeds=seeds)
        with pytest.raises(InputError, match="is none of mine"):
            verify_decodes(MODELS, Decodes(factory, PLAN, HERE), store=kept(path))
        assert path.exists() is bool(rows)
        assert not rows or len(read_run(path)[1]) == rows
    assert [each.name for each in tmp_path.iterdir()] == [f"{len(PLAN.settings)}.db"]


def test_a_run_that_stopped_at_a_defect_decodes_no_more_when_it_goes_on(tmp_path: Path):
    path, first = tmp_path / "a.db", replace(HERE, first_only=True)
    wrong = verify_decodes(MODELS, Decodes(OFFSET, PLAN, first), store=kept(path))
    rows = read_run(path)[1]
    assert (wrong.verdict, len(rows)) == (Verdict.DEFECT, 1)
    again = verify_decodes(MODELS, Decodes(OFFSET, PLAN, first), store=kept(path, resume=True))
    assert (again.verdict, again.is_whole, len(read_run(path)[1])) == (Verdict.DEFECT, False, len(rows))
    assert again.images == wrong.images
    whole = verify_decodes(MODELS, Decodes(OFFSET, PLAN, HERE), store=kept(path, resume=True))
    assert (whole.is_whole, whole.images) == (True, PLAN.images)
    assert [(row.task, row.setting) for row in read_run(path)[1]] == [(t.number, k) for t in PLAN.tasks for k in (0, 1)]


def test_a_run_that_left_settings_of_its_only_request_is_not_whole(tmp_path: Path):
    plan, path = Plan.of(PLAN.settings, REQUESTS[:1]), tmp_path / "a.db"
    decodes = Decodes(OFFSET, plan, replace(HERE, first_only=True))
    for result in (verify_decodes(MODELS, decodes, store=kept(path)), recorded_result(path)):
        assert (result.verdict, result.is_whole, result.unfinished, result.images) == (Verdict.DEFECT, False, 1, 2)


def test_a_setting_that_was_left_alone_leaves_nothing_unfinished(tmp_path: Path):
    run(tmp_path / "whole.db")
    recorded, rows = read_run(tmp_path / "whole.db")
    died = Judgement(2, defects=[Divergence("process", "died", 0)])
    dead = [replace(row, judgement=died) for row in rows if row.setting == 0 and row.task < MOST_DEATHS]
    others = [row for row in rows if row.setting == 1]
    assert len(others) > MOST_DEATHS
    for left, unfinished in ((others, 0), (others[:-1], 1)):
        file = RunFile.create(tmp_path / f"{unfinished}.db", recorded)
        file.write([*dead, *left])
        file.close()
        assert recorded_result(tmp_path / f"{unfinished}.db").unfinished == unfinished


def other_code(models: ModelPair, settings: Settings) -> Implementation:
    return build_decoder(models, settings)


def test_a_file_of_another_run_is_refused_and_the_difference_named(tmp_path: Path):
    path = tmp_path / "a.db"
    run(path)
    before = path.read_bytes()
    other = replace(MODELS, draft=with_weight(MODELS.draft, "head.bias", lambda bias: bias + 1))
    with pytest.raises(InputError, match=r"is the file of another run: weights draft \(here [0-9a-f]{16}, recorded"):
        run(path, other, resume=True)
    with pytest.raises(InputError, match=r"settings \(here draft_len=2, recorded draft_len=1, draft_len"):
        run(path, plan=Plan.of([Settings(2)], REQUESTS), resume=True)
    with pytest.raises(
        InputError, match=r"requests \(here 4 images in 2 batches of 2 at most, recorded 10 images in 5"
    ):
        run(path, plan=Plan.of(PLAN.settings, REQUESTS[:2]), resume=True)
    with pytest.raises(InputError, match=r"terms sequential \(here True, recorded False"):
        run(path, resume=True, sequential=True)
    with pytest.raises(InputError, match=r"decoder implementation \(here .*other_code, recorded harness\.spec"):
        verify_decodes(MODELS, Decodes(other_code, PLAN, HERE), store=kept(path, resume=True))
    assert path.read_bytes() == before


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path / "a.db")
    monkeypatch.setattr("harness.runs._identity.versions", lambda: {**versions(), "torch": "9.9"})
    with pytest.raises(InputError, match=r"versions torch \(here 9\.9, recorded "):
        run(tmp_path / "a.db", resume=True)


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path: Path):
    with pytest.raises(InputError, match="draft_len"):
        run(tmp_path / "a.db", plan=Plan.of([Settings(9)], REQUESTS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 500, b"{}"])
def test_what_is_no_run_file_is_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is empty|is a JSON text|holds no record of a run"):
        read_run(path)


def test_a_file_of_another_schema_is_refused(tmp_path: Path):
    run(tmp_path / "a.db")
    base = sqlite3.connect(tmp_path / "a.db")
    base.execute("PRAGMA user_version = 99")
    base.close()
    with pytest.raises(InputError, match="has schema 99, and this version reads 4"):
        read_run(tmp_path / "a.db")


def test_a_run_killed_before_its_file_was_made_begins_anew(tmp_path: Path):
    (tmp_path / "a.db").touch()
    assert run(tmp_path / "a.db", resume=True).is_whole
    assert run(tmp_path / "b.db", resume=True).is_whole


class Wrong:
    """Plant: the right decode, one token moved."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner, self.V = build_decoder(models, settings), models.target.config.V

    def decode(self, request, noise):
        trace = self.inner.decode(request, noise)
        trace.tokens_BL = trace.tokens_BL.clone()
        trace.tokens_BL[1, 3] = (trace.tokens_BL[1, 3] + 1) % self.V
        return trace


def test_the_tensors_around_the_first_divergences_are_kept_and_few(tmp_path: Path):
    path = tmp_path / "a.db"
    plan = Plan.of([Settings(2)], [Request((0, 1), seed) for seed in range(MOST_EXHIBITS + 4)])
    verify_decodes(MODELS, Decodes(Wrong, plan, HERE), store=kept(path))
    rows = read_run(path)[1]
    shown = [exhibit_of(path, row) for row in rows]
    assert sum(map(bool, shown)) == MOST_EXHIBITS
    first = shown[0]
    sides = ("x_2D", "rows_2V", "guided_V")
    assert first.keys() == {"tokens_L", "E_V", *(f"{side}.{n}" for side in ("actual", "expected") for n in sides)}
    found = rows[0].judgement.defects[0]
    assert first["tokens_L"][:, found.position].tolist() == [found.actual, found.expected]
    assert sum(tensor.numel() * tensor.itemsize for tensor in first.values()) < MOST_BYTES
