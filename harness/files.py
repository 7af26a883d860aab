"""Files that the harness writes.

Promise: an output path is checked before the work starts, and a file is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.errors import InputError


def check_writable(path: Path | None, name: str) -> None:
    """Refuse an output path that cannot be written.

    Args:
        path: where a file will be written; None is fine.
        name: the option, e.g. ``json``.

    Raises:
        InputError: the folder is not there or not writable, or the path is a folder.
    """
    if path is None:
        return
    remedy = f"pass --{name} FILE in a folder that you can write to"
    if path.is_dir():
        raise InputError(name, str(path), "is a folder, not a file", remedy)
    if not path.parent.is_dir():
        raise InputError(name, str(path), f"folder {path.parent} is not there", remedy)
    if path.exists() and not path.is_file():
        raise InputError(name, str(path), "is no regular file, and would be replaced by one", remedy)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        raise InputError(name, str(path), f"cannot be written ({error.strerror})", remedy) from None


def check_distinct(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that is another output or an input.

    Args:
        outputs: option -> path that will be written.
        inputs: option -> path that will be read.

    Raises:
        InputError: two of them are one file.
    """
    seen = {path.resolve(): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is not None:
            other = seen.setdefault(path.resolve(), name)
            if other != name:
                raise InputError(name, str(path), f"is the file of --{other} too", f"pass another --{name}")


def check_folder(path: Path | None, name: str) -> None:
    """Refuse a folder that files cannot be written into.

    Args:
        path: a folder that is there; None is fine.
        name: the option, e.g. ``save-intermediates``.

    Raises:
        InputError: it is not there, no folder, or not writable.
    """
    if path is None:
        return
    if not path.is_dir():
        raise InputError(name, str(path), "is not a folder", f"make it first, or pass another --{name}")
    check_writable(path / ".probe", name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one, never half of it. Follows a link."""
    path = path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def compact(document: object) -> bytes:
    """Return indented UTF-8 JSON with every list of plain values on one line. NaN is refused."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    # A JSON string holds no raw line break, so only layout is joined.
    text = re.sub(r"\[\s*\n[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
    return (text + "\n").encode()
