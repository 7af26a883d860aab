"""Files that the harness reads and writes.

Promise: what is no regular file is refused unopened, so that no pipe or device can hold a run up; an output is checked
before the work starts, at the path that it has then; and a file is there whole or not at all.
"""

import contextlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import InputError

HUB = "hf://"  # before the address of a file that a hub keeps
ENTRY = "::"  # between a file and the name of what is meant in it
Made = TypeVar("Made")
KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))


def split_source(text: str) -> tuple[str, str]:
    """Return a source's file, folder or address, and what is meant in it (empty: all); what is there means itself."""
    if text.startswith("hf:/") and not text.startswith(HUB):  # as a `Path` keeps an address
        text = HUB + text.removeprefix("hf:/")
    if ENTRY not in text or os.path.lexists(text):
        return text, ""
    place, _, entry = text.rpartition(ENTRY)
    return place, entry


def absolute_source(text: str) -> str:
    """Return a source of weights that means the same in every folder."""
    place, entry = split_source(text)
    whole = place if place.startswith(HUB) else os.path.abspath(place)
    return f"{whole}{ENTRY}{entry}" if entry else whole


def local_file(text: str | None) -> Path | None:
    """Return the path of a source of weights on this machine; None where it is a hub's, or there is none."""
    place = split_source(text)[0] if text else HUB
    return None if place.startswith(HUB) else Path(place)


def check_readable(path: Path, name: str, remedy: str, missing: str = "no such file") -> None:
    """Refuse an input that is not there or no regular file, without opening it. Follows links. Raises `InputError`.

    `name` is what it is to the user, e.g. ``draft``; `missing` the rule that a missing one breaks.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(name, str(path), missing, remedy) from None
    except (OSError, ValueError) as error:
        raise InputError(name, str(path), f"cannot be read ({_reason(error)})", remedy) from None
    if not stat.S_ISREG(mode):
        kind = next((word for is_one, word in KINDS if is_one(mode)), "device")
        raise InputError(name, str(path), f"{missing} (there is a {kind})", remedy)


def check_writable(path: Path, name: str) -> None:
    """Refuse a path for the output of an option, e.g. ``json``, that cannot be written. Raises `InputError`."""
    remedy = f"pass --{name} FILE in a folder that you can write to"
    if str(path).startswith("-"):
        whole = f"pass --{name} FILE, or the whole path of such a file"
        raise InputError(name, str(path), "begins with -, as an option does", whole)
    try:
        rule = _unwritable(path)
    except (OSError, ValueError) as error:
        rule = f"cannot be written ({_reason(error)})"
    if rule:
        raise InputError(name, str(path), rule, remedy)


def _unwritable(path: Path) -> str:
    """Return why a path cannot be written, empty when it can. Raises `OSError` for what the system refuses."""
    for place in (path, Path(os.path.realpath(path))):  # a link is followed: its target's folder must be there too
        if place.is_dir():
            return "is a folder, not a file"
        if not place.parent.is_dir():
            return f"folder {place.parent} is not there"
    there = _status(path)
    if there is not None and not stat.S_ISREG(there.st_mode):
        return "is no regular file, and would be replaced by one"
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".sdvar-"):
        pass
    if there is not None:
        with path.open("ab"):
            pass
    return ""


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file; None of none. Raises `OSError` for a loop of links or a name that is too long."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> dict[str, Path]:
    """Check every output that is asked for; return where it is, whatever becomes the current folder later.

    Both arguments are by option, and so is what is returned. Raises `InputError` for an output that cannot be written,
    or is another one or an input.
    """
    asked = {name: path for name, path in outputs.items() if path is not None}
    for name, path in asked.items():
        check_writable(path, name)
    seen = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    for name, path in asked.items():
        if (other := seen.setdefault(os.path.realpath(path), name)) != name:
            raise InputError(name, str(path), f"is the file of --{other} too", f"pass another --{name}")
    return {name: path.absolute() for name, path in asked.items()}


def check_absent(outputs: Mapping[str, Path], force: bool) -> None:
    """Refuse to replace a file, by option, unless told to. Raises `InputError`."""
    for name, path in outputs.items():
        if not force and os.path.lexists(path):
            raise InputError(name, str(path), "exists already", f"pass --force to replace it, or another --{name}")


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder that is not there, or that files cannot be written into. Raises `InputError`."""
    if not os.path.isdir(path):
        raise InputError(name, str(path), "is not a folder", f"make it first, or pass another --{name}")
    check_writable(path / ".probe", name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one, never half of it. Follows a link.

    The content is on the disk when this returns; a file that is replaced keeps its mode and, where the system lets us,
    its owner. Raises `InputError` where the system refuses; what was there is there still.
    """
    place = Path(os.path.realpath(path))
    try:
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".sdvar-")  # short: the name may be long
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                _take_after(descriptor, place)
                os.fsync(descriptor)
            os.replace(temporary, place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(place.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems sync no folder
            os.fsync(folder)
        os.close(folder)
    except OSError as error:
        rule = f"cannot be written ({_reason(error)})"
        raise InputError("output", str(path), rule, "make room there, or name another file") from None


def _take_after(descriptor: int, path: Path) -> None:
    """Give a new file the mode and owner of the one that it replaces, or those of any new file."""
    old = _status(path)
    if old is None:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        return
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        with contextlib.suppress(PermissionError):  # only root gives a file away
            os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))  # last, since a change of owner may clear bits


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def finite(value: Any) -> Any:
    """Return a value with None for what JSON has no number for, however deep it lies."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compact(document: object) -> bytes:
    """Return indented UTF-8 JSON with every list of plain values on one line. NaN is refused."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    # A JSON string holds no raw line break, so only layout is joined.
    text = re.sub(r"\[\s*\n[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
    return (text + "\n").encode(errors="backslashreplace")  # half of a surrogate pair: \udcff is JSON's spelling too
