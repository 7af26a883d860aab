"""`sdvar-harness evidence`: are the tokens in these files drawn from the target's law?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import DRAWN, JUDGED, WRITTEN, Networks
from harness.commands.records import Group, Option, command
from harness.content import read_safetensors
from harness.errors import InputError
from harness.files import check_outputs, compact

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, LABELS = "tokens", "labels"


class Asked(Group, panel=WRITTEN):
    """Which tokens, what they should be drawn by, and what is kept."""

    file: Annotated[list[Path], Option("Safetensors files of tokens and labels, as of sample --tokens.", argument=True)]
    cfg: options.Cfg = 1.5
    top_k: options.TopK = 0
    top_p: options.TopP = 0.0
    alpha: Annotated[float, Option("Chance that a right decoder is accused.", rare=True, panel=JUDGED)] = 1e-5
    batch: Annotated[int, Option("Images that are looked at together.", rare=True, panel=DRAWN)] = 8
    state: Annotated[Path | None, Option("Go on from this file with other images, and keep what is proved.")] = None
    json: options.Json = None
    verbose: Annotated[bool, Option("Show every alternative, and how many images find it.", rare=True)] = False


@command
def evidence(networks: Networks, asked: Asked) -> None:
    """Test tokens by bets against the target's likelihood: DEFECT, CONSISTENT, or how many images would decide.

    Exit status: 0 a wrong law would have been found, 1 the tokens follow another one, 2 bad input, 3 too few images.
    """
    from harness.commands._inputs import classes_of, load_models
    from harness.protocol import Request
    from harness.report import plain_console, say, say_after, write_asked
    from harness.runs import LikelihoodTest

    for n, file in enumerate(asked.file):
        if os.path.realpath(file) in map(os.path.realpath, asked.file[:n]):
            raise InputError("file", str(file), "is named twice: no image may count twice", "name it once")
    outputs, inputs = {"json": asked.json, "state": asked.state}, {f"file {n}": f for n, f in enumerate(asked.file)}
    paths = {name: path for name, path in check_outputs(outputs, inputs).items() if name != "state"}
    if asked.batch < 1:
        raise InputError("batch", asked.batch, "must be at least 1", "drop it")
    pair = load_models(networks, networks.mode)
    classes_of(pair)
    request = pair.conditioned(Request((0,), cfg=asked.cfg, top_k=asked.top_k, top_p=asked.top_p))
    batches = [batch for file in asked.file for batch in read_tokens(file)]
    test = LikelihoodTest(pair, request, alpha=asked.alpha)
    for tokens_BL, labels in batches:
        test.check(tokens_BL, labels)  # all of it before any of it counts
    test = LikelihoodTest(pair, request, alpha=asked.alpha, file=asked.state)
    for tokens_BL, labels in batches:
        for first in range(0, len(labels), asked.batch):
            test.take(tokens_BL[first : first + asked.batch], labels[first : first + asked.batch])
    console, verdict = plain_console(), test.verdict
    say(console, str(test).removeprefix(f"{verdict.value}: "), verdict.value)
    if asked.verbose:
        for words, images in sorted(test.images_to_find().items(), key=lambda each: each[1]):
            say(console, f"  {images:g} images are needed to notice if {words}")
    say_after(console, "evidence", verdict.exit_status, quiet=False)
    write_asked(paths, json=lambda: compact(test.as_dict()))
    raise typer.Exit(verdict.exit_status)


def read_tokens(file: Path) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield the tensors ``…tokens`` and ``…labels`` of every batch in a file. Raises `InputError`."""
    import torch

    remedy = "write one with sdvar-harness sample --tokens FILE"
    _, tensors = read_safetensors(file, "file", remedy)
    names = [name for name in sorted(tensors) if name.rpartition("/")[2] == TOKENS]
    if not names:
        raise InputError("file", str(file), "holds no tensor named tokens", remedy)
    for name in names:
        labels = name.removesuffix(TOKENS) + LABELS
        if labels not in tensors:
            raise InputError("file", f"{file} ({name})", f"has no {labels} beside it", remedy)
        labels_B = tensors[labels]
        odd = labels_B.dtype.is_floating_point or labels_B.dtype.is_complex or labels_B.dtype == torch.bool
        if labels_B.ndim != 1 or odd:
            raise InputError("file", f"{file} ({name})", "must have a list of integers as labels", remedy)
        yield tensors[name], labels_B.tolist()
