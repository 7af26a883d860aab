"""Write this project's goldens, only when asked, with a reason, and while the laws hold.

Promise: nothing is written in CI, on a dirty tree, without a reason, while a law fails, or when nothing changed.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.budget import calibrate
from harness.differential import judge, new_noise, run
from harness.errors import InputError
from harness.files import check_writable, write_whole
from harness.golden import plan
from harness.golden.cases import Case, networks, parse
from harness.golden.check import kept_logits, rounds
from harness.golden.digest import content_digest
from harness.golden.store import KIND, Recording, as_bytes, canonical, read
from harness.implementations import Settings, speculative
from harness.models.pair import ModelPair
from harness.noise import SeededNoise
from harness.reference import cachefree, handoff, sequential
from harness.reference.handoff import HandOff
from harness.report.as_json import versions
from harness.request import Request
from harness.trace import Trace

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Fresh:
    """A file as this code would write it now."""

    path: Path
    models: str
    cases: tuple[dict[str, Any], ...]
    tensors: dict[str, Tensor]
    weights: str

    def digest(self) -> str:
        """Return the content digest, comparable with `Recording.digest`."""
        return content_digest(self.tensors, canonical(self.cases))


def paths(platform: str, folder: Path = DATA) -> list[Path]:
    """Return the files of one platform class; a missing one is not skipped, reading it fails."""
    return [folder / f"{stem}-{platform}.safetensors" for stem in plan.FILES.values()]


def stale(recording: Recording) -> list[str]:
    """List in what an own file differs from the plan, its own digest and the weights of today."""
    models = recording.metadata.get("models", "")
    if models not in plan.FILES:
        return [f"models {models} are not in the plan"]
    expected = {case["id"]: json.loads(canonical((case,))) for case in plan.cases(models)}
    actual = {case["id"]: [case] for case in recording.cases}
    found = [f"case {name} is missing" for name in expected.keys() - actual.keys()]
    found += [f"case {name} is not in the plan" for name in actual.keys() - expected.keys()]
    both = expected.keys() & actual.keys()
    found += [
        f"case {name} is stale: its settings are not the plan's" for name in both if expected[name] != actual[name]
    ]
    if recording.metadata.get("digest") != recording.digest():
        found.append("content digest differs: the file was changed by hand")
    if not found and recording.metadata.get("weights") != weights_digest(models, recording.cases):
        found.append("weights digest differs: recorded with other weights")
    if not recording.metadata.get("reason", "").strip():
        found.append("provenance lacks the reason")
    return sorted(found)


def weights_digest(models: str, cases: tuple[dict[str, Any], ...]) -> str:
    """Return the digest of all weights that the cases use."""
    pairs = {id(pair): pair for pair in (networks(case, models) for case in cases)}
    tensors: dict[str, Tensor] = {}
    for number, pair in enumerate(pairs.values()):
        for word, weights in (
            ("draft", pair.draft.weights),
            ("target", pair.target.weights),
            ("vae", pair.vae.weights),
        ):
            tensors |= {f"{number}.{word}.{name}": tensor for name, tensor in weights.items()}
    return content_digest(tensors)


@torch.inference_mode()
def fresh(models: str, device: torch.device, folder: Path = DATA) -> Fresh:
    """Run every case of one file's plan."""
    cases = plan.cases(models)
    tensors: dict[str, Tensor] = {}
    for plain in cases:
        case = parse(plain, models, device)
        tensors |= {f"{case.id}/{name}": t.cpu().clone() for name, t in produce(case, case.run()).items()}
    path = folder / f"{plan.FILES[models]}-{device.type}.safetensors"
    return Fresh(path, models, cases, tensors, weights_digest(models, cases))


def produce(case: Case, trace: Trace) -> dict[str, Tensor]:
    """Return what is recorded of one decode."""
    pyramid = case.models.pyramid
    assert trace.intermediates is not None
    tensors = {
        "tokens": trace.tokens_BL.to(torch.int16),
        "f_hat": trace.f_hat_BCPP,
        "image": case.models.vae.decode(trace.f_hat_BCPP),
    }
    for si in pyramid:
        if case.f_hats:
            tensors[f"f_hat/{si}"] = trace.intermediates.f_hat_SBCPP[si]
        if case.logits != "none":
            tensors[f"logits/{si}"] = kept_logits(case, trace, si)
    if case.sampler == "speculative":
        tensors["rounds"] = rounds(trace)
    return tensors


def refuse(reason: str, root: Path) -> None:
    """Refuse to record without a reason, in CI, or on a dirty tree. Raises `InputError`."""
    if not reason.strip():
        raise InputError("reason", reason, "must say why the goldens change", 'pass --reason "what changed and why"')
    if os.environ.get("CI"):
        raise InputError("CI", os.environ["CI"], "goldens are never recorded in CI", "record on a developer's machine")
    try:
        dirty = _git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        raise InputError("tree", str(root), "is not a git checkout", "record in a checkout of the project") from None
    if dirty:
        rule = f"is dirty ({len(dirty.splitlines())} files differ from the last commit)"
        raise InputError("tree", str(root), rule, "commit first, so that the goldens name the code that made them")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def failing_laws(pair: ModelPair) -> list[str]:
    """List the laws that fail on one pair: cached = cache-free, speculative = sequential, hand-off = its limits."""
    request = Request((0, 1), 7)

    def noise() -> SeededNoise:
        return new_noise(pair, request)

    target = sequential.sample(pair.target, pair.vae, request, noise())
    found = []
    if not torch.equal(cachefree.sample(pair.target, pair.vae, request, noise()), target.tokens_BL):
        found.append("cached decoding = decoding without a cache")
    decoder = speculative(pair, Settings(2))
    decoded = run(decoder, pair, request)
    verdict = judge(pair, request, decoded, target, calibrate(pair, request)) if isinstance(decoded, Trace) else decoded
    if verdict.defects:
        found.append("speculative decoding = sequential decoding")
    for hand_off in (HandOff(0, 3), HandOff(0, 0, "recorded")):
        if not torch.equal(handoff.sample(pair, request, noise(), hand_off).tokens_BL, target.tokens_BL):
            found.append(f"hand-off at entry 0 ({hand_off.mode}, mask {hand_off.sd_mask}) = sequential decoding")
    return found


def record(reason: str, device: torch.device, folder: Path = DATA) -> list[tuple[Fresh, Recording | None]]:
    """Record every file whose content changed.

    Args:
        reason: why, for the reviewer; not empty.
        device: where to run; its class keys the files.
        folder: where they lie.

    Returns:
        What was written, with what it replaced.

    Raises:
        InputError: recording is refused.

    Effects: writes files, after everything has been computed.
    """
    refuse(reason, folder)
    changed = []
    for models in plan.FILES:
        for pair in {id(p): p for p in (networks(case, models) for case in plan.cases(models))}.values():
            if laws := failing_laws(pair.to(device)):
                raise InputError(
                    "laws", "; ".join(laws), "must hold before a golden is recorded", "mend the code first"
                )
        made = fresh(models, device, folder)
        check_writable(made.path, "folder")
        before = read(made.path) if made.path.exists() else None
        if before is None or before.digest() != made.digest() or before.metadata.get("weights") != made.weights:
            changed.append((made, before))
    for made, _ in changed:
        write_whole(made.path, as_bytes(_provenance(made, reason, device), made.cases, made.tensors))
    return changed


def _provenance(made: Fresh, reason: str, device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "kind": KIND, "models": made.models, "device": device.type, "device_name": name, "dtype": "float32",
        "tf32": "off", "versions": json.dumps(versions(), sort_keys=True), "weights": made.weights,
        "digest": made.digest(), "commit": _git(made.path.parent, "rev-parse", "HEAD"), "reason": reason.strip(),
    }  # fmt: skip
