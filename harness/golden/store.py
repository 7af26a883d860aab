"""Files of recorded tensors: one reader for the published format and for this project's own.

Promise: a file is read whole and its frame is checked (format version, cases, device), or it is refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from harness.errors import InputError, text_of
from harness.files import check_readable
from harness.golden.digest import content_digest

FORMAT = "1"
MOST_BYTES = 2**30  # the largest recording has 9 MB; a header that promises more than the file holds is refused, too
KIND = "golden"  # metadata `kind` of this project's own; the published format has none


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
    check_readable(path, "golden", "record it, or restore it from version control")
    if path.stat().st_size > MOST_BYTES:
        rule = f"has {path.stat().st_size} bytes, more than the {MOST_BYTES} of any recording"
        raise InputError("golden", str(path), rule, "pass a recording of samplers")
    try:
        with safe_open(path, "pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a mapping
    except Exception as error:  # whatever the bytes of a damaged file lead to
        reason = text_of(error).splitlines()[0][:120]
        rule = f"cannot be read ({reason})"
        raise InputError("golden", str(path), rule, "the file may be truncated; copy it again") from None
    if metadata.get("format") != FORMAT:
        rule = f"format version must be {FORMAT}, not {metadata.get('format')}"
        raise InputError("golden", str(path), rule, "use the harness version that wrote it")
    cases = _cases(metadata.pop("cases", None), path)
    if not metadata.get("device"):
        raise InputError("golden", str(path), "metadata must name the device", "record it again")
    return Recording(path, metadata, cases, tensors)


def _cases(text: str | None, path: Path) -> tuple[dict[str, Any], ...]:
    remedy = "pass a recording of samplers (encoder and published-sizes recordings are not judged here)"
    if text is None:
        raise InputError("golden", str(path), "metadata has no cases", remedy)
    try:
        cases = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("golden", str(path), "metadata cases are not JSON", "record it again") from None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise InputError("golden", str(path), "metadata cases must be a list of objects", "record it again")
    if not cases:
        raise InputError("golden", str(path), "holds zero cases: nothing could be compared", remedy)
    if not all(isinstance(case.get("id"), str) and case["id"] for case in cases):
        raise InputError("golden", str(path), "every case must have an id", "record it again")
    return tuple(cases)


def as_bytes(metadata: Mapping[str, str], cases: tuple[dict[str, Any], ...], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a file's content."""
    whole = {"format": FORMAT, **metadata, "cases": canonical(cases)}
    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)}, metadata=whole)
    return content
