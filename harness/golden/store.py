"""Files of recorded tensors: one reader for the published format and for this project's own, and what they may ask.

Promise: a file is read whole and its frame is checked (format version, cases, device), or it is refused in one line;
sizes far beyond any recording are refused from its text alone, before anything of that size is made. A digest depends
on names, dtypes, shapes and bytes alone, not on the order of the set or on a file's layout.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from harness.errors import InputError, shortened, text_of
from harness.files import check_readable
from harness.models.autoencoder import GROUPS, AutoencoderConfig
from harness.models.network import TransformerConfig
from harness.protocol.pyramid import ScalePyramid

# Largest values of single sizes; the published networks have depth 36, width 2304, 2240 tokens, 10 scales.
MOST = {"V": 2**16, "C": 2**12, "vae_ch": 2**12, "depth": 128, "D": 2**14, "H": 2**10, "classes": 2**16}
MOST |= {"draft_depth": MOST["depth"], "draft_D": MOST["D"], "draft_H": MOST["H"]}
MOST_LISTED = {"patch_nums": (64, 128), "vae_mult": (8, 64)}  # length, largest entry
SWITCHES = ("shared_adaln", "l2_norm")
PHI = re.compile(r"[1-9][0-9]? shared|one a scale")
MOST_TOKENS = 2**13
MOST_NUMBERS = 2**28  # of one tensor, or of all weights of a network: 1 GiB in float32
REMEDY = "record it again"


def check_sizes(case: Mapping[str, Any]) -> None:
    """Refuse single sizes that no recording has.

    Raises:
        InputError: one is too large, or of another kind.
        KeyError: a list, a switch or `phi` is missing; a missing number is met elsewhere.
    """
    for key, most in MOST.items():
        if key in case and not _is_size(case[key], most):
            raise _refused({key: case[key]}, f"must be a whole number in 1..{most}")
    for key, (length, most) in MOST_LISTED.items():
        values = case[key]
        if not isinstance(values, list) or not (1 <= len(values) <= length and all(_is_size(v, most) for v in values)):
            shown = f"{key} of {len(values)} entries" if isinstance(values, list) else f"{key} {values!r}"
            raise _refused(shown, f"must list 1..{length} whole numbers in 1..{most}")
    for key in SWITCHES:
        if type(case[key]) is not bool:
            raise _refused({key: case[key]}, "must be true or false")
    if not isinstance(case["phi"], str) or not PHI.fullmatch(case["phi"]):
        raise InputError("phi", case["phi"], 'must read "N shared" (N in 1..99) or "one a scale"', REMEDY)
    tokens = sum(pn * pn for pn in case["patch_nums"])
    if tokens > MOST_TOKENS:
        raise _refused(f"patch_nums of {tokens} tokens", f"must have at most {MOST_TOKENS}")


def check_fit(transformers: Iterable[TransformerConfig], vae: AutoencoderConfig) -> None:
    """Refuse sizes that are right one by one and make no networks together. Raises `InputError`."""
    for config in transformers:
        if config.D % config.H:
            raise _refused(f"D={config.D} and H={config.H}", "D must be a multiple of H")
    for multiplier in vae.multipliers:
        if vae.ch * multiplier % GROUPS:
            raise _refused(f"vae_ch={vae.ch} times {multiplier}", f"must be a multiple of {GROUPS}")


def _refused(shown: object, rule: str) -> InputError:
    return InputError("sizes", shown, rule, REMEDY)


def _is_size(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def check_weights(numbers: int) -> None:
    """Refuse a network of too many weights. Raises `InputError`."""
    if numbers > MOST_NUMBERS:
        raise _refused(f"{numbers} weights", f"must be at most {MOST_NUMBERS} a network")


def check_batch(images: int, pyramid: ScalePyramid, config: TransformerConfig, downsampling: int) -> None:
    """Refuse a batch whose logits, attention or pixels are too many. Raises `InputError`."""
    side = pyramid.P * downsampling
    numbers = images * max(2 * pyramid.L * config.V, 2 * config.H * pyramid.L**2, 3 * side * side)
    if numbers > MOST_NUMBERS:
        rule = f"must make tensors of at most {MOST_NUMBERS} numbers, not {numbers}"
        raise InputError("images", images, rule, REMEDY)


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
MOST_REASON = 120  # characters of why a file cannot be read: names of tensors are part of it
KIND = "golden"  # metadata `kind` of this project's own; the published format has none
NAME = "golden"  # of a file, in a message
AGAIN = "record it again"
SAMPLERS = "pass a recording of samplers (encoder and published-sizes recordings are not judged here)"


@dataclass(frozen=True)
class Recording:
    """One file.

    Args:
        path: where it lies.
        metadata: strings, `cases` left out.
        cases: one plain dict a case.
        tensors: by full name, ``ID/tokens`` and so on.
    """

    path: Path
    metadata: Mapping[str, str]
    cases: tuple[dict[str, Any], ...]
    tensors: Mapping[str, Tensor]

    @property
    def own(self) -> bool:
        """True for this project's goldens."""
        return self.metadata.get("kind") == KIND

    @property
    def platform(self) -> str:
        """Platform class that it was recorded on, e.g. cpu or cuda."""
        return self.metadata["device"]

    def of(self, case_id: str) -> dict[str, Tensor]:
        """Return the tensors of one case, by the name after ``ID/``."""
        prefix = f"{case_id}/"
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def strays(self) -> list[str]:
        """Return the names that belong to no case."""
        prefixes = tuple(f"{case['id']}/" for case in self.cases)
        return sorted(name for name in self.tensors if not name.startswith(prefixes))

    def digest(self) -> str:
        """Return the content digest of tensors and cases; provenance is no part of it."""
        return content_digest(self.tensors, canonical(self.cases))


def canonical(cases: tuple[dict[str, Any], ...]) -> str:
    """Return the one JSON text of a list of cases."""
    return json.dumps(list(cases), sort_keys=True, separators=(",", ":"))


def read(path: Path) -> Recording:
    """Read a file.

    Raises:
        InputError: missing, no regular file, larger than any recording, truncated, not safetensors, another format
            version, no cases, or no device.
    """
    check_readable(path, NAME, "record it, or restore it from version control")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise _no_recording(path, f"has {size} bytes, more than the {MOST_BYTES} of any recording", SAMPLERS)
    try:
        with safe_open(path, "pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a mapping
    except Exception as error:  # whatever the bytes of a damaged file lead to
        rule = f"cannot be read ({shortened(text_of(error), MOST_REASON)})"
        raise _no_recording(path, rule, "the file may be truncated; copy it again") from None
    if metadata.get("format") != FORMAT:
        rule = f"format version must be {FORMAT}, not {metadata.get('format')}"
        raise _no_recording(path, rule, "use the harness version that wrote it")
    cases = _cases(metadata.pop("cases", None), path)
    if not metadata.get("device"):
        raise _no_recording(path, "metadata must name the device", AGAIN)
    return Recording(path, metadata, cases, tensors)


def _cases(text: str | None, path: Path) -> tuple[dict[str, Any], ...]:
    if text is None:
        raise _no_recording(path, "metadata has no cases", SAMPLERS)
    try:
        cases = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_recording(path, "metadata cases are not JSON", AGAIN) from None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise _no_recording(path, "metadata cases must be a list of objects", AGAIN)
    if not cases:
        raise _no_recording(path, "holds zero cases: nothing could be compared", SAMPLERS)
    if not all(isinstance(case.get("id"), str) and case["id"] for case in cases):
        raise _no_recording(path, "every case must have an id", AGAIN)
    return tuple(cases)


def _no_recording(path: Path, rule: str, remedy: str) -> InputError:
    return InputError(NAME, str(path), rule, remedy)


def as_bytes(metadata: Mapping[str, str], cases: tuple[dict[str, Any], ...], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a file's content."""
    whole = {"format": FORMAT, **metadata, "cases": canonical(cases)}
    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)}, metadata=whole)
    return content
