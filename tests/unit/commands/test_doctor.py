"""`doctor` says what a machine has and lacks, and what to do about it."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import pytest
import torch

from harness.commands import doctor
from harness.commands._options import Mode
from harness.errors import InputError
from harness.models import ModelPair
from harness.rounding import quick_budget
from tests.helpers import command


def test_every_line_says_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert command(monkeypatch, "doctor") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in first
    names = [line.split(" ", 1)[1].partition(":")[0] for line in lines]
    assert names == [
        "CPU", "GPU", "compiler", "pages (--html, report)", "the pytest plugin", "quality",
        "certificates (--certificate, check)", "checkpoints of a hub", "runs on several machines (--cluster)",
        "boundary", "error budget of digits",
        "`verify` without options",
    ]  # fmt: skip
    assert {line.split(" ", 1)[0] for line in lines} <= {"ok", "note"}
    assert all((";" in line) == line.startswith("note") for line in lines)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert command(monkeypatch, "doctor", "--device", "cuda:7") == 2
    assert "device=cuda:7: is not there" in capsys.readouterr().err


def test_what_is_missing_comes_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def no_compiler(models: ModelPair, on: bool) -> ModelPair:
        if not on:
            return models
        raise InputError("compile", True, "takes a compiler of C++", "install g++, or name one in CXX")

    monkeypatch.setattr(ModelPair, "compiled", no_compiler)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("harness.processes.domain_version", lambda: 0)
    monkeypatch.setattr("harness.rounding.budget_for", quick_budget)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    advice = {each.what: each.advice for each in doctor.findings(Mode())}
    assert advice["CPU"].startswith("OMP_NUM_THREADS=")
    assert advice["compiler"].startswith("install g++, for --compile")
    assert advice["quality"] == 'pip install ".[quality]" in the clone'
    assert advice["boundary"].startswith("judge decoders that you trust")
    assert advice["error budget of digits"].startswith("`sdvar-harness calibrate --into FILE`")
    assert not advice["`verify` without options"]


def test_every_extra_is_one_of_the_package():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for extra, package, _ in doctor.EXTRAS:
        assert f"\n{extra} = [" in text
        assert importlib.util.find_spec(package) is not None


def test_the_default_run_takes_longer_on_a_slower_machine(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 3.0, 10.0, 11.5, 20.0, 24.0])
    monkeypatch.setattr("harness.reference.sequential.sample_sequential", lambda *given: None)
    findings = doctor.findings(Mode())
    assert len(list(islice(findings, 11))) == 11
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    minutes = 1.5 * doctor.DEFAULT_RUN / 60  # the fastest of three
    assert next(findings).state.startswith(
        f"about {minutes:.1f} minutes for this project's own decoder, if the machine stays"
    )
