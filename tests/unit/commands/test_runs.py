"""Runs from the command line: kept, interrupted, gone on with, repeated alone."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.laws._conformance import LawsInterrupted
from harness.pool._employ import Crew, Parallelism
from harness.runs._decodes import recorded_result
from harness.runs._records import BrokenLaw, LawsTried
from tests.helpers import Layout, command, hearing, tiny

ROOT = Path(__file__).parents[3]
MODELS = tiny(Layout((1, 2, 3, 4)))
OFFSET = ("--implementation", "harness.mutants.positions:OFFSET", "--in-process")


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Checkpoint options of a tiny pair, saved with the buffer that tells its pyramid."""
    levels = torch.tensor([MODELS.pyramid.levels()])
    save_file({**MODELS.draft.weights, "lvl_1L": levels}, tmp_path / "draft")
    save_file({**MODELS.target.weights, "lvl_1L": levels}, tmp_path / "target")
    save_file(dict(MODELS.vae.weights), tmp_path / "vae")
    for name in ("draft", "target", "vae"):
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
    return [
        word for name in ("draft", "target", "vae") for word in (f"--{name}", str(tmp_path / f"{name}.safetensors"))
    ]


def started(pair: list[str], *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "harness", "verify", *pair, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with hearing():  # else it would be as deaf to SIGINT as a run of tests in a shell's background
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def judged(path: Path) -> list[tuple[object, ...]]:
    try:
        with closing(sqlite3.connect(path)) as base:
            return base.execute("SELECT task, setting, judgement, counts FROM judged ORDER BY task, setting").fetchall()
    except sqlite3.Error:
        return []


def wait_for_rows(process: subprocess.Popen[str], path: Path, count: int) -> None:
    end = time.monotonic() + 120
    while process.poll() is None and len(judged(path)) < count and time.monotonic() < end:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def test_the_first_defect_comes_with_the_line_that_shows_it_alone(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "r.json"
    words = ("--seeds", "3:6", "--labels", "2,1", "--draft-len", "3,2", "--cfg", "2", "--top-k", "6")
    assert command(monkeypatch, "verify", *pair, *OFFSET, *words, "--json", str(report)) == 1
    starts = ("first defect", "line", "next", "then: decode only the batch")  # unasked: the decode is short
    first, code, after, alone = (line for line in capsys.readouterr().out.splitlines() if line.startswith(starts))
    assert "positions.py" in code
    document = json.loads(report.read_text())
    component = document["first_divergence"]["component"]
    assert after == f"next: mend what the first defect names: {component}; then ask again"
    assert alone.endswith(f": {document['alone']}")
    found = document["first_divergence"]
    line = shlex.split(document["alone"])
    assert line[:2] == ["sdvar-harness", "verify"]
    assert command(monkeypatch, *line[1:]) == 1
    again = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("first defect"))
    place = re.compile(r"component .* token \d+")
    assert place.search(again)[0] == place.search(first)[0]
    assert f"seed {found['seed']}, image {found['image']}, label {found['label']}" in again


def test_the_report_holds_what_its_page_says(pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = tmp_path / "r.json"
    assert command(monkeypatch, "verify", *pair, "--seeds", "0:2", "--draft-len", "1", "--json", str(report)) == 0
    document = json.loads(report.read_text())
    page = (
        (ROOT / "docs" / "runs.md").read_text().partition("<!-- json: begin -->")[2].partition("<!-- json: end -->")[0]
    )
    told = {key for line in page.splitlines()[3:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told == set(document)
    identity = document["run"]["identity"]
    assert set(identity) == {"decoder", "against", "harness", "weights", "versions", "machine", "mode"}
    assert identity["decoder"]["implementation"] == "harness:build_decoder"
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in identity["weights"].values())
    assert sum(len(request["labels"]) for request in document["requests"]) == 6
    assert document["run"]["recipe"]["draft"] == pair[1]
    assert document["whole"] is True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_can_go_on(number: int, status: int, pair: list[str], tmp_path: Path):
    run = ("--run", str(tmp_path / "a.db"), "--resume", "--draft-len", "1", "--batch", "3", "--seeds", "0:150")
    process = started(pair, *run, "--json", str(tmp_path / "r.json"))
    wait_for_rows(process, tmp_path / "a.db", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert re.fullmatch(r"(\d+ of 450 images, .* left, 0 defects\n)?", err)
    document, done = json.loads((tmp_path / "r.json").read_text()), len(judged(tmp_path / "a.db"))
    assert (document["whole"], document["images"]) == (False, 3 * done)
    assert f"interrupted: {3 * done} of 450 images judged" in out
    assert re.search(r"^(IDENTICAL|TIE|INCONCLUSIVE) so far ", out, re.MULTILINE)
    assert 3 <= done < 150


def processes_of(folder: Path) -> list[str]:
    """Return the lines of processes that were started with this temporary folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TMPDIR={folder}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_the_serial_one(
    workers: int, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its 20 moments are drawn: while it starts, in a batch, in a write; of it and its decoder nothing stays."""
    temporary, memory, drawn = tmp_path / "tmp", set(os.listdir("/dev/shm")), random.Random(workers)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    apart = ("--implementation", "harness.speculative.sampler:build_decoder")  # the short name would run in the judge
    run = ("--draft-len", "1,2", "--batch", "3", "--seeds", "0:60", "--quiet", *apart)
    process = started(pair, *run, "--run", str(tmp_path / "whole.db"))
    assert (process.communicate(timeout=600)[1], process.returncode) == ("", 0)
    path, resumed = tmp_path / "a.db", ("--run", str(tmp_path / "a.db"), "--resume", "--workers", str(workers))
    for kill in range(20):
        process = started(pair, *run, *resumed)
        if kill % 2:
            wait_for_rows(process, path, len(judged(path)) + 2)
        time.sleep(drawn.uniform(0.0, 0.15 if kill % 2 else 3.0))
        process.kill()
        process.communicate()
        end = time.monotonic() + 10
        while processes_of(temporary) and time.monotonic() < end:
            time.sleep(0.05)
        assert processes_of(temporary) == []
    before = len(judged(path))
    assert 10 <= before < 120
    process = started(pair, *run, *resumed)
    assert (process.communicate(timeout=600)[1], process.returncode) == ("", 0)
    assert judged(path) == judged(tmp_path / "whole.db")
    assert (os.listdir(temporary), set(os.listdir("/dev/shm")) - memory) == ([], set())


def test_a_file_that_is_there_is_refused_before_any_work(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.db").write_bytes(b"something")
    assert command(monkeypatch, "verify", "--draft", "no-such-file", "--run", str(tmp_path / "a.db")) == 2
    assert "exists already; pass --resume to go on with it" in capsys.readouterr().err
    for words, rule in (
        (("--resume",), "goes on with a run that was kept"),
        (("--images", "1,x"), "must read 0,3,5 or 0:4"),
        (("--images", "1,2"), "must hold one number per image"),
        (("--images=-1,2,3"), "must all be 0 or more"),
        (("--workers", "-1"), "must lie in 0..1024"),
    ):
        options = (words,) if isinstance(words, str) else words
        assert command(monkeypatch, "verify", *pair, *options) == 2
        assert rule in capsys.readouterr().err


def test_replay_from_the_command_line(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run, case = str(tmp_path / "a.db"), str(tmp_path / "case.sdvar")
    assert command(monkeypatch, "verify", *pair, *OFFSET, "--seeds", "0:2", "--draft-len", "2,3", "--run", run) == 1
    capsys.readouterr()
    assert command(monkeypatch, "replay", run) == 1
    *lines, in_sum, after = capsys.readouterr().out.splitlines()
    assert after.startswith("next: mend it, then repeat this; --locate")
    assert [line[:18] for line in lines] == ["STILL FAILS case 0", "STILL FAILS case 1"]
    assert in_sum == "2 of 2 STILL FAILS"
    assert command(monkeypatch, "replay", run, "--bundle", case) == 2
    assert "holds one case, and there are 2; pass --case 0" in capsys.readouterr().err
    assert command(monkeypatch, "replay", run, "--in-process", "--case", "1", "--shrink", "--bundle", case) == 1
    said = capsys.readouterr().out
    assert "smallest: 1 image of label" in said
    assert "next: mend it, then repeat this; --locate names the line of code\n" in said  # that is not asked yet
    assert command(monkeypatch, "replay", case) == 2  # a bundle may be anybody's
    assert "comes from elsewhere, and names code that would run here: " in capsys.readouterr().err
    assert command(monkeypatch, "replay", case, "--trust") == 1
    assert command(monkeypatch, "replay", run, "--case", "2") == 2
    assert "is none of the 2 cases" in capsys.readouterr().err
    Path(pair[3]).unlink()
    assert command(monkeypatch, "replay", case, "--trust") == 3
    assert capsys.readouterr().out.startswith("CANNOT REPRODUCE case 0 (the networks cannot be had: target=")


def test_the_device_reaches_the_workers_as_it_was_asked_for(pair: list[str], monkeypatch: pytest.MonkeyPatch):
    """The networks of ``--device cuda`` say that they lie on cuda:0: who asks them, never spreads."""
    asked: list[str] = []

    def employed(parallelism: Parallelism, *others: object) -> Crew:
        asked.append(parallelism.device)
        return Crew(("cpu",))

    monkeypatch.setattr("harness.runs._decodes.employ", employed)
    assert command(monkeypatch, "verify", *pair, "--seeds", "0:1", "--draft-len", "1", "--device", "cpu") == 0
    assert asked == ["cpu"]


def test_laws_are_kept_with_a_run_gone_on_with_and_not_tried_twice(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tried: list[int] = []

    def stopped(name, count, options, where, progress):
        raise LawsInterrupted(LawsTried(count, 1, left=("a.b",)), signal.SIGTERM)

    def broken(name, count, options, where, progress):
        tried.append(count)
        return LawsTried(count, 1, (BrokenLaw("accept", "law a.b: no", 3),))

    file = tmp_path / "run.db"
    words = ("verify", *pair, "--seeds", "0:1", "--labels", "0", "--draft-len", "2", "--run", str(file), "--resume")
    monkeypatch.setattr("harness.verification.try_laws_quickly", stopped)
    assert command(monkeypatch, *words, "--laws", "2") == 143
    assert "INCONCLUSIVE" in capsys.readouterr().out
    assert "1 law not tried" in recorded_result(file).reasons
    monkeypatch.setattr("harness.verification.try_laws_quickly", broken)
    assert [command(monkeypatch, *words, "--laws", count) for count in ("2", "2", "0", "3")] == [1, 1, 1, 1]
    assert tried == [2, 3]
    assert capsys.readouterr().out.count("first defect: component accept (law a.b: no) at seed 3") == 4
    assert str(recorded_result(file).first_divergence) == "component accept (law a.b: no) at seed 3"
