"""Runs to make pages of, without networks of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from harness.decoders._runner import Terms
from harness.judge._verdict import Divergence, Judgement
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Round
from harness.protocol.pyramid import PATCH_NUMS_256, ScalePyramid
from harness.report.html._run import run_page, seen_in
from harness.runs._decodes import Decodes, recorded_result, verify_decodes
from harness.runs._plan import Plan
from harness.runs._records import Counts, JudgedRow
from harness.runs._result import Verification
from harness.runs._runfile import Kept, RunFile, RunFileOptions
from harness.runs.pictures import Picture, as_png
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
HERE = Terms(in_process=True)
SCRIPT = "<script>alert(1)</script>"


def run(path: Path, factory=build_decoder, policy: str = "coupled", models=MODELS, **settings) -> Verification:
    plan = Plan.of([Settings(2, policy=policy, **settings)], [Request((0, 1), seed) for seed in range(2)])
    return verify_decodes(models, Decodes(factory, plan, HERE), store=RunFileOptions(path, recipe={}))


def page_of(path: Path) -> bytes:
    result = recorded_result(path)
    return run_page(result, seen_in(path, result))


class Loud:
    """A decoder that shouts markup."""

    contract = "token-identical"

    def decode(self, request, noise):
        raise RuntimeError(f"{SCRIPT}<img src=x onerror=alert(2)>\x1b[31m \udcff\x00 & \u202eend")


def noise(side: int, seed: int) -> bytes:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return as_png(Image.fromarray(pixels.numpy()))


def large(path: Path, kept: Kept, batches: int, batch: int, side: int) -> None:
    """Write a run of many wrong images, each with a hundred records and a picture of noise."""
    L = ScalePyramid(PATCH_NUMS_256).L
    plan = Plan.of([Settings(2)], [Request((0,) * batch, seed) for seed in range(batches)])
    networks = replace(kept.record.networks, patch_nums=PATCH_NUMS_256)
    file = RunFile.create(path, Kept(replace(kept.record, networks=networks), plan))
    for task in plan.tasks:
        found = [
            Divergence("positions", "moved", task.number, image, 0, 4, 30 + k, 3, 4, 5.0, 1e-4, 1.0, 0.1)
            for image in range(batch)
            for k in range(20)
        ]
        judgement = Judgement(batch, batch * L, batch * (L - 20), wrong_tokens=batch * 20, defects=found)
        rounds = [Round(si, 2, 0, True, False, 0, 1, 0, 9) for si in range(10)]
        shown = [
            Picture(task.number, 0, row, 1e6 + row, task.number, row, 0, [1] * L, [2] * L, "x" * L, rounds,
                    decoder=noise(side, row), reference=noise(side, 99 + row))
            for row in range(min(batch, 40)) if task.number < 2
        ]  # fmt: skip
        scales = {"differ": [10 * batch] * 10, "drafted": [batch] * 10, "kept": [0] * 10, "corrected": [batch] * 10}
        counts = Counts([10] * batch, [L] * batch, [[0] * 10] * batch, scales=scales)
        file.write([JudgedRow(task.number, 0, judgement, counts, 1.0, 1.0)], pictures=shown)
    file.close()
