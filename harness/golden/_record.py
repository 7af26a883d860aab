"""Write this project's goldens, only when asked, with a reason, and while recordings and laws hold.

Promise: nothing is written in CI, on a dirty tree, without a reason, while a recording is contradicted or a law fails,
or when nothing changed; a case that did not change keeps its bytes and its provenance. A case has changed if what is on
disk no longer holds against this code; what rounding does on another machine is no change. Every reason for which
nothing is recorded is one line with its remedy.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from harness.decoders import OWN_DECODER, run_in_process
from harness.errors import InputError
from harness.files import check_writable, write_whole
from harness.golden import _check as check
from harness.golden import _plan as plan
from harness.golden._cases import CPU, NOT_RECORDED, CaseResult
from harness.golden._infinity import FORMAT as INFINITY
from harness.golden._infinity import AnyStated, InfinityCase, InfinityStated, produce_infinity
from harness.golden._plan import GOLDENS
from harness.golden._store import KIND, Recording, as_bytes, canonical, content_digest, read_recording, unverified
from harness.judge import Evidence, Verdict, differences, judge, largest_difference
from harness.laws import run_conformance
from harness.models import ModelPair
from harness.models.infinity.transformer import InfinityConfig
from harness.protocol import Settings, Trace
from harness.provenance import device_name, git_says, versions
from harness.reference import HandOff, family_of, sample_cachefree, sample_handoff, sample_sequential
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
    for recording in check.read_recordings([folder / f"{name}.safetensors" for name in RECORDED[device.type]]):
        result = check.check_recording(recording, check.recorded_cases(recording, device), device)
        wrong = [case.id for case in result.cases if case.defects]
        if result.verdict is Verdict.DEFECT:
            contradictions.append(f"{recording.path.name} ({', '.join([*result.defects, *wrong][:5])})")
    return contradictions


@torch.inference_mode()
def failing_laws(models: ModelPair) -> list[str]:
    """List the laws that fail on one pair: a recording must come from samplers that agree with each other."""
    config, request = models.target.config, family_of(models.target).example(models, 2, 7)
    target = sample_sequential(models.target, models.vae, request, models.noise(request))
    failing = []
    if not torch.equal(sample_cachefree(models.target, models.vae, request, models.noise(request)), target.tokens_BL):
        failing.append("decoding with a cache = decoding without one")
    budget = quick_budget(models)
    S = models.pyramid.S
    alone = isinstance(config, InfinityConfig) and (config.rule != 2 or not config.fused)  # the reference's to decode
    for draft_len in [] if alone else sorted({1, (S + 1) // 2, S}):
        decoded = run_in_process(build_decoder(models, Settings(draft_len)), models, request)
        judged = judge(Evidence(models, request, decoded, target, budget)) if isinstance(decoded, Trace) else decoded
        if judged.defects:
            failing.append(f"speculative decoding, draft_len={draft_len} = sequential decoding ({judged.defects[0]})")
    for hand_off in (HandOff(0, 3), HandOff(0, 0, "recorded")) if config.family == "var" else ():
        handed = sample_handoff(models, request, models.noise(request), hand_off)
        if not torch.equal(handed.tokens_BL, target.tokens_BL):
            failing.append(f"hand-off at entry 0 ({hand_off.mode}, mask {hand_off.sd_mask}) = sequential decoding")
    return failing


def broken_laws(implementation: str = OWN_DECODER, examples: int = 20) -> list[str]:
    """List the laws of `harness.laws` that a decoder, by default the production one, breaks."""
    rows = run_conformance(implementation, examples).rows
    return [f"{row.law.id} ({row.law.statement})" for row in rows if row.verdict is Verdict.DEFECT]


WHOLE_FILE = "(file)"  # the id of a change that concerns a whole file


@dataclass(frozen=True)
class Change:
    id: str  # of the case; `WHOLE_FILE` for a whole file
    # added, removed, settings, form (other tensors, shapes or dtypes), values; of a file: weights, changed by hand
    what: str
    first_scale: int = -1  # of the first token that changes; -1: no token does
    tokens: int = 0  # how many change
    f_hat: float = NOT_RECORDED  # largest difference; NaN where not compared
    image: float = NOT_RECORDED  # largest difference; NaN where not compared


def kind_of_change(planned: AnyStated, before: Recording, judged: CaseResult | None) -> str:
    """Return what has become of a case, "" for nothing but rounding; one whose settings are others is not judged."""
    recorded = {case.id: case for case in before.cases}.get(planned.id)
    if recorded is None:
        return "added"
    if recorded != planned:
        return "settings"
    assert judged is not None
    if any(defect.component == "form" for defect in judged.defects):
        return "form"
    return "values" if judged.defects else ""


def change(planned: AnyStated, models: str, what: str, new: dict[str, Tensor], old: dict[str, Tensor]) -> Change:
    """Measure one change; `new` and `old` are the tensors of the case, by the name after its id."""
    if what == "added" or any(difference.kind != "value" for difference in differences(new, old)):
        return Change(planned.id, what)
    draws, drawn = check.understood(planned, models, CPU).models.pyramid.draws, "bits" if "bits" in new else "tokens"
    positions = torch.nonzero((new[drawn] != old[drawn]).flatten(1))[:, 1].tolist()
    first = draws.level_of(min(positions)) if positions else -1
    f_hat, image = (
        largest_difference(new[key], old[key]) if key in new else NOT_RECORDED for key in ("f_hat", "image")
    )
    return Change(planned.id, what, first, len(positions), f_hat, image)


@dataclass(frozen=True)
class Regeneration:
    """A file as this code would write it now."""

    path: Path  # where
    models: str  # its group of networks
    cases: tuple[AnyStated, ...]  # of the plan; what is not asked for stays as it is on disk
    tensors: dict[str, Tensor]  # of cases that changed, made here; of all others, those on disk
    weights: str  # digest
    changes: tuple[Change, ...]  # what differs from what is on disk, rounding apart
    origins: tuple[plan.Origin, ...]  # provenance of the cases that keep theirs


def regenerate(models: str, device: torch.device, folder: Path = plan.GOLDENS, only: str = "*") -> Regeneration:
    """Judge what is on disk of one file's plan, and make anew what no longer holds.

    Cases whose id does not match `only`, which may hold wildcards, stay as they are. Raises `InputError` where the
    file was changed by hand, so that no case of it can.
    """
    path, weights = plan.path_of(models, device.type, folder), plan.weights_digest(models)
    before = read_recording(path) if path.exists() else Recording(path, {}, (), {})
    if before.cases and (why := unverified(before, device)):
        raise InputError("golden", str(path), why, "compare it on the platform that it was recorded on")
    by_hand = bool(before.cases) and before.metadata.get("digest") != before.digest()
    if by_hand and only != "*":
        rule = "was changed by hand: none of its cases can be kept"
        raise InputError("golden", str(path), rule, "restore it from version control, or leave out --only")
    planned = plan.cases(models)
    ids, on_disk = {case.id for case in planned}, {case.id: case for case in before.cases}
    asked = [case for case in planned if fnmatchcase(case.id, only)]
    unchanged = [check.understood(case, models, device) for case in asked if case in before.cases]
    with check.one_case_a_core(device) as pool:
        judged = {result.id: result for result in pool.map(lambda case: check.check_case(case, before), unchanged)}
    kinds = {case.id: kind_of_change(case, before, judged.get(case.id)) for case in asked}
    if by_hand:
        kinds = {name: kind or "values" for name, kind in kinds.items()}
    stays = {name for name in on_disk if not fnmatchcase(name, only) or kinds.get(name) == ""}
    anew = [case for case in planned if kinds.get(case.id)]
    listed = [case if case.id in kinds else on_disk[case.id] for case in planned if case.id in kinds.keys() | on_disk]
    listed += [on_disk[name] for name in on_disk if name in stays and name not in ids]
    tensors = {name: tensor for name, tensor in before.tensors.items() if name.split("/")[0] in stays}
    with check.one_case_a_core(device) as pool:
        produced = pool.map(produce, [check.understood(case, models, device) for case in anew])
        tensors |= dict(chain.from_iterable(produced))
    after = Recording(path, {}, tuple(listed), tensors)
    changes = [Change(name, "removed") for name in sorted(on_disk.keys() - ids - stays)]
    changes += [change(case, models, kinds[case.id], after.of(case.id), before.of(case.id)) for case in anew]
    changes += [Change(WHOLE_FILE, "changed by hand")] if by_hand else []
    changes += [Change(WHOLE_FILE, "weights")] if before.cases and before.metadata.get("weights") != weights else []
    return Regeneration(path, models, after.cases, tensors, weights, tuple(changes), plan.origins(before, stays))


@torch.inference_mode()
def produce(case: check.AnyCase) -> list[tuple[str, Tensor]]:
    """Run one case; return what is recorded of it, by full name."""
    if isinstance(case, InfinityCase):
        return [(f"{case.id}/{name}", tensor.cpu().clone()) for name, tensor in produce_infinity(case).items()]
    trace = case.run()
    tensors = {"tokens": trace.tokens_BL.to(torch.int16), **case.tensors(trace)}
    if case.sampler == "speculative":
        tensors["rounds"] = check.rounds(trace)
    return [(f"{case.id}/{name}", tensor.cpu().clone()) for name, tensor in tensors.items()]


def regenerate_all(device: torch.device, folder: Path = plan.GOLDENS, only: str = "*") -> list[Regeneration]:
    """Return every file of the plan as this code would write it now; arguments and errors as of `regenerate`."""
    return [regenerate(models, device, folder, only) for models in plan.files_of(device.type)]


def changed_goldens(
    reason: str, device: torch.device, folder: Path = plan.GOLDENS, code: Path = CODE, laws: Laws = failing_laws,
    only: str = "*",
) -> list[Regeneration]:  # fmt: skip
    """Judge every file and return those that would change. `InputError` says why recording is refused."""
    refuse(reason, folder, code)
    if device.type not in plan.PLATFORMS:
        rule = f"must be a platform of the plan ({', '.join(plan.PLATFORMS)})"
        raise InputError("device", device.type, rule, "add it to golden/plan.py")
    if not folder.is_dir():
        raise InputError("folder", str(folder), "is not there", "make it first")
    for models in plan.files_of(device.type):
        check_writable(plan.path_of(models, device.type, folder), "folder")
    if wrong := contradicted(device):
        rule = "are contradicted: outside truth outranks any golden"
        raise InputError("recordings", "; ".join(wrong), rule, "mend the code first (golden check FILE)")
    pairs = [pair for models in plan.files_of(device.type) for pair in plan.pairs_of(models, device)]
    with check.one_case_a_core(device) as pool:
        failing = list(chain.from_iterable(pool.map(laws, pairs)))
    if failing:
        rule = "must hold before a golden is recorded"
        raise InputError("laws", "; ".join(failing), rule, "mend the code first")
    return [after for after in regenerate_all(device, folder, only) if after.changes]


def write_golden(after: Regeneration, reason: str, device: torch.device, code: Path = CODE) -> None:
    """Write one file with its provenance. Effects: replaces `after.path` in one step."""
    commit, device_words = git_says(code, "rev-parse", "HEAD"), device_name(device)
    known = {name for origin in after.origins for name in origin.cases}
    anew = tuple(case.id for case in after.cases if case.id not in known)
    groups = [*after.origins, *([plan.Origin(anew, reason.strip(), commit, device_words, versions())] if anew else [])]
    provenance = {
        "device_name": device_words, "commit": commit, "reason": reason.strip(), "kind": KIND, "models": after.models,
        "device": device.type, "dtype": "float32", "tf32": "off", "versions": json.dumps(versions(), sort_keys=True),
        "weights": after.weights, "digest": content_digest(after.tensors, canonical(after.cases)),
        "origins": json.dumps([asdict(group) for group in groups], sort_keys=True),
    }  # fmt: skip
    networks = {case.values["network"]: case.network for case in after.cases if isinstance(case, InfinityStated)}
    provenance |= {"format": INFINITY, "networks": json.dumps(networks)} if networks else {}
    write_whole(after.path, as_bytes(provenance, after.cases, after.tensors))
