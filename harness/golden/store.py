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

from harness.errors import InputError, shortened, text_of
from harness.files import check_readable
from harness.golden.digest import content_digest

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
        raise _refused(path, f"has {size} bytes, more than the {MOST_BYTES} of any recording", SAMPLERS)
    try:
        with safe_open(path, "pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a mapping
    except Exception as error:  # whatever the bytes of a damaged file lead to
        rule = f"cannot be read ({shortened(text_of(error), MOST_REASON)})"
        raise _refused(path, rule, "the file may be truncated; copy it again") from None
    if metadata.get("format") != FORMAT:
        rule = f"format version must be {FORMAT}, not {metadata.get('format')}"
        raise _refused(path, rule, "use the harness version that wrote it")
    cases = _cases(metadata.pop("cases", None), path)
    if not metadata.get("device"):
        raise _refused(path, "metadata must name the device", AGAIN)
    return Recording(path, metadata, cases, tensors)


def _cases(text: str | None, path: Path) -> tuple[dict[str, Any], ...]:
    if text is None:
        raise _refused(path, "metadata has no cases", SAMPLERS)
    try:
        cases = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused(path, "metadata cases are not JSON", AGAIN) from None
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise _refused(path, "metadata cases must be a list of objects", AGAIN)
    if not cases:
        raise _refused(path, "holds zero cases: nothing could be compared", SAMPLERS)
    if not all(isinstance(case.get("id"), str) and case["id"] for case in cases):
        raise _refused(path, "every case must have an id", AGAIN)
    return tuple(cases)


def _refused(path: Path, rule: str, remedy: str) -> InputError:
    return InputError(NAME, str(path), rule, remedy)


def as_bytes(metadata: Mapping[str, str], cases: tuple[dict[str, Any], ...], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a file's content."""
    whole = {"format": FORMAT, **metadata, "cases": canonical(cases)}
    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)}, metadata=whole)
    return content
