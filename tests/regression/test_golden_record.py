"""Goldens are recorded with a reason or not at all, and what is no change stays as it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InputError
from harness.golden import _plan as plan
from harness.golden import _record as guard
from harness.golden import _record as record
from harness.golden._cases import CPU
from harness.golden._metadata import GoldenCase
from harness.golden._store import canonical, content_digest, read_recording
from harness.reference._var import guide
from tests.helpers import bend, command
from tests.regression.tampered import PLAIN, Content, one_line, other_token

COMPONENT = "golden"  # where nothing more exact is known


def values_of(stated: Sequence[GoldenCase]) -> list[dict[str, Any]]:
    """Return cases as a file holds them."""
    return json.loads(canonical(stated))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for goldens of a small plan, on a tree that passes for clean, outside CI."""
    few = tuple(c for c in plan.cases("filled") if c.id.startswith("one-phi") and c.id.endswith(("-plain", "-2")))
    assert len(few) == 2
    monkeypatch.setattr(plan, "FILES", {"filled": "golden-tiny"})
    monkeypatch.setattr(plan, "PLATFORMS", ("cpu",))
    monkeypatch.setattr(plan, "cases", lambda models: few)
    monkeypatch.setattr("harness.golden.broken_laws", list)  # twenty seconds, and a test of its own below
    monkeypatch.setattr(guard, "contradicted", lambda device: [])  # a minute, and a test of its own below
    monkeypatch.setattr(guard, "git_says", lambda folder, *words: "" if words[0] == "status" else "abc")
    monkeypatch.delenv("CI", raising=False)
    made = tmp_path / "goldens"
    made.mkdir()
    return made


def recording(monkeypatch: pytest.MonkeyPatch, folder: Path, reason: str = "because") -> int:
    return command(monkeypatch, "golden", "record", "--reason", reason, "--folder", str(folder))


def test_recording_then_nothing_then_an_intentional_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ("--folder", str(folder))
    assert recording(monkeypatch, folder, "the first") == 0
    assert "added" in capsys.readouterr().out
    path = folder / "golden-tiny-cpu.safetensors"
    content, metadata = path.read_bytes(), read_recording(path).metadata
    assert {key: metadata[key] for key in ("reason", "commit", "kind")} == {
        "reason": "the first", "commit": "abc", "kind": "golden",
    }  # fmt: skip
    assert command(monkeypatch, "golden", "check", *options) == 0
    assert command(monkeypatch, "golden", "diff", *options) == 0
    capsys.readouterr()

    assert recording(monkeypatch, folder, "again") == 0
    assert capsys.readouterr().out.strip() == "nothing changed; nothing written"
    assert path.read_bytes() == content

    whole = guide
    bend(monkeypatch, "guide", lambda logits, cfg, si, S: whole(logits, cfg + (si == 2), si, S))
    assert command(monkeypatch, "golden", "check", *options) == 1
    assert command(monkeypatch, "golden", "diff", *options) == 1
    shown = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[1:2] == ["values"])
    assert shown[:3] == ["one-phi-plain", "values", "2"]
    assert int(shown[3]) > 0
    assert path.read_bytes() == content
    assert recording(monkeypatch, folder) == 2  # speculative decoding no longer equals this sampler: a law fails
    assert "error: laws=" in capsys.readouterr().err
    assert path.read_bytes() == content

    monkeypatch.setattr("harness.golden.changed_goldens", partial(record.changed_goldens, laws=lambda models: []))
    assert recording(monkeypatch, folder, "stronger guidance at scale 2") == 0
    assert "one-phi-plain" in capsys.readouterr().out
    assert read_recording(path).metadata["reason"] == "stronger guidance at scale 2"
    assert command(monkeypatch, "golden", "check", *options) == 0
    assert command(monkeypatch, "golden", "diff", *options) == 0


@pytest.mark.parametrize("reason", ["", "  "])
def test_recording_without_a_reason_is_refused(
    reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert recording(monkeypatch, folder, reason) == 2
    assert "must say why the goldens change" in one_line(capsys)
    assert list(folder.iterdir()) == []


def test_recording_in_ci_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("CI", "true")
    assert recording(monkeypatch, folder) == 2
    assert "CI=true: goldens are never recorded in CI" in one_line(capsys)
    assert list(folder.iterdir()) == []


def test_recording_while_a_law_fails_is_refused(folder: Path):
    with pytest.raises(InputError, match="laws=a = b: must hold before a golden is recorded"):
        record.changed_goldens("because", CPU, folder, laws=lambda models: ["a = b"])
    assert list(folder.iterdir()) == []


def test_recording_for_an_unplanned_platform_or_nowhere_is_refused(folder: Path):
    with pytest.raises(InputError, match="must be a platform of the plan"):
        record.changed_goldens("because", torch.device("mps"), folder)
    with pytest.raises(InputError, match="is not there; make it first"):
        record.changed_goldens("because", CPU, folder / "nowhere")


def test_a_test_run_never_writes_a_golden(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert recording(monkeypatch, plan.GOLDENS) == 2
    assert "a test run never writes a golden" in one_line(capsys)


def test_a_dirty_tree_and_no_tree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CI", raising=False)
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(InputError, match="is not a git checkout"):
        guard.refuse("because", tree, tree)
    git = ["git", "-C", str(tree), "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tree / "file").write_text("1")
    with pytest.raises(InputError, match=r"is dirty \(1 files differ"):
        guard.refuse("because", tree, tree)
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    guard.refuse("because", tree, tree)
    (tree / "file").write_text("2")
    with pytest.raises(InputError, match="commit first, so that the goldens name the code that made them"):
        guard.refuse("because", tree, tree)


def test_missing_and_extra_files_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ("golden", "check", "--quiet", "--folder", str(folder))
    assert command(monkeypatch, *options) == 1
    assert "golden-tiny-cpu.safetensors: golden is missing" in capsys.readouterr().out
    assert recording(monkeypatch, folder) == 0
    assert command(monkeypatch, *options) == 0
    (folder / "golden-tiny-mps.safetensors").write_bytes(b"")
    assert command(monkeypatch, *options) == 1
    assert "golden-tiny-mps.safetensors: golden is not in the plan" in capsys.readouterr().out


def test_a_broken_law_refuses_the_recording(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("harness.golden.broken_laws", lambda: ["masks.definition (it holds)"])
    assert recording(monkeypatch, folder) == 2
    assert "laws=masks.definition (it holds): must hold before a golden is recorded" in capsys.readouterr().err
    assert not any(folder.iterdir())


@pytest.mark.slow
def test_the_laws_behind_it_see_a_planted_bug():
    assert "guidance.trace" in " ".join(guard.broken_laws("harness.mutants.guidance:SWAPPED", examples=3))


def test_rounding_is_no_change_and_a_case_that_did_not_change_keeps_bytes_and_provenance(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert recording(monkeypatch, folder, "the first") == 0
    path, options = folder / "golden-tiny-cpu.safetensors", ("--folder", str(folder))
    before = read_recording(path)
    rounded = Content({n: t.clone() for n, t in before.tensors.items()}, values_of(before.cases), dict(before.metadata))
    for name in ("one-phi-plain/f_hat", "one-phi-speculative-2/image"):
        rounded.tensors[name] *= 1 + 2.0**-23  # what another processor might have written
    rounded.metadata["digest"] = content_digest(rounded.tensors, canonical(before.cases))
    content = rounded.save(path).read_bytes()
    assert command(monkeypatch, "golden", "diff", *options) == 0
    assert recording(monkeypatch, folder, "again") == 0
    assert path.read_bytes() == content

    whole = guide  # the speculative side has a guidance of its own: its case holds
    bend(monkeypatch, "guide", lambda logits, cfg, si, S: whole(logits, cfg + (si == 2), si, S))
    monkeypatch.setattr("harness.golden.changed_goldens", partial(record.changed_goldens, laws=lambda models: []))
    only = ("--only", "*-plain")
    capsys.readouterr()
    assert command(monkeypatch, "golden", "diff", *options, *only) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 change"
    monkeypatch.setattr(guard, "git_says", lambda folder, *words: "" if words[0] == "status" else "def")
    assert command(monkeypatch, "golden", "record", "--reason", "stronger", *options, *only) == 0
    after = read_recording(path)
    assert all(
        torch.equal(after.tensors[name], tensor) == name.startswith("one-phi-speculative-2/")
        for name, tensor in rounded.tensors.items()
        if name.endswith(("/tokens", "/f_hat", "/image", "/rounds"))
    )
    told = {case: (o["reason"], o["commit"]) for o in json.loads(after.metadata["origins"]) for case in o["cases"]}
    assert told == {"one-phi-speculative-2": ("the first", "abc"), "one-phi-plain": ("stronger", "def")}
    assert plan.stale_entries(after) == []


def test_a_golden_changed_by_hand_is_a_change_however_small(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert recording(monkeypatch, folder) == 0
    path, options = folder / "golden-tiny-cpu.safetensors", ("--folder", str(folder))
    before = read_recording(path)
    bent = Content({n: t.clone() for n, t in before.tensors.items()}, values_of(before.cases), dict(before.metadata))
    bent.tensors["one-phi-plain/f_hat"] *= 1 + 2.0**-23
    bent.save(path)
    assert command(monkeypatch, "golden", "diff", *options) == 1
    assert command(monkeypatch, "golden", "diff", *options, "--only", "*-plain") == 2
    assert recording(monkeypatch, folder) == 0
    assert torch.equal(read_recording(path).tensors["one-phi-plain/f_hat"], before.tensors["one-phi-plain/f_hat"])


def test_a_case_that_left_the_plan_and_other_weights_are_changes_and_another_precision_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert recording(monkeypatch, folder) == 0
    path = folder / "golden-tiny-cpu.safetensors"
    before, planned = read_recording(path), plan.cases("filled")

    def changes(**metadata: str) -> list[tuple[str, str]]:
        Content(dict(before.tensors), values_of(before.cases), {**before.metadata, **metadata}).save(path)
        return [(change.id, change.what) for change in record.regenerate("filled", CPU, folder).changes]

    assert changes() == []
    assert changes(weights="0") == [("(file)", "weights")]
    with pytest.raises(InputError, match=r"with TF32 on.*compare it on the platform that it was recorded on"):
        changes(tf32="on")
    monkeypatch.setattr(plan, "cases", lambda models: planned[:1])
    gone = planned[1].id
    assert (gone, "removed") in changes()
    made = record.regenerate("filled", CPU, folder)
    assert [case.id for case in made.cases] == [planned[0].id]
    assert {name.split("/")[0] for name in made.tensors} == {planned[0].id}
    assert [name for origin in made.origins for name in origin.cases] == [planned[0].id]


@pytest.mark.parametrize("word", ["check", "diff", "record"])
def test_a_pattern_that_fits_no_case_is_bad_input(
    word: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert recording(monkeypatch, folder) == 0
    capsys.readouterr()
    options = ("--reason", "because") if word == "record" else ()
    assert command(monkeypatch, "golden", word, "--only", "cat*", "--folder", str(folder), *options) == 2
    assert "only=cat*: fits no case" in capsys.readouterr().err


def test_recording_is_refused_while_a_recording_is_contradicted(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    for name in ("recorded-cpu", "recorded-variants-cpu"):
        content.save(tmp_path / f"{name}.safetensors")
    monkeypatch.undo()
    assert guard.contradicted(CPU, tmp_path) == []
    other_token(content)
    content.save(tmp_path / "recorded-variants-cpu.safetensors")
    assert guard.contradicted(CPU, tmp_path) == [f"recorded-variants-cpu.safetensors ({PLAIN})"]
    monkeypatch.setattr(guard, "refuse", lambda *a: None)
    monkeypatch.setattr(guard, "contradicted", lambda device: ["recorded-cpu (case a)"])
    with pytest.raises(InputError, match="are contradicted: outside truth outranks any golden"):
        record.changed_goldens("because", CPU, folder)
    assert list(folder.iterdir()) == []


def test_every_platform_of_the_plan_has_all_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert recording(monkeypatch, folder) == 0
    (folder / "golden-tiny-cuda.safetensors").write_bytes(b"")
    monkeypatch.setattr(plan, "PLATFORMS", ("cpu", "cuda"))
    monkeypatch.setattr(plan, "FILES", {"filled": "golden-tiny", "digits": "golden-digits"})
    paths, results = plan.golden_inventory("cuda", folder)
    assert [path.name for path in paths] == ["golden-tiny-cuda.safetensors"]
    missing = {Path(result.path).name for result in results if "missing" in result.defects[0]}
    assert missing == {"golden-digits-cpu.safetensors", "golden-digits-cuda.safetensors"}
