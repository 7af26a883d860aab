"""`more_smooth` on any machine: a right sampler passes, planted soft bugs do not, what is not judged is counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.golden import _record as record
from harness.golden import _smooth as smooth
from harness.golden._cases import CPU, LIMITS, CaseResult, RecordedCase, allowances, parse, smooth_rounding
from harness.golden._check import check_case, recorded_cases
from harness.golden._smooth import Spread, spread
from harness.golden._store import Recording, as_bytes, read_recording
from harness.judge._verdict import Verdict
from tests.bent_smooth import SOFT_BUGS
from tests.helpers import RECORDED, bend

COMPONENT = "more_smooth"  # where nothing more exact is known

# Kinds of processors that one machine can be, as far as its libraries let themselves be told.
SETTINGS = {
    "sse": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}
if torch.backends.cpu.get_cpu_capability() == "AVX512":  # what a machine lacks kills the process
    SETTINGS["avx512"] = {"ATEN_CPU_CAPABILITY": "avx512"}


@cache
def small() -> Recording:
    """The recorded `more_smooth` cases on small networks, and some with filters, hand-offs and f_hat of every scale."""
    published = read_recording(RECORDED / "recorded-variants-cpu.safetensors")
    soft = [case for case in published.cases if case.drawing.more_smooth]
    made = []
    for case in soft:
        top_k, top_p = replace(case.drawing, top_k=7, cfg=3.0, seed=5), replace(case.drawing, top_p=0.8, seed=6)
        made.append(replace(case, id=f"{case.id}-top-k", drawing=top_k))
        made.append(replace(case, id=f"{case.id}-top-p", drawing=top_p, deep=True))
        handed = replace(case, sampler="test3", entry_num=1, sd_mask=5, logits="none")
        made.append(replace(handed, id=f"{case.id}-handed", drawing=replace(case.drawing, top_k=5, seed=7)))
    tensors = dict(pair for case in made for pair in record.produce(parse(case, "filled", CPU)))
    kept = {name: t for name, t in published.tensors.items() if name.split("/")[0] in {case.id for case in soft}}
    return Recording(published.path, published.metadata, (*soft, *made), {**kept, **tensors})


def judged(recording: Recording) -> list[CaseResult]:
    return [check_case(case, recording) for case in recorded_cases(recording, CPU)]


def test_a_right_sampler_passes_and_almost_all_of_it_is_judged():
    found = judged(small())
    assert len(found) == 20
    assert [result.defects for result in found if result.defects] == []
    shares = sorted(1 - result.not_judged / result.draws for result in found)
    assert shares[0] > 0.5
    assert shares[len(shares) // 2] >= 0.9


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def plant(name: str) -> None:
        for part, bug in SOFT_BUGS[name].items():
            bend(monkeypatch, part, bug)

    return plant


def concerned(name: str, result: CaseResult) -> bool:
    return "filter" not in name or bool(result.request.top_k or result.request.top_p)


# each takes some seconds: one of a kind every time, all of them in `tox -e slow`
ALWAYS = ("no filter", "another stream", "wrong codebook row")


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in SOFT_BUGS]
)
def test_a_planted_soft_bug_is_caught(name: str, plant: Callable[[str], None]):
    small()
    plant(name)
    found = [result for result in judged(small()) if concerned(name, result)]
    caught = [result.id for result in found if result.verdict is Verdict.DEFECT]
    assert len(caught) >= 0.8 * len(found), (caught, [result.id for result in found])


# ---- what is not judged ----


def part_judged(monkeypatch: pytest.MonkeyPatch) -> tuple[Recording, RecordedCase, Tensor, Tensor]:
    """A case of which a part is judged, by limits in the middle of what rounding does; judged_BL and judged_BPP."""
    recording = small()
    case = next(case for case in recorded_cases(recording, CPU) if case.id == "phi-per-scale-6-handed")
    run = case.run()
    found = spread(case, smooth_rounding(case, run))
    floor = allowances(case, run).f_hat
    margin, f_hat = 2 * float(found.rms_BL.median()), float(found.map_SBPP[-1].median()) + floor
    monkeypatch.setitem(LIMITS, "smooth margin", margin)
    monkeypatch.setitem(LIMITS, "smooth f_hat", f_hat)
    return recording, case, found.rms_BL <= margin / 2, found.map_SBPP[-1] + floor <= f_hat


def touched(recording: Recording, name: str, change: Callable[[Tensor], Tensor]) -> Recording:
    return replace(recording, tensors={**recording.tensors, name: change(recording.tensors[name].clone())})


def test_a_token_is_a_defect_where_it_is_judged_and_counted_where_it_is_not(monkeypatch: pytest.MonkeyPatch):
    recording, case, judged_BL, _ = part_judged(monkeypatch)
    whole = check_case(case, recording)
    assert whole.verdict is Verdict.IDENTICAL
    assert whole.not_judged == int((~judged_BL).sum()) > 0
    assert whole.identical + whole.not_judged == whole.draws
    for where_BL, verdict in ((judged_BL, Verdict.DEFECT), (~judged_BL, Verdict.IDENTICAL)):
        image, position = torch.nonzero(where_BL)[-1].tolist()

        def other(tokens: Tensor, at: tuple[int, int] = (image, position)) -> Tensor:
            tokens[at] = (tokens[at] + 1) % 32
            return tokens

        result = check_case(case, touched(recording, f"{case.id}/tokens", other))
        assert (result.verdict, result.not_judged) == (verdict, whole.not_judged)


def test_f_hat_is_held_by_its_image_where_it_is_not_judged(monkeypatch: pytest.MonkeyPatch):
    recording, case, _, judged_BPP = part_judged(monkeypatch)
    whole = check_case(case, recording)
    assert (whole.map_positions, whole.map_not_judged) == (judged_BPP.numel(), int((~judged_BPP).sum()))
    assert 0 < whole.map_not_judged < whole.map_positions
    for where_BPP, components in ((judged_BPP, ["f_hat", "image"]), (~judged_BPP, ["image"])):
        image, y, x = torch.nonzero(where_BPP)[-1].tolist()

        def bent(f_hat: Tensor, at: tuple[int, int, int] = (image, y, x)) -> Tensor:
            f_hat[at[0], 3, at[1], at[2]] += 0.05
            return f_hat

        result = check_case(case, touched(recording, f"{case.id}/f_hat", bent))
        assert [defect.component for defect in result.defects] == components


def test_a_case_of_which_nothing_is_judged_is_inconclusive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "smooth margin", 0.0)
    recording = small()
    case = recorded_cases(recording, CPU)[0]
    result = check_case(case, recording)
    assert (result.not_judged, result.verdict) == (result.draws, Verdict.INCONCLUSIVE)


def test_f_hat_of_every_scale_is_judged_behind_a_soft_tie(monkeypatch: pytest.MonkeyPatch):
    """Nothing of the free run is judged here, and a thousandth in one number of one scale is still seen."""
    monkeypatch.setattr(smooth, "spread", lambda case, error, raw=None: widened(case, error, raw))
    recording = small()
    case = next(case for case in recorded_cases(recording, CPU) if case.id == "phi-per-scale-6-top-p")
    assert check_case(case, recording).not_judged == 0

    def bent(f_hat: Tensor) -> Tensor:
        f_hat[0, 3, 2, 1] += 2e-3
        return f_hat

    result = check_case(case, touched(recording, f"{case.id}/f_hat/2", bent))
    assert {(defect.component, defect.scale) for defect in result.defects} >= {("f_hat", 2), ("f_hat", 3)}


def widened(case: RecordedCase, error: float, raw: Mapping[int, Tensor] | None) -> Spread:
    found = spread(case, error, raw)
    return found if raw is not None else replace(found, map_SBPP=found.map_SBPP + 1, rms_BL=found.rms_BL + 1)


# ---- other set-ups ----


@pytest.mark.slow
@pytest.mark.parametrize("name", SOFT_BUGS)
def test_a_planted_soft_bug_is_caught_on_digits(name: str, plant: Callable[[str], None]):
    published = read_recording(RECORDED / "recorded-cpu.safetensors")
    base = next(case for case in published.cases if case.id == "sequential-005")
    plain = replace(base, id="top-k", labels=(3,), drawing=replace(base.drawing, top_k=20, seed=9))
    handed = replace(
        plain, id="top-p", drawing=replace(plain.drawing, top_k=0, top_p=0.9), sampler="test3", entry_num=3, sd_mask=3
    )
    made = (plain, handed, replace(plain, id="deep", deep=True))
    tensors = dict(pair for case in made for pair in record.produce(parse(case, "digits", CPU)))
    recording = Recording(published.path, published.metadata, made, tensors)
    assert [result.defects for result in judged(recording)] == [[], [], []]
    plant(name)
    assert [result.id for result in judged(recording) if not result.defects] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_all_of_it_holds_on_another_kind_of_processor(name: str, tmp_path: Path):
    fresh, root = tmp_path / "fresh.safetensors", RECORDED.parents[2]
    recording = small()
    fresh.write_bytes(as_bytes(recording.metadata, recording.cases, recording.tensors))
    harness = [sys.executable, "-m", "harness", "golden"]
    for words in (
        [*harness, "check", "--quiet", str(fresh)],
        [*harness, "check", "--quiet", str(RECORDED / "recorded-cpu.safetensors")],
        [*harness, "check", "--quiet"],
        [*harness, "diff"],
        [sys.executable, "-m", "pytest", "-q", "-k", "not digits and not processor", "tests/regression/test_soft.py"],
    ):
        done = subprocess.run(
            words, cwd=root, env=os.environ | SETTINGS[name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
