"""When a golden may not be recorded: every refusal in its own words; each law sees the sampler that it is about."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden import _plan as plan
from harness.golden import _record as guard
from harness.golden._cases import CPU, CaseResult, FileResult
from harness.golden._record import failing_laws
from harness.judge._verdict import Verdict
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))


def other(tokens_BL: Tensor) -> Tensor:
    return (tokens_BL + 1) % 11


def test_right_samplers_agree_with_each_other():
    assert failing_laws(MODELS) == []


def test_a_sampler_without_cache_that_draws_others_fails_one_law(monkeypatch: pytest.MonkeyPatch):
    whole = guard.sample_cachefree
    monkeypatch.setattr(guard, "sample_cachefree", lambda *a: other(whole(*a)))
    assert failing_laws(MODELS) == ["decoding with a cache = decoding without one"]


@pytest.mark.parametrize(("mode", "mask"), [("corrected", 3), ("recorded", 0)])
def test_a_hand_off_that_draws_others_fails_the_laws_of_its_mode_and_mask(
    mode: str, mask: int, monkeypatch: pytest.MonkeyPatch
):
    whole = guard.sample_handoff

    def bent(*arguments: Any) -> Trace:
        run = whole(*arguments)
        hit = (arguments[-1].mode, arguments[-1].sd_mask) == (mode, mask)
        return replace(run, tokens_BL=other(run.tokens_BL)) if hit else run

    monkeypatch.setattr(guard, "sample_handoff", bent)
    assert failing_laws(MODELS) == [f"hand-off at entry 0 ({mode}, mask {mask}) = sequential decoding"]


@pytest.mark.parametrize("draft_len", [1, 2, 3])
def test_a_speculative_decoder_that_draws_others_fails_at_its_draft_length(
    draft_len: int, monkeypatch: pytest.MonkeyPatch
):
    whole = guard.run_in_process

    def bent(decoder: Any, *arguments: Any) -> Any:
        decoded = whole(decoder, *arguments)
        if decoder.options.draft_len == draft_len:
            decoded.f_hat_BCPP = torch.zeros_like(decoded.f_hat_BCPP)
        return decoded

    monkeypatch.setattr(guard, "run_in_process", bent)
    found = failing_laws(MODELS)
    assert len(found) == 1
    assert found[0].startswith(f"speculative decoding, draft_len={draft_len} = sequential decoding (")


def refusal(reason: str, folder: Path, code: Path) -> str:
    with pytest.raises(InputError) as found:
        guard.refuse(reason, folder, code)
    return str(found.value)


def test_every_refusal_names_what_is_wrong_its_rule_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI", "yes")
    assert refusal(" ", tmp_path, tmp_path) == (
        'reason= : must say why the goldens change; pass --reason "what changed and why"'
    )
    assert refusal("because", tmp_path, tmp_path) == (
        "CI=yes: goldens are never recorded in CI; record on a developer's machine"
    )
    monkeypatch.delenv("CI")
    roundabout = plan.GOLDENS / ".." / plan.GOLDENS.name  # the same folder
    assert refusal("because", roundabout, tmp_path) == (
        f"folder={roundabout}: a test run never writes a golden; run golden record by hand"
    )
    assert refusal("because", tmp_path, tmp_path) == (
        f"tree={tmp_path}: is not a git checkout; record in a checkout of the project"
    )
    git = ["git", "-C", str(tmp_path), "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-qm", "one", "--allow-empty"], check=True)
    guard.refuse("because", tmp_path, tmp_path)
    for name in ("one", "other", "third"):
        (tmp_path / name).touch()
    assert refusal("because", tmp_path, tmp_path) == (
        f"tree={tmp_path}: is dirty (3 files differ from the last commit); "
        "commit first, so that the goldens name the code that made them"
    )


def test_an_installed_copy_says_so_and_keeps_its_goldens(tmp_path: Path):
    installed, here = tmp_path / "site-packages", Path(__file__).parent
    assert guard.whose_code(here) == ""
    assert guard.whose_code(tmp_path) == ""  # a checkout's code, installed with -e, runs anywhere
    assert guard.whose_code(tmp_path, installed) == (
        f"an installed copy runs, {installed / 'harness'}, with the goldens in it"
    )
    assert guard.whose_code(here, installed) == (
        f"{installed / 'harness'} runs, not the checkout in {guard.CHECKOUT}; for that, pip install -e . there"
    )
    with pytest.raises(InputError) as found:
        guard.refuse_installed(plan.GOLDENS, installed)
    rule = "belongs to an installed copy; pip install -e . in a checkout, and record there"
    assert str(found.value) == f"folder={plan.GOLDENS}: {rule}"
    guard.refuse_installed(tmp_path, installed)
    guard.refuse_installed(plan.GOLDENS)


def test_every_planned_platform_has_recordings_from_outside():
    assert set(guard.RECORDED) == set(plan.PLATFORMS)
    files = {f"{name}.safetensors" for names in guard.RECORDED.values() for name in names}
    assert files <= {path.name for path in guard.RECORDINGS.iterdir()}


def test_what_contradicts_is_told_by_file_with_five_of_its_names(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Any, ...]] = []

    def judged(recording: Any, cases: object, device: torch.device) -> FileResult:
        """Two strays and four wrong cases, then a file that holds, then one on which nothing could be compared."""
        seen.append((recording.path.name, cases, device))
        result = FileResult(str(recording.path))
        if recording.path.name == "a":
            result.defects = ["stray 1", "stray 2"]
            result.cases = [CaseResult(f"case {k}", Request((0,), 0), draws=1) for k in range(5)]
            for case in result.cases[1:]:
                case.defect("token", "by hand")
        return result if recording.path.name != "b" else FileResult("b", unverified="by hand")

    monkeypatch.setitem(guard.RECORDED, "cpu", ("a", "b", "c"))
    monkeypatch.setattr(
        guard.check, "read_recordings", lambda paths: [SimpleNamespace(path=path.with_suffix("")) for path in paths]
    )
    monkeypatch.setattr(guard.check, "recorded_cases", lambda recording, device: (recording.path.name, device))
    monkeypatch.setattr(guard.check, "check_recording", judged)
    assert guard.contradicted(CPU) == ["a (stray 1, stray 2, case 1, case 2, case 3)"]
    assert seen == [(name, (name, CPU), CPU) for name in "abc"]


def test_a_broken_law_is_told_with_its_statement_and_no_other_row_is(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, int]] = []

    def run(implementation: str, examples: int) -> SimpleNamespace:
        asked.append((implementation, examples))
        law = SimpleNamespace(id="one.law", statement="it holds")
        return SimpleNamespace(rows=[SimpleNamespace(law=law, verdict=verdict) for verdict in Verdict])

    monkeypatch.setattr(guard, "run_conformance", run)
    assert guard.broken_laws() == ["one.law (it holds)"]
    assert guard.broken_laws("another:decoder", 3) == ["one.law (it holds)"]
    assert asked == [(guard.OWN_DECODER, 20), ("another:decoder", 3)]
