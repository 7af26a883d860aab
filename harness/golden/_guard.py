"""When goldens must not be recorded. Promise: every reason is one line with its remedy, and nothing is written."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from harness.decoders import OWN_DECODER, run_in_process
from harness.errors import InputError
from harness.golden._check import check_recording, read_recordings, recorded_cases
from harness.golden._plan import GOLDENS
from harness.judge import Evidence, Verdict, judge
from harness.laws import run_conformance
from harness.models import ModelPair
from harness.protocol import Request, Settings, Trace
from harness.provenance import git_says
from harness.reference import HandOff, sample_cachefree, sample_handoff
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget
from harness.speculative.sampler import build_decoder

CODE = Path(__file__).parent
CHECKOUT = Path(__file__).parents[2]
RECORDINGS = CHECKOUT / "tests" / "regression" / "recorded"
RECORDED = {"cpu": ("recorded-cpu", "recorded-variants-cpu"), "cuda": ("recorded-cuda",)}  # of every planned platform
Laws = Callable[[ModelPair], list[str]]


def refuse(reason: str, folder: Path, code: Path) -> None:
    """Raise `InputError` without a reason, in CI, in a test run (but into another folder), or where `code` is dirty."""
    if not reason.strip():
        raise InputError("reason", reason, "must say why the goldens change", 'pass --reason "what changed and why"')
    if os.environ.get("CI"):
        raise InputError("CI", os.environ["CI"], "goldens are never recorded in CI", "record on a developer's machine")
    if "PYTEST_CURRENT_TEST" in os.environ and folder.resolve() == GOLDENS.resolve():
        raise InputError("folder", str(folder), "a test run never writes a golden", "run golden record by hand")
    try:
        dirty = git_says(code, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        raise InputError("tree", str(code), "is not a git checkout", "record in a checkout of the project") from None
    if dirty:
        rule = f"is dirty ({len(dirty.splitlines())} files differ from the last commit)"
        raise InputError("tree", str(code), rule, "commit first, so that the goldens name the code that made them")


def whose_code(here: Path, code: Path = CHECKOUT) -> str:
    """Return what a person in folder `here` may not expect about whose code runs: "" when it is that checkout's."""
    around = next((folder for folder in (here, *here.parents) if _is_checkout(folder)), None)
    if around is not None and around.resolve() != code.resolve():
        return f"{code / 'harness'} runs, not the checkout in {around}; for that, pip install -e . there"
    return "" if _is_checkout(code) else f"an installed copy runs, {code / 'harness'}, with the goldens in it"


def refuse_installed(folder: Path, code: Path = CHECKOUT) -> None:
    """Refuse to write the goldens of an installed copy. Raises `InputError`."""
    if folder.resolve() == GOLDENS.resolve() and not _is_checkout(code):
        rule = "belongs to an installed copy"
        raise InputError("folder", str(folder), rule, "pip install -e . in a checkout, and record there")


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return project.is_file() and 'name = "sdvar-harness"' in project.read_text(errors="replace")


def contradicted(device: torch.device, folder: Path = RECORDINGS) -> list[str]:
    """List the recordings of the device's class that do not hold; none of them may be missing."""
    contradictions = []
    for recording in read_recordings([folder / f"{name}.safetensors" for name in RECORDED[device.type]]):
        result = check_recording(recording, recorded_cases(recording, device), device)
        wrong = [case.id for case in result.cases if case.defects]
        if result.verdict is Verdict.DEFECT:
            contradictions.append(f"{recording.path.name} ({', '.join([*result.defects, *wrong][:5])})")
    return contradictions


@torch.inference_mode()
def failing_laws(models: ModelPair) -> list[str]:
    """List the laws that fail on one pair; none of them looks at a golden.

    A recording must come from samplers that agree with each other: with a cache and without one, speculative and
    sequential, hand-off and the limits in which it is sequential.
    """
    request = Request((0, 1), 7)
    target = sample_sequential(models.target, models.vae, request, models.noise(request))
    failing = []
    if not torch.equal(sample_cachefree(models.target, models.vae, request, models.noise(request)), target.tokens_BL):
        failing.append("decoding with a cache = decoding without one")
    budget = quick_budget(models)
    S = models.pyramid.S
    for draft_len in sorted({1, (S + 1) // 2, S}):
        decoded = run_in_process(build_decoder(models, Settings(draft_len)), models, request)
        judged = judge(Evidence(models, request, decoded, target, budget)) if isinstance(decoded, Trace) else decoded
        if judged.defects:
            failing.append(f"speculative decoding, draft_len={draft_len} = sequential decoding ({judged.defects[0]})")
    for hand_off in (HandOff(0, 3), HandOff(0, 0, "recorded")):
        handed = sample_handoff(models, request, models.noise(request), hand_off)
        if not torch.equal(handed.tokens_BL, target.tokens_BL):
            failing.append(f"hand-off at entry 0 ({hand_off.mode}, mask {hand_off.sd_mask}) = sequential decoding")
    return failing


def broken_laws(implementation: str = OWN_DECODER, examples: int = 20) -> list[str]:
    """List the laws of `harness.laws` that a decoder, by default the production one, breaks."""
    rows = run_conformance(implementation, examples).rows
    return [f"{row.law.id} ({row.law.statement})" for row in rows if row.verdict is Verdict.DEFECT]
