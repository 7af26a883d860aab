"""A decoder in a process of its own: whatever it does there, the judge hears the truth and goes on."""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import InputError, Request, Settings, Verdict
from harness.decoders._conversation import Mailbox
from harness.decoders._factory import Limits
from harness.decoders._runner import SERVE, Terms
from harness.judge._verdict import Divergence
from harness.models._pair import ModelPair, checksums
from harness.processes import UnreadableError, domain_version, started_ahead
from harness.processes._workplace import _AHEAD
from harness.report import plain_console, show_verification
from harness.runs._result import Verification
from harness.verification import verify
from tests import bent
from tests.helpers import Layout, some, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3)))
REQUESTS = [Request((0, 1), seed) for seed in (0, 1)]

BENT = ("rounds_target", "zeroes_codebook", "sets_cfg", "repairs", "disguises", "at_exit", "rounds_target_when_built")


def apart(name: str, models: ModelPair = MODELS, **limits: Any) -> Verification:
    terms = Terms(limits=Limits(**{"timeout_s": 60.0, **limits}))
    return verify(models, f"tests.bent:{name}", [Settings(2)], REQUESTS, terms=terms)


def first(result: Verification) -> Divergence:
    assert result.first_divergence is not None
    return result.first_divergence


def test_an_honest_decoder_is_identical_apart_and_here():
    there, here = apart("honest"), verify_here(MODELS, bent.honest, [Settings(2)], REQUESTS)
    assert there.verdict is here.verdict is Verdict.IDENTICAL
    assert there.settings[0].target_calls == here.settings[0].target_calls
    assert there.settings[0].accepted_scales == here.settings[0].accepted_scales


def test_a_factory_without_a_name_is_sent_as_it_is():
    calls: list[int] = []
    factory = lambda models, settings: (calls.append(1), bent.honest(models, settings))[1]  # noqa: E731
    result = verify(MODELS, factory, [Settings(1)], REQUESTS[:1])
    assert calls == []  # what was called is a copy
    assert result.verdict is Verdict.IDENTICAL


def test_a_factory_that_cannot_be_sent_is_bad_input():
    generator = (number for number in range(3))
    with pytest.raises(InputError, match=r"implementation=.*cannot be sent to a process of its own.*in_process=True"):
        verify(MODELS, lambda models, settings: next(generator), [Settings(1)], REQUESTS[:1])


@pytest.mark.parametrize("name", some(3, list(BENT)))
def test_what_a_decoder_does_to_weights_request_or_trace_is_found_out(name: str):
    before = checksums(MODELS.target.weights)
    assert apart(name).verdict is Verdict.DEFECT
    assert checksums(MODELS.target.weights) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("exits", "ended with status 0"),
        ("killed", r"was killed by SIGKILL \(out of memory\?\)"),
        ("crashes_hard", "was killed by SIGSEGV"),
        ("hoards", "allocate memory"),
        ("forges", "shape .* lies beyond the mailbox"),
        ("real_time_signal", "was killed by signal 40"),
        ("takes_log", "ended with status 3; the log is gone"),
        ("plugs_log", "ended with status 3; the log is gone"),
        ("odd_frame", "a tensor is described as"),
        ("huge_frame", "answers with another form"),
        ("flood_of_frames", "answers with more than 67108864 bytes"),
        ("ends_and_then_refuses", "ended with status 0"),
    ],
)
def test_a_process_that_ends_or_lies_is_a_defect_and_the_run_goes_on(name: str, why: str):
    result = apart(name)
    assert result.verdict is Verdict.DEFECT
    assert [judgement.defects[0].component for judgement in result.settings[0].judgements] == ["process"] * 2
    found = re.search(why, first(result).detail)
    assert found, first(result).detail


def test_a_number_of_more_digits_than_python_writes_is_a_wrong_trace():
    assert first(apart("unspeakable")).component == "trace"
    assert "draft_calls" in first(apart("unspeakable")).detail


def test_a_refusal_after_a_first_success_is_no_bad_input():
    refused = apart("ends_and_then_refuses").settings[0].judgements[1].defects[0].detail
    assert refused.startswith("a fresh process refuses what the first one built (mood=bad: is bad today; come back")


@pytest.mark.slow
def test_no_wait_outlives_its_time():
    begin = time.perf_counter()
    found = first(apart("stops", timeout_s=2.0)).detail
    assert "no answer within 2 s (timeout)" in found
    again = apart("ends_and_then_hangs", timeout_s=2.0).settings[0].judgements[1].defects[0].detail
    assert "no answer within 2 s (timeout)" in again
    with pytest.raises(InputError, match=r"built no decoder: no answer within 2 s \(timeout\)"):
        apart("hangs_when_built", timeout_s=2.0)
    assert time.perf_counter() - begin < 90


@pytest.mark.parametrize(
    ("version", "words"),
    [(7, "a process of its own, in a domain (Landlock 7)"), (0, "a process of its own: accidents only (no Landlock")],
)
def test_the_result_says_what_kept_the_decoder_from_its_judge(
    version: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("harness.processes.domain_version", lambda: version)
    result = apart("honest")
    assert result.record is not None
    assert result.record.isolation.startswith(words)
    assert json.loads(result.to_json())["run"]["isolation"] == result.record.isolation
    show_verification(result, plain_console(), quiet=False)
    assert ("accidents only" in capsys.readouterr().out) == (version == 0)


def test_what_only_informs_fails_nothing():
    result = apart("informs_oddly")
    assert result.verdict is Verdict.IDENTICAL
    row = result.settings[0].rows[0]
    assert (row.peak_bytes, row.counts and row.counts.cache_bytes) == (0, {"target": 7})


def test_who_replaces_the_checks_of_its_process_is_found_out():
    found = first(apart("patches_the_checks"))
    assert found.component == "environment"
    assert "left harness.decoders._in_process." in found.detail


@pytest.mark.skipif(not domain_version(), reason="the system has no Landlock of version 6")
def test_a_refused_write_is_bad_input_and_can_be_allowed(tmp_path: Path):
    settings = [Settings(2, options=(("file", str(tmp_path / "new")),))]
    question = MODELS, "tests.bent:writes_outside", settings, REQUESTS[:1]
    with pytest.raises(InputError, match=rf"file={tmp_path}/new: lies outside .*pass --allow-write {tmp_path}"):
        verify(*question)
    assert not (tmp_path / "new").exists()
    assert verify(*question, terms=Terms(limits=Limits(allow_write=(str(tmp_path),)))).verdict is Verdict.IDENTICAL
    assert (tmp_path / "new").read_text() == "x"


@pytest.mark.skipif(not domain_version(), reason="the system has no Landlock of version 6")
@pytest.mark.parametrize("name", ["pokes", "signals_the_judge"])
def test_who_reaches_for_the_judge_is_refused(name: str):
    found = first(apart(name))
    assert (found.component, "PermissionError" in found.detail) == ("crash", True)


@pytest.mark.skipif(not domain_version(), reason="the system has no Landlock of version 6")
def test_one_that_was_started_ahead_decodes_as_any_other_in_the_same_domain():
    with started_ahead(SERVE, "cpu", []):
        found = first(apart("pokes"))
        assert (found.component, "PermissionError" in found.detail) == ("crash", True)
        assert _AHEAD == {}
    with started_ahead(SERVE, "cpu", []):
        assert apart("honest").verdict is Verdict.IDENTICAL
        assert _AHEAD == {}


def test_what_a_decoder_wants_done_at_the_end_is_done(tmp_path: Path):
    settings = [Settings(2, options=(("file", str(tmp_path / "new")),))]
    terms = Terms(limits=Limits(allow_write=(str(tmp_path),)))
    assert verify(MODELS, "tests.bent:ends_tidily", settings, REQUESTS[:1], terms=terms).verdict is Verdict.IDENTICAL
    assert (tmp_path / "new").read_text() == "thread, exit"


def test_nothing_stays_of_a_run_but_the_log_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    apart("honest")
    assert list(tmp_path.iterdir()) == []
    apart("exits")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["decoder.log"]


def test_a_decoder_that_hangs_is_given_up_in_time():
    begin = time.perf_counter()
    result = verify(MODELS, "tests.bent:hangs", [Settings(2)], REQUESTS[:1], terms=Terms(limits=Limits(timeout_s=1.0)))
    assert "no answer within 1 s (timeout)" in first(result).detail
    assert time.perf_counter() - begin < 40


def test_a_memory_limit_holds():
    models = replace(MODELS)
    assert apart("honest", models, memory_gib=8.0).verdict is Verdict.IDENTICAL
    assert apart("reserves", models).verdict is Verdict.IDENTICAL
    assert first(apart("reserves", models, memory_gib=8.0)).component == "process"
    assert first(apart("hoards", models, memory_gib=8.0)).component == "process"


def test_a_process_that_dies_while_it_builds_is_bad_input():
    with pytest.raises(InputError, match="built no decoder: the decoder's process ended with status 0"):
        apart("dies_when_built")


def test_much_output_goes_to_the_log(capfd: pytest.CaptureFixture[str]):
    assert apart("floods").verdict is Verdict.IDENTICAL
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_after_three_deaths_in_a_row_the_rest_is_left_alone():
    requests = [Request((0,), seed) for seed in range(5)]
    result = verify(MODELS, "tests.bent:exits", [Settings(2)], requests)
    assert len(result.settings[0].judgements) == 3


def test_in_process_a_decoder_that_writes_into_the_networks_is_told_so():
    models = copy.deepcopy(MODELS)
    found = first(verify_here(models, bent.rounds_target, [Settings(2)], REQUESTS))
    assert found.component == "weights"
    assert "the decoder wrote into target." in found.detail


def test_in_process_what_is_repaired_later_is_repaired_too_late():
    assert verify_here(MODELS, bent.repairs, [Settings(2)], REQUESTS).verdict is Verdict.DEFECT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_the_smallest_change_of_one_number_changes_the_sum(dtype: torch.dtype):
    numbers = torch.arange(1000).to(dtype)
    before = checksums({"x": numbers})
    changed = numbers.clone()
    bits = changed.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits[777] ^= 1
    assert checksums({"x": changed}) != before


@pytest.mark.parametrize(
    "header",
    [
        None,
        [["x", "float32"]],
        [["x", "complex64", [1]]],
        [["x", "float32", [-1]]],
        [["x", "float32", [2**39, 2**39]]],
        [["x", "float32", "3"]],
        [["x", "float32", [True]]],
        [["x", "float32", [256]], ["y", "float32", [256]]],
    ],
)
def test_a_header_is_believed_only_as_far_as_the_mailbox_goes(header: object):
    box = Mailbox.make(1024, torch.device("cpu"))
    with pytest.raises(UnreadableError):
        box.take(header)
    box.close()


def test_what_is_put_is_taken_by_value():
    box = Mailbox.make(4096, torch.device("cpu"))
    sent = {"a": torch.arange(5), "b": torch.rand(3, 2, generator=torch.Generator()), "c": torch.zeros(0, 4)}
    other = Mailbox.open(box.handle)
    taken = box.take(other.put(sent))
    other.block.zero_()
    assert all(torch.equal(taken[name], sent[name]) for name in sent)
    with pytest.raises(UnreadableError, match="need more than 4096 bytes"):
        other.put({"a": torch.zeros(4097, dtype=torch.uint8)})
    with pytest.raises(PermissionError):  # else who reads it ends by SIGBUS
        os.truncate(other.descriptor, 0)
    box.close()
