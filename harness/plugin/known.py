"""The file of known failures: what must fail, and why; nobody forgets it there.

Promise: every name in it is a law or a case of this version, and every name has a reason; what passes, does not apply
or cannot be asked is no known failure.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

from harness.errors import InputError, text_of
from harness.files import check_readable
from harness.laws import LAWS
from harness.plugin.digits import design

NAME = "sdvar-known-failures"
EXAMPLE = 'write "masks.future" = "why it fails"'


def read_known(path: Path) -> dict[str, str]:
    """Return law or case -> reason.

    Args:
        path: a TOML file of one flat table.

    Raises:
        InputError: it cannot be read, names no law or case, or gives no reason.
    """
    check_readable(path, NAME, "pass a TOML file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not UTF-8 is a ValueError, too
        raise InputError(NAME, str(path), f"is no TOML ({text_of(error)})", EXAMPLE) from None
    names = {law.id for law in LAWS} | set(design())
    for name, reason in found.items():
        if isinstance(reason, dict):
            raise InputError(NAME, f"{path}: {name}", "is a table, or a name without quotes", EXAMPLE)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]}?" if near else "see pytest --collect-only"
            raise InputError(NAME, f"{path}: {name}", "is no law and no case", remedy)
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(NAME, f"{path}: {name}", "needs a reason", EXAMPLE)
    return dict(found)
