"""Write this project's goldens, only when asked, with a reason, and while the laws hold.

Promise: nothing is written in CI, on a dirty tree, without a reason, while a law fails, or when nothing changed; what
is written is computed whole first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import check_writable, write_whole
from harness.golden import guard, plan
from harness.golden.cases import RecordedCase, parse
from harness.golden.check import kept_logits, rounds
from harness.golden.cores import one_case_a_core
from harness.golden.digest import content_digest
from harness.golden.networks import networks
from harness.golden.own import DATA, path_of, weights_digest
from harness.golden.store import KIND, Recording, as_bytes, canonical, read
from harness.provenance import versions


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

    def replaces(self, before: Recording | None) -> bool:
        """Return whether the file on disk would change, provenance aside."""
        if before is None or before.metadata.get("weights") != self.weights:
            return True
        return not before.metadata.get("digest") == before.digest() == self.digest()


def fresh(models: str, device: torch.device, folder: Path = DATA) -> tuple[Fresh, Recording | None]:
    """Run every case of one file's plan; return the file as it would be, and as it is."""
    cases = plan.cases(models)
    parsed = [parse(plain, models, device) for plain in cases]
    with one_case_a_core(device) as pool:
        tensors = dict(chain.from_iterable(pool.map(produce, parsed)))
    made = Fresh(path_of(models, device.type, folder), models, cases, tensors, weights_digest(models))
    return made, read(made.path) if made.path.exists() else None


@torch.inference_mode()
def produce(case: RecordedCase) -> list[tuple[str, Tensor]]:
    """Run one case; return what is recorded of it, by full name."""
    trace = case.run()
    assert trace.intermediates is not None
    tensors = {
        "tokens": trace.tokens_BL.to(torch.int16),
        "f_hat": trace.f_hat_BCPP,
        "image": case.models.vae.decode(trace.f_hat_BCPP),
    }
    for si in case.models.pyramid:
        if case.f_hats:
            tensors[f"f_hat/{si}"] = trace.intermediates.f_hat_SBCPP[si]
        if case.logits != "none":
            tensors[f"logits/{si}"] = kept_logits(case, trace, si)
    if case.sampler == "speculative":
        tensors["rounds"] = rounds(trace)
    return [(f"{case.id}/{name}", tensor.cpu().clone()) for name, tensor in tensors.items()]


def changed(
    reason: str,
    device: torch.device,
    folder: Path = DATA,
    code: Path = guard.CODE,
    laws: guard.Laws = guard.failing_laws,
) -> list[tuple[Fresh, Recording | None]]:
    """Compute every file anew and return those that would change, with what they replace.

    Args:
        reason: why, for the reviewer; not empty.
        device: where to run; its class keys the files.
        folder: where they lie.
        code: a folder of the checkout that must be clean.
        laws: lists the laws that fail on a pair.

    Raises:
        InputError: recording is refused.
    """
    guard.refuse(reason, folder, code)
    if device.type not in plan.PLATFORMS:
        known = ", ".join(plan.PLATFORMS)
        raise InputError("device", device.type, f"must be a platform of the plan ({known})", "add it to golden/plan.py")
    if not folder.is_dir():
        raise InputError("folder", str(folder), "is not there", "make it first")
    for models in plan.FILES:
        check_writable(path_of(models, device.type, folder), "folder")
    pairs = {id(p): p for m in plan.FILES for p in (networks(case, m, device) for case in plan.cases(m))}
    with one_case_a_core(device) as pool:
        failing = list(chain.from_iterable(pool.map(laws, pairs.values())))
    if failing:
        rule = "must hold before a golden is recorded"
        raise InputError("laws", "; ".join(failing), rule, "mend the code first")
    files = [fresh(models, device, folder) for models in plan.FILES]
    return [(made, before) for made, before in files if made.replaces(before)]


def write(made: Fresh, reason: str, device: torch.device, code: Path = guard.CODE) -> None:
    """Write one file with its provenance. Effects: replaces `made.path` in one step."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    provenance = {
        "kind": KIND, "models": made.models, "device": device.type, "device_name": name, "dtype": "float32",
        "tf32": "off", "versions": json.dumps(versions(), sort_keys=True), "weights": made.weights,
        "digest": made.digest(), "commit": guard.commit(code), "reason": reason.strip(),
    }  # fmt: skip
    write_whole(made.path, as_bytes(provenance, made.cases, made.tensors))
