"""Workers answer every task once, whoever of them dies; what kills three of them is given up."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from harness.decoders._runner import Terms
from harness.errors import InputError
from harness.pool._employ import Crew, Parallelism, employ
from harness.pool._workers import Alone, Died, Processes, WorkerError
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._plan import Plan
from harness.runs._runfile import RunFileOptions, read_run
from tests.helpers import Layout, tiny
from tests.labour import Squares

MODELS = tiny(Layout((1, 2, 3)))
PLAN = Plan.of([Settings(1), Settings(2)], [Request((0, 1, 2), seed) for seed in range(6)])


@pytest.mark.slow
def test_a_death_costs_the_request_in_hand_and_nothing_else(tmp_path: Path):
    work = Squares(tmp_path, {4: 1, 7: 2, 8: 99})
    with closing(Processes(work, ["cpu", "cpu"])) as pool:
        answers = dict(pool.map(range(12)))
    assert sorted(answers) == list(range(12))
    died = answers.pop(8)
    assert isinstance(died, Died)
    assert "was killed by SIGKILL" in died.why
    assert {number: answer[0] for number, answer in answers.items()} == {n: n * n for n in range(12) if n != 8}
    assert (tmp_path / "8").read_text() == "xxx"
    assert len({pid for _, pid in answers.values()}) > 1


def test_what_a_worker_refuses_is_refused(tmp_path: Path):
    with (
        closing(Processes(Squares(tmp_path, {}), ["cpu"])) as pool,
        pytest.raises(InputError, match=r"number=-1: must"),
    ):
        list(pool.map([1, -1]))


def test_workers_that_die_while_they_start_are_one_line(tmp_path: Path):
    with pytest.raises(WorkerError, match=r"die while they start \(the worker on cpu was killed by SIGKILL"):
        Processes(Squares(tmp_path, {}, dies_open=True), ["cpu"])


def test_many_workers_find_what_one_finds_bit_for_bit(tmp_path: Path):
    for workers in (1, 2):
        verify_decodes(
            MODELS,
            Decodes("harness:build_decoder", PLAN),
            Parallelism(workers),
            store=RunFileOptions(tmp_path / f"{workers}.db"),
        )
    one, two = (read_run(tmp_path / f"{workers}.db")[1] for workers in (1, 2))
    assert len(one) == 12
    for a, b in zip(one, two, strict=True):
        assert (a.task, a.setting, a.judgement, a.counts) == (b.task, b.setting, b.judgement, b.counts)


@pytest.mark.slow
def test_a_request_that_kills_every_worker_is_a_defect_of_the_process():
    """Plant: in the worker's own process a decoder that kills it."""
    plan = Plan.of([Settings(2)], [task.request for task in PLAN.tasks[:2]])
    result = verify_decodes(MODELS, Decodes("tests.bent:killed", plan, Terms(in_process=True)), Parallelism(2))
    assert [j.defects[0].component for j in result.settings[0].judgements] == ["process"] * 2
    assert "every worker that took the request died, 3 of them" in result.first_divergence.detail


def test_the_device_as_asked_for_says_how_many_gpus(monkeypatch: pytest.MonkeyPatch):
    """Networks on "cuda" say that they lie on cuda:0; the option does not."""
    asked: list[torch.device] = []

    def employed(parallelism: Parallelism, device: torch.device, tasks: int) -> Crew:
        asked.append(device)
        return Crew(("cpu",))

    monkeypatch.setattr("harness.runs._decodes.employ", employed)
    for device in ("", "cuda", "cuda:1"):
        verify_decodes(MODELS, Decodes("harness:build_decoder", PLAN), Parallelism(2, device=device))
    assert [str(device) for device in asked] == ["cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize(
    ("workers", "device", "tasks", "devices"),
    [(1, "cpu", 9, ["cpu"]), (0, "cpu", 9, ["cpu"]), (3, "cpu", 2, ["cpu", "cpu"]), (0, "cuda:1", 9, ["cuda:1"])],
)
def test_nobody_is_hired_for_nothing(workers: int, device: str, tasks: int, devices: list[str]):
    assert list(employ(Parallelism(workers), torch.device(device), tasks).devices) == devices


def test_a_device_without_a_number_stands_for_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert employ(Parallelism(0), cuda, 9).devices == ("cuda:0", "cuda:1")
    assert employ(Parallelism(3), cuda, 9).devices == ("cuda:0", "cuda:1", "cuda:0")
    assert employ(Parallelism(0), cuda, 1).devices == ("cuda",)
    with pytest.raises(InputError, match="would share cuda:1"):
        employ(Parallelism(2), torch.device("cuda:1"), 9)


def test_bad_terms_are_refused():
    with pytest.raises(InputError, match=r"workers=-1: must lie in 0\.\.1024"):
        Parallelism(-1)
    with pytest.raises(InputError, match="brings its own workers"):
        Parallelism(2, "tcp://nowhere:1")
    with pytest.raises(InputError, match="goes on with a run that was kept; pass --run FILE too"):
        RunFileOptions(resume=True)


def test_one_worker_is_this_process(tmp_path: Path):
    with closing(Alone(Squares(tmp_path, {}), "cpu")) as pool:
        assert [answer[0] for _, answer in pool.map([3, 1])] == [9, 1]


@pytest.mark.slow
def test_a_setting_that_keeps_dying_is_left_alone_whoever_does_it_and_the_run_is_whole():
    requests = [Request((0,), seed) for seed in range(6)]
    results = [
        verify_decodes(MODELS, Decodes("tests.bent:exits", Plan.of([Settings(2)], requests)), Parallelism(workers))
        for workers in (1, 2)
    ]
    assert [len(result.settings[0].judgements) for result in results] == [3, 3]
    assert all(result.is_whole for result in results)
