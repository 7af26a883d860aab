"""The workers of a Dask cluster find what this process finds, and one that is killed costs nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.judge import Verdict
from harness.pool import _employ as cluster
from harness.pool._employ import Parallelism
from harness.pool._workers import WorkerError
from harness.processes import domain_version
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.runs._decodes import Decodes, Step, verify_decodes
from harness.runs._plan import Plan
from harness.runs._runfile import RunFileOptions, read_run
from tests.helpers import Layout, tiny

ROOT = Path(__file__).parents[3]
MODELS = tiny(Layout((1, 2, 3)))
PLAN = Plan.of([Settings(1), Settings(2)], [Request((0, 1, 2), seed) for seed in range(60)])


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9", "ucx://127.0.0.1:9", "x://", "{}", "[1]"]
)
def test_a_cluster_that_is_not_there_is_bad_input(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    if "//" not in address:  # what a scheduler file may hold
        (tmp_path / "file").write_text(address)
        address = str(tmp_path / "file")
    with pytest.raises(InputError, match=rf"cluster={re.escape(address)}: cannot be reached, or has no worker"):
        verify_decodes(MODELS, Decodes("harness:build_decoder", PLAN), Parallelism(cluster=address))


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r'not installed; pip install "\.\[cluster\]" in the clone'):
        verify_decodes(MODELS, Decodes("harness:build_decoder", PLAN), Parallelism(cluster="tcp://127.0.0.1:9"))


def started(name: str, *words: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", f"distributed.cli.dask_{name}", *words, "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(line, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Start a scheduler and two workers from the command line; yield the scheduler file."""
    file = str(tmp_path / "scheduler.json")
    local = ("--scheduler-file", file)
    processes = [started("scheduler", *local, "--host", "127.0.0.1", "--port", "0")]
    folders = ("--local-directory", str(tmp_path))
    processes += [started("worker", *local, *folders, "--nthreads", "1") for _ in range(2)]
    yield file
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_two_workers_one_of_them_killed_find_what_this_process_finds(address: str, tmp_path: Path):
    end = time.monotonic() + 60
    while not Path(address).exists() and time.monotonic() < end:
        time.sleep(0.1)
    killed: list[int] = []

    def progress(step: Step) -> None:
        if not killed:
            killed.append(_a_worker())
            os.kill(killed[0], signal.SIGKILL)

    there = RunFileOptions(tmp_path / "there.db")
    verify_decodes(
        MODELS, Decodes("harness:build_decoder", PLAN), Parallelism(cluster=address), store=there, progress=progress
    )
    verify_decodes(MODELS, Decodes("harness:build_decoder", PLAN), store=RunFileOptions(tmp_path / "here.db"))
    one, two = (
        [(row.task, row.setting, row.judgement, row.counts) for row in read_run(tmp_path / name)[1]]
        for name in ("there.db", "here.db")
    )
    assert one == two
    assert len(killed) == 1


def _a_worker() -> int:
    """Return the process of one of the cluster's workers: what a client can ask it itself."""
    import distributed

    client = distributed.default_client()
    return next(iter(client.run(os.getpid).values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what Dask had under way
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_cluster_whose_workers_are_gone_ends_in_time_and_says_why(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "STALL_S", 6.0)
    monkeypatch.setattr(cluster, "SILENT_S", 3.0)
    monkeypatch.setattr(cluster, "LOOK_S", 0.5)
    file = str(tmp_path / "scheduler.json")
    scheduler = started("scheduler", "--scheduler-file", file, "--host", "127.0.0.1", "--port", "0")
    worker = started(
        "worker", "--scheduler-file", file, "--local-directory", str(tmp_path), "--nthreads", "1", "--no-nanny"
    )

    def progress(step: Step) -> None:
        os.killpg(worker.pid, number)

    kept = RunFileOptions(tmp_path / "run.db")
    decodes = Decodes("harness:build_decoder", PLAN)
    try:
        end = time.monotonic() + 60
        while not Path(file).exists() and time.monotonic() < end:
            time.sleep(0.1)
        with pytest.raises(
            WorkerError,
            match=r"no worker has (been at work for 6 s \(1 silent\)|taken the networks for 6 s); .*--resume",
        ):
            verify_decodes(MODELS, decodes, Parallelism(cluster=file), store=kept, progress=progress)
    finally:
        for process in (scheduler, worker):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert 1 <= len(read_run(tmp_path / "run.db")[1]) < len(PLAN.tasks) * 2


@pytest.mark.slow
@pytest.mark.skipif(not domain_version(), reason="the system has no Landlock of version 6")
def test_a_decoder_reaches_no_cluster_from_a_worker_of_it(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    end = time.monotonic() + 60
    while not Path(address).exists() and time.monotonic() < end:
        time.sleep(0.1)
    plan = Plan.of([Settings(2)], [Request((0, 1), 3)])
    result = verify_decodes(MODELS, Decodes("tests.bent:honest", plan), Parallelism(cluster=address))
    assert result.record is not None
    assert result.record.isolation.endswith(", which connects to nobody by TCP")
    with pytest.raises(InputError, match=r"connection=TCP: is refused to a decoder on a cluster.*; verify without"):
        verify_decodes(MODELS, Decodes("tests.bent:connects", plan), Parallelism(cluster=address))
    assert verify_decodes(MODELS, Decodes("tests.bent:connects", plan)).verdict is Verdict.IDENTICAL
