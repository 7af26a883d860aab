"""One case as a file that can be sent: what failed, and the numbers it was drawn by.

Promise: a plain safetensors file, whose reading executes nothing; on another class of machine the case meets the
recorded numbers, since generators differ there. Weights do not travel: their digests do.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.errors import InputError
from harness.files import check_readable, write_whole
from harness.judge.verdict import Divergence
from harness.models.pair import ModelPair
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN, RecordedNumbers
from harness.protocol.request import request_of, request_values
from harness.runs.records import (
    NAMES,
    against_of,
    against_values,
    settings_of,
    settings_values,
    to_json,
    unreadable,
)
from harness.runs.replay import KeptCase, unlike

KEY, SCHEMA = "sdvar-bundle", 1
STREAMS = (TOKEN, DRAFT, ACCEPT, CORRECT)
NUMBERS, EXHIBIT = "numbers/", "exhibit/"


def write(case: KeptCase, models: ModelPair, path: Path) -> None:
    """Write a bundle.

    Args:
        case: recorded here, or read from a bundle.
        models: networks, uncut, on a device of the class that it was recorded on.
        path: where to.

    Raises:
        InputError: this machine cannot draw the case's numbers, or the file cannot be written.
    """
    why = unlike(case, models)
    if why:
        raise InputError("bundle", str(path), f"cannot be made here: {why}", "make it where the run was recorded")
    numbers = case.numbers.tensors if case.numbers else _drawn(case, models)
    told = {
        "schema": SCHEMA,
        "about": dict(case.about),
        "settings": settings_values(case.settings, case.draft_noise),
        "request": request_values(case.request),
        "recorded": request_values(case.numbers.request if case.numbers else case.request),
        "found": [getattr(case.found, name) for name in NAMES],
        "scales": case.scales,
        "against": against_values(case.against),
    }
    tensors = {NUMBERS + name: tensor.cpu().contiguous() for name, tensor in numbers.items()}
    tensors |= {EXHIBIT + name: tensor.contiguous() for name, tensor in case.exhibit.items()}
    write_whole(path, save(tensors, {KEY: to_json(told)}))


def _drawn(case: KeptCase, models: ModelPair) -> dict[str, Tensor]:
    noise, found = replace(models, numbers=None).noise(case.request), dict[str, Tensor]()
    for si in range(case.scales or models.pyramid.S):
        for stream in STREAMS:
            read = noise.uniform if stream == ACCEPT else noise.exponential
            numbers = read(si, stream, "bundle")
            found[f"{stream}/{si}"] = numbers[..., None] if stream == ACCEPT else numbers
    return found


def is_bundle(path: Path) -> bool:
    """Tell a bundle from a run file by its first bytes. Raises `InputError` where there is no file."""
    check_readable(path, "file", "pass a file of verify --run, or of replay --bundle")
    with path.open("rb") as stream:
        return stream.read(15) != b"SQLite format 3"


def read(path: Path) -> KeptCase:
    """Read a bundle. Raises `InputError` where it is none, or of another schema."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        if told["schema"] != SCHEMA:
            rule = f"has schema {told['schema']}, and this version reads {SCHEMA}"
            raise InputError("file", str(path), rule, "use the version of the harness that wrote it")
        numbers = {name.removeprefix(NUMBERS): t for name, t in tensors.items() if name.startswith(NUMBERS)}
        settings, draft_noise = settings_of(told["settings"])
        return KeptCase(
            0,
            told["about"],
            settings,
            request_of(told["request"]),
            Divergence(**dict(zip(NAMES, told["found"], strict=True))),
            told["scales"],
            RecordedNumbers(numbers, request_of(told["recorded"])),
            {name.removeprefix(EXHIBIT): t for name, t in tensors.items() if name.startswith(EXHIBIT)},
            draft_noise,
            against_of(told["against"], 0),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise unreadable("file", path, error) from None
