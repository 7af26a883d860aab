"""Files of recorded tensors: one reader for the published format and for this project's own.

Promise: a file is read whole, or it is refused in one line. A digest depends on names, dtypes, shapes and bytes alone,
not on the order of the set or on a file's layout. A recording of another platform class, another precision, or of a
generator that draws other numbers than the one here is UNVERIFIED with the reason; never is the nearest one compared.

Source: design §6; the recordings' README.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from harness.content import read_safetensors
from harness.errors import InputError
from harness.files import check_readable
from harness.golden._infinity import FORMAT as INFINITY
from harness.golden._infinity import AnyStated, InfinityStated
from harness.golden._metadata import REMEDY, GoldenCase


def content_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of tensors, sorted by name, and of a text that belongs to them."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


FORMAT = "1"
MOST_BYTES = 2**30  # the largest recording has 9 MB; a header that promises more than the file holds is refused, too
KIND = "golden"  # metadata `kind` of this project's own; the published format has none
NAME = "golden"  # of a file, in a message
SAMPLERS = "pass a recording of samplers (encoder and published-sizes recordings are not judged here)"


@dataclass(frozen=True)
class Recording:
    path: Path  # where it lies
    metadata: Mapping[str, str]  # strings, `cases` left out
    cases: tuple[AnyStated, ...]  # what was asked for
    tensors: Mapping[str, Tensor]  # by full name, ID/tokens and so on

    @property
    def own(self) -> bool:
        return self.metadata.get("kind") == KIND

    @property
    def platform(self) -> str:
        return self.metadata["device"]

    def of(self, case_id: str) -> dict[str, Tensor]:
        """Return the tensors of one case, by the name after ``ID/``."""
        prefix = f"{case_id}/"
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def strays(self) -> list[str]:
        """Return the names that belong to no case."""
        prefixes = tuple(f"{case.id}/" for case in self.cases)
        return sorted(name for name in self.tensors if not name.startswith(prefixes))

    def digest(self) -> str:
        """Return the content digest of tensors and cases; provenance is no part of it."""
        return content_digest(self.tensors, canonical(self.cases))


def canonical(cases: Sequence[AnyStated]) -> str:
    return json.dumps([case.as_values() for case in cases], sort_keys=True, separators=(",", ":"))


def read_recording(path: Path) -> Recording:
    """Read a file. Raises `InputError` for one of anything else, or with a case that nobody understands."""
    check_readable(path, NAME, "record it, or restore it from version control")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise _no_recording(path, f"has {size} bytes, more than the {MOST_BYTES} of any recording", SAMPLERS)
    metadata, tensors = read_safetensors(path, NAME, "pass a file of golden record")
    if metadata.get("format") not in (FORMAT, INFINITY):
        rule = f"format version must be {FORMAT}, not {metadata.get('format')}"
        raise _no_recording(path, rule, "use the harness version that wrote it")
    of_infinity = partial(InfinityStated.from_values, networks=metadata.get("networks", "{}"))
    read: Callable[..., AnyStated] = GoldenCase.from_values if metadata["format"] == FORMAT else of_infinity
    cases = tuple(map(read, _listed(metadata.pop("cases", None), path)))
    if not metadata.get("device"):
        raise _no_recording(path, "metadata must name the device", REMEDY)
    return Recording(path, metadata, cases, tensors)


def _listed(text: str | None, path: Path) -> list[dict[str, Any]]:
    if text is None:
        raise _no_recording(path, "metadata has no cases", SAMPLERS)
    try:
        cases: list[dict[str, Any]] = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_recording(path, "metadata cases are not JSON", REMEDY) from None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise _no_recording(path, "metadata cases must be a list of objects", REMEDY)
    if not cases:
        raise _no_recording(path, "holds zero cases: nothing could be compared", SAMPLERS)
    if not all(isinstance(case.get("id"), str) and case["id"] for case in cases):
        raise _no_recording(path, "every case must have an id", REMEDY)
    return cases


def _no_recording(path: Path, rule: str, remedy: str) -> InputError:
    return InputError(NAME, str(path), rule, remedy)


def as_bytes(metadata: Mapping[str, str], cases: Sequence[AnyStated], tensors: Mapping[str, Tensor]) -> bytes:
    whole = {"format": FORMAT, **metadata, "cases": canonical(cases)}
    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)}, metadata=whole)
    return content


# A CUDA generator's numbers depend on the launch grid, so on the number of multiprocessors: a probe must be larger than
# one grid (132 multiprocessors · 2048 threads). Numbers drawn with seed 0, every 2^17-th.
PROBE, STEP = 2**21, 2**17
# The logarithm that makes an exponential number may differ by an ulp between processors; another stream differs much.
PROBE_TOLERANCE = 1e-4
GENERATORS: dict[str, tuple[float, ...]] = {
    "cpu": (
        3.508326, 0.383564, 1.299690, 2.089565, 0.318601, 0.457038, 0.674067, 0.141105,
        0.789668, 1.934182, 0.859956, 1.851389, 0.404168, 0.768247, 2.536858, 0.815972,
    ),
    "cuda": (  # NVIDIA H200
        0.918677, 1.530842, 0.231286, 0.012668, 1.183342, 0.492712, 0.350267, 1.396694,
        0.603170, 0.360105, 0.782868, 0.178262, 0.215079, 1.413700, 0.519997, 0.152155,
    ),
}  # fmt: skip


def unverified(recording: Recording, device: torch.device) -> str:
    """Return why a recording cannot be judged on `device`, by the metadata of both; empty when it can."""
    name = recording.metadata.get("device_name", "no name")
    if recording.platform != device.type:
        return f"recorded on {recording.platform} ({name}), whose generator draws other numbers than {device.type}"
    dtype, tf32 = recording.metadata.get("dtype", "float32"), recording.metadata.get("tf32", "off")
    if (dtype, tf32) != ("float32", "off"):
        return f"recorded in {dtype} with TF32 {tf32}; float32 with TF32 off is what runs here"
    if not same_generator(device):
        return f"the generator of this {device.type} draws other numbers than that of the recording ({name})"
    return ""


def same_generator(device: torch.device, known: Sequence[float] | None = None) -> bool:
    """Return whether the device's generator draws these numbers; None: those that recordings were made with."""
    known = GENERATORS.get(device.type, ()) if known is None else known
    is_close = partial(math.isclose, rel_tol=PROBE_TOLERANCE)
    return len(known) == PROBE // STEP and all(map(is_close, generator_probe(device), known))


@cache
def generator_probe(device: torch.device) -> tuple[float, ...]:
    """Return sixteen numbers of a large draw with seed 0."""
    generator = torch.Generator(device=device).manual_seed(0)
    E_n = torch.empty(PROBE, device=device).exponential_(1, generator=generator)
    return tuple(E_n[::STEP].tolist())
