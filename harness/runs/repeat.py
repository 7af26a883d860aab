"""The one command line that shows one divergence alone.

Promise: its words are those of `sdvar-harness verify`, quoted for a shell; the image it names meets the same numbers.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from harness.decoders.terms import Other
from harness.judge.verdict import Divergence
from harness.protocol.decoder import Settings
from harness.protocol.request import Request

USUAL = {"cfg": 1.5, "top_k": 0, "top_p": 0.0}


def repeat_line(
    recipe: Mapping[str, str],
    settings: Settings,
    request: Request,
    found: Divergence,
    draft_noise: float | None = None,
    against: Other | None = None,
) -> str:
    """Return the command line.

    Args:
        recipe: options of the run that are not the usual ones; an empty text is a flag.
        settings: the decoder's.
        request: the batch that held the image.
        found: names the image; the images of its seed where it names none.
        draft_noise: of the draft that the setting met, where a design chose it (`Plan.draft_of`).
        against: the decoder in the reference's place, with its one setting.
    """
    words = ["sdvar-harness", "verify"]
    for name, text in recipe.items():
        words += [f"--{name.replace('_', '-')}", *([text] if text else [])]
    words += _options("", settings)
    words += ["--against", against.name, *_options("against-", against.settings[0])] if against else []
    words += ["--draft-noise", f"{draft_noise!r}"] if draft_noise is not None else []
    words += _drawn(request, found)
    for name, usual in USUAL.items():
        if getattr(request, name) != usual:
            words += [f"--{name.replace('_', '-')}", f"{getattr(request, name):g}"]
    words += ["--draft-len", str(settings.draft_len)] if settings.draft_len != "" else []
    words += ["--bonus"] if settings.bonus else []
    policy = settings.policy or (against.settings[0].policy if against else "")  # published code has none
    words += ["--policy", policy] if policy not in ("", "coupled") else []
    return shlex.join(words)


def _options(side: str, settings: Settings) -> list[str]:
    """Return the options of a factory; its checkout has a word of its own."""
    words = []
    for name, value in settings.options:
        words += [f"--{side}checkout", value] if name == "checkout" else [f"--{side}option", f"{name}={value}"]
    return words


def _drawn(request: Request, found: Divergence) -> list[str]:
    """Return seeds, labels and addresses: one image, or all those of a seed where they stand or fall together."""
    labels, addresses = request.labels or (), request.addresses
    alone = request.order == "image" and (found.seed, found.image) in addresses
    rows = [
        b for b, (seed, image) in enumerate(addresses) if seed == found.seed and (not alone or image == found.image)
    ]
    rows = rows[:1] if alone else rows
    words = ["--seeds", str(found.seed), "--labels", ",".join(str(labels[b]) for b in rows)]
    ids = [addresses[b][1] for b in rows]
    if ids != list(range(len(ids))):
        words += ["--images", ",".join(map(str, ids))]
    return words + (["--noise", "batch"] if request.order == "batch" else [])
