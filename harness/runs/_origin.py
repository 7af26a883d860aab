"""Whose file is it? A file of somebody else's may name code; whether that runs here is for whoever reads it to say.

Promise: a run file that this user wrote on this machine is known again, by a mark that nobody else's knowledge suffices
to make for other code. It is no lock: who can read this machine's secrets can make marks.
"""

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from harness.decoders import OWN_DECODER
from harness.errors import InputError

MACHINE = Path("/etc/machine-id")  # known on this machine alone; where it is missing, the address of its network card


def origin_mark(texts: Sequence[str]) -> str:
    """Return the mark of this user and this machine on what a file says that it is of."""
    try:
        secret = MACHINE.read_bytes().strip()
    except OSError:
        secret = b""
    mark = hashlib.blake2b(key=secret[:64] or uuid.getnode().to_bytes(8, "big"), digest_size=16)
    for text in (str(os.getuid()), *texts):
        mark.update(f"{len(text)} {text};".encode(errors="surrogatepass"))
    return mark.hexdigest()


def check_trusted(path: Path, named: Sequence[tuple[str, str]], given: Sequence[Path | None]) -> None:
    """Refuse to run what somebody else's file names. Raises `InputError` where that is code, and not the harness's.

    `named` are factory and checkout of the decoder, and of the one in the reference's place; `given` the checkouts that
    the command line named for them: those are its user's own choice.
    """
    foreign = []
    for (factory, checkout), own in zip(named, given, strict=False):
        if factory != OWN_DECODER and not factory.startswith("published:"):
            foreign.append(factory)
        if checkout and own is None:
            foreign.append(f"checkout {checkout}")
    if foreign:
        rule = f"comes from elsewhere, and names code that would run here: {', '.join(foreign)}"
        raise InputError("file", str(path), rule, "look at that code, and pass --trust")
