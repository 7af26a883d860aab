"""Write this project's goldens, only when asked, with a reason, and while recordings and laws hold.

Promise: nothing is written in CI, on a dirty tree, without a reason, while a recording is contradicted or a law fails,
or when nothing changed; a case that did not change keeps its bytes and its provenance. A case has changed if what is on
disk no longer holds against this code; what rounding does on another machine is no change.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import check_writable, write_whole
from harness.golden import _guard as guard
from harness.golden import _plan as plan
from harness.golden._case_results import NOT_RECORDED, CaseResult
from harness.golden._cases import CPU, RecordedCase, parse, recorded_networks
from harness.golden._check import check_case, one_case_a_core, rounds
from harness.golden._metadata import GoldenCase
from harness.golden._platform import unverified
from harness.golden._store import KIND, Recording, as_bytes, canonical, content_digest, read_recording
from harness.judge import differences, largest_difference
from harness.provenance import device_name, versions

WHOLE_FILE = "(file)"  # the id of a change that concerns a whole file


@dataclass(frozen=True)
class Change:
    """How one case changes."""

    id: str  # of the case; `WHOLE_FILE` for a whole file
    # added, removed, settings, form (other tensors, shapes or dtypes), values; of a file: weights, changed by hand
    what: str
    first_scale: int = -1  # of the first token that changes; -1: no token does
    tokens: int = 0  # how many change
    f_hat: float = NOT_RECORDED  # largest difference; NaN where not compared
    image: float = NOT_RECORDED  # largest difference; NaN where not compared


def kind_of_change(planned: GoldenCase, before: Recording, judged: CaseResult | None) -> str:
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


def change(planned: GoldenCase, models: str, what: str, new: dict[str, Tensor], old: dict[str, Tensor]) -> Change:
    """Measure one change; `new` and `old` are the tensors of the case, by the name after its id."""
    if what == "added" or any(difference.kind != "value" for difference in differences(new, old)):
        return Change(planned.id, what)
    pyramid = recorded_networks(planned, models, CPU).pyramid
    positions = torch.nonzero(new["tokens"] != old["tokens"])[:, 1].tolist()
    first = pyramid.level_of(min(positions)) if positions else -1
    f_hat, image = (largest_difference(new[key], old[key]) for key in ("f_hat", "image"))
    return Change(planned.id, what, first, len(positions), f_hat, image)


@dataclass(frozen=True)
class Regeneration:
    """A file as this code would write it now."""

    path: Path  # where
    models: str  # its group of networks
    cases: tuple[GoldenCase, ...]  # of the plan; what is not asked for stays as it is on disk
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
    kinds = _kinds([case for case in planned if fnmatchcase(case.id, only)], models, before, device)
    if by_hand:
        kinds = {name: kind or "values" for name, kind in kinds.items()}
    stays = {name for name in on_disk if not fnmatchcase(name, only) or kinds.get(name) == ""}
    anew = [case for case in planned if kinds.get(case.id)]
    listed = [case if case.id in kinds else on_disk.get(case.id) for case in planned]
    listed += [on_disk[name] for name in on_disk if name in stays and name not in ids]
    tensors = {name: tensor for name, tensor in before.tensors.items() if name.split("/")[0] in stays}
    with one_case_a_core(device) as pool:
        produced = pool.map(produce, [parse(case, models, device) for case in anew])
        tensors |= dict(chain.from_iterable(produced))
    cases = tuple(case for case in listed if isinstance(case, GoldenCase))
    after = Recording(path, {}, cases, tensors)
    changes = [Change(name, "removed") for name in sorted(on_disk.keys() - ids - stays)]
    changes += [change(case, models, kinds[case.id], after.of(case.id), before.of(case.id)) for case in anew]
    changes += [Change(WHOLE_FILE, "changed by hand")] if by_hand else []
    changes += [Change(WHOLE_FILE, "weights")] if before.cases and before.metadata.get("weights") != weights else []
    return Regeneration(path, models, cases, tensors, weights, tuple(changes), plan.origins(before, stays))


def _kinds(planned: Sequence[GoldenCase], models: str, before: Recording, device: torch.device) -> dict[str, str]:
    """Return what has become of every planned case, by id; those of unchanged settings are judged."""
    unchanged = [parse(case, models, device) for case in planned if case in before.cases]
    with one_case_a_core(device) as pool:
        judged = {result.id: result for result in pool.map(lambda case: check_case(case, before), unchanged)}
    return {case.id: kind_of_change(case, before, judged.get(case.id)) for case in planned}


@torch.inference_mode()
def produce(case: RecordedCase) -> list[tuple[str, Tensor]]:
    """Run one case; return what is recorded of it, by full name."""
    trace = case.run()
    tensors = {
        "tokens": trace.tokens_BL.to(torch.int16),
        "f_hat": trace.f_hat_BCPP,
        "image": case.models.vae.decode(trace.f_hat_BCPP),
    }
    for si in case.models.pyramid:
        if case.f_hats:
            tensors[f"f_hat/{si}"] = trace.shown.f_hat_SBCPP[si]
        if case.logits != "none":
            tensors[f"logits/{si}"] = trace.shown.guided_BLV[:, case.logits_at(si)]
    if case.sampler == "speculative":
        tensors["rounds"] = rounds(trace)
    return [(f"{case.id}/{name}", tensor.cpu().clone()) for name, tensor in tensors.items()]


def regenerate_all(device: torch.device, folder: Path = plan.GOLDENS, only: str = "*") -> list[Regeneration]:
    """Return every file of the plan as this code would write it now; arguments and errors as of `regenerate`."""
    return [regenerate(models, device, folder, only) for models in plan.FILES]


def changed_goldens(
    reason: str,
    device: torch.device,
    folder: Path = plan.GOLDENS,
    code: Path = guard.CODE,
    laws: guard.Laws = guard.failing_laws,
    only: str = "*",
) -> list[Regeneration]:
    """Judge every file and return those that would change. `InputError` says why recording is refused."""
    guard.refuse(reason, folder, code)
    if device.type not in plan.PLATFORMS:
        rule = f"must be a platform of the plan ({', '.join(plan.PLATFORMS)})"
        raise InputError("device", device.type, rule, "add it to golden/plan.py")
    if not folder.is_dir():
        raise InputError("folder", str(folder), "is not there", "make it first")
    for models in plan.FILES:
        check_writable(plan.path_of(models, device.type, folder), "folder")
    if contradicted := guard.contradicted(device):
        rule = "are contradicted: outside truth outranks any golden"
        raise InputError("recordings", "; ".join(contradicted), rule, "mend the code first (golden check FILE)")
    pairs = [pair for models in plan.FILES for pair in plan.pairs_of(models, device)]
    with one_case_a_core(device) as pool:
        failing = list(chain.from_iterable(pool.map(laws, pairs)))
    if failing:
        rule = "must hold before a golden is recorded"
        raise InputError("laws", "; ".join(failing), rule, "mend the code first")
    return [after for after in regenerate_all(device, folder, only) if after.changes]


def write_golden(after: Regeneration, reason: str, device: torch.device, code: Path = guard.CODE) -> None:
    """Write one file with its provenance. Effects: replaces `after.path` in one step."""
    commit, device_words = guard.git_says(code, "rev-parse", "HEAD"), device_name(device)
    known = {name for origin in after.origins for name in origin.cases}
    anew = tuple(case.id for case in after.cases if case.id not in known)
    groups = [*after.origins, *([plan.Origin(anew, reason.strip(), commit, device_words, versions())] if anew else [])]
    provenance = {
        "device_name": device_words, "commit": commit, "reason": reason.strip(), "kind": KIND, "models": after.models,
        "device": device.type, "dtype": "float32", "tf32": "off", "versions": json.dumps(versions(), sort_keys=True),
        "weights": after.weights, "digest": content_digest(after.tensors, canonical(after.cases)),
        "origins": json.dumps([asdict(group) for group in groups], sort_keys=True),
    }  # fmt: skip
    write_whole(after.path, as_bytes(provenance, after.cases, after.tensors))
