"""What this project's goldens must be: each difference is told whole, and in its own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from harness.errors import InputError
from harness.golden import _plan as plan
from harness.golden._cases import CPU, FileResult, recorded_networks
from harness.golden._metadata import GoldenCase
from harness.golden._plan import Origin, golden_inventory, origins, stale_entries, weights_digest
from harness.golden._store import Recording, canonical, read_recording

TINY = plan.path_of("filled", "cpu")
STATED = {"device_name": "CPU", "commit": "abc", "reason": "why"}


@pytest.mark.parametrize(
    ("models", "platform"), [(models, platform) for platform in plan.PLATFORMS for models in plan.files_of(platform)]
)
def test_the_committed_goldens_are_of_the_planned_cases_in_their_order(models: str, platform: str):
    path = plan.path_of(models, platform)
    assert read_recording(path).cases == plan.cases(models)
    with safe_open(path, "pt") as stream:
        assert json.loads(stream.metadata()["cases"]) == json.loads(canonical(plan.cases(models)))


@pytest.fixture(scope="module")
def shipped() -> Recording:
    """The file as if it had been written in one go."""
    recording = read_recording(TINY)
    return replace(recording, metadata={k: v for k, v in recording.metadata.items() if k != "origins"})


@pytest.mark.parametrize("models", plan.FILES)
def test_the_shipped_goldens_are_those_of_the_plan_made_with_the_weights_of_today(models: str):
    assert stale_entries(read_recording(plan.path_of(models, "cpu"))) == []


def with_first(recording: Recording, **values: Any) -> Recording:
    first, *others = recording.cases
    return replace(recording, cases=(replace(first, **values), *others))


def with_words(recording: Recording, **words: str) -> Recording:
    return replace(recording, metadata={**recording.metadata, **words})


def stating(recording: Recording, **values: Any) -> Recording:
    """Return it with its origin stated as one group of cases, some of it another."""
    group = {**STATED, "cases": [case.id for case in recording.cases], **values}
    return with_words(recording, origins=json.dumps([{key: v for key, v in group.items() if v is not ...}]))


def moved(recording: Recording) -> Recording:
    name = next(name for name in recording.tensors if name.endswith("/f_hat"))
    return replace(recording, tensors={**recording.tensors, name: recording.tensors[name] + 1})


BY_HAND = "content digest differs: the file was changed by hand"
ONCE = "provenance must name the origin of every case once"
WITHOUT = "provenance lacks the reason"
FIRST, LAST = (plan.cases("filled")[place].id for place in (0, -1))

STALE: dict[str, tuple[Callable[[Recording], Recording], list[str]]] = {
    "missing": (lambda r: replace(r, cases=r.cases[:-1]), [f"case {LAST} is missing", BY_HAND]),
    "extra": (
        lambda r: with_first(replace(r, cases=(r.cases[0], *r.cases)), id="more"),
        ["case more is not in the plan", BY_HAND],
    ),
    "settings": (
        lambda r: with_first(r, drawing=replace(r.cases[0].drawing, cfg=7.0)),
        [f"case {FIRST} is stale: its settings are not the plan's", BY_HAND],
    ),
    "tensors": (moved, [BY_HAND]),
    "no digest": (lambda r: with_words(r, digest=""), [BY_HAND]),
    "weights": (lambda r: with_words(r, weights="0"), ["weights digest differs: recorded with other weights"]),
    "name": (
        lambda r: replace(r, path=Path("golden-digits-cpu.safetensors")),
        ["file name must be golden-tiny-cpu.safetensors for filled on cpu"],
    ),
    "models": (lambda r: with_words(r, models="cats"), ["models cats are not in the plan"]),
    "no models": (lambda r: replace(r, metadata={"device": "cpu"}), ["models None are not in the plan"]),
    "a right origin": (stating, []),
    "no reason in the file": (lambda r: with_words(r, reason=" "), [WITHOUT]),
    "an empty reason": (lambda r: stating(r, reason=" "), [WITHOUT]),
    "no reason": (lambda r: stating(r, reason=...), [WITHOUT]),
    "no origin": (lambda r: stating(r, cases=[FIRST]), [ONCE]),
    "two origins": (lambda r: stating(r, cases=[case.id for case in (r.cases[0], *r.cases)]), [ONCE]),
}


@pytest.mark.parametrize("name", STALE)
def test_what_is_stale_is_told_in_its_own_words(name: str, shipped: Recording):
    change, told = STALE[name]
    assert stale_entries(change(shipped)) == told


def origin_of(*names: str, **values: Any) -> Origin:
    return Origin(names, **{**STATED, "versions": {}, **values})


def test_a_file_written_in_one_go_states_one_origin_for_all_its_cases():
    words = {**STATED, "versions": '{"torch": "2"}', "device": "cpu"}
    recording = Recording(
        Path("of-no-file"), words, tuple(GoldenCase(name, "sequential", (0,), plan.PLAIN) for name in "ab"), {}
    )
    assert origins(recording, {"b"}) == (origin_of("b", versions={"torch": "2"}),)
    assert origins(recording, ()) == ()
    nothing = Origin(("a", "b"), "", "", "", {})
    assert origins(replace(recording, metadata={}), ("a", "b")) == (nothing,)


def test_of_stated_origins_those_of_the_cases_are_kept():
    groups = [{**STATED, "cases": ["a", "b"]}, {**STATED, "reason": "later", "cases": ["c"]}]
    recording = Recording(Path("of-no-file"), {"origins": json.dumps(groups), "commit": "of the last write"}, (), {})
    assert origins(recording, ("b", "c")) == (origin_of("b"), origin_of("c", reason="later"))
    assert origins(recording, ("a",)) == (origin_of("a"),)


@pytest.mark.parametrize("words", [{"origins": "[{}]"}, {"origins": "[7]"}, {"origins": "{"}, {"versions": "{"}])
def test_origins_that_cannot_be_understood_are_bad_input(words: dict[str, str]):
    with pytest.raises(InputError) as refused:
        origins(Recording(Path("of-no-file"), words, (), {}), ())
    assert str(refused.value) == (
        "golden=of-no-file: must state its origins as groups of cases; restore it from version control"
    )


def test_every_weight_of_every_planned_pair_is_in_the_digest(monkeypatch: pytest.MonkeyPatch):
    few = [case for case in plan.cases("filled") if case.id in ("one-phi-plain", "no-l2norm-plain")]
    planned = {"filled": few, "digits": few[:1]}
    monkeypatch.setattr(plan, "cases", lambda models: planned[models])
    made = {id(case): recorded_networks(case, "filled") for case in few}
    monkeypatch.setattr(plan, "understood", lambda case, models, device: SimpleNamespace(models=made[id(case)]))
    digests = {weights_digest("filled"), weights_digest("digits")}
    for case in few:
        for part in ("draft", "target", "vae"):
            pair = recorded_networks(case, "filled", CPU)
            whole = getattr(pair, part)
            name = next(iter(whole.weights))
            bent = replace(whole, weights={**whole.weights, name: whole.weights[name] + 1})
            made[id(case)] = replace(pair, **{part: bent})
            digests.add(weights_digest("filled"))
        made[id(case)] = recorded_networks(case, "filled")
    assert len(digests) == 2 + 2 * 3


def test_no_goldens_of_a_platform_are_told_with_the_folder(tmp_path: Path):
    none = ([], [FileResult(str(tmp_path), unverified="no goldens were recorded on mps")])
    assert golden_inventory("mps", tmp_path) == none
    (tmp_path / "golden-tiny-cpu.safetensors").write_bytes(b"")
    assert golden_inventory("mps", tmp_path) == none


def test_what_is_missing_or_in_nobody_s_plan_is_told_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "PLATFORMS", ("cpu",))
    names = ("golden-digits-cpu.safetensors", "golden-infinity-cpu.safetensors", TINY.name, "notes.txt")
    digits, infinity, tiny, note = (tmp_path / name for name in names)
    lacks = ["golden is missing: restore or record it"]
    files, results = golden_inventory("cpu", tmp_path / "nowhere")
    assert (files, [result.defects for result in results]) == ([], [lacks, lacks, lacks])
    for path in (tiny, note):
        path.write_bytes(b"")
    assert golden_inventory("cpu", tmp_path) == (
        [tiny],
        [
            FileResult(str(digits), defects=lacks),
            FileResult(str(infinity), defects=lacks),
            FileResult(str(note), defects=["golden is not in the plan: remove it, or plan it"]),
        ],
    )
