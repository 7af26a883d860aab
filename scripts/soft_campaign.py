"""Fresh `more_smooth` cases, recorded under one setting of the processor and checked under others.

    python scripts/soft_campaign.py record FILE COUNT SEED
    ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE python scripts/soft_campaign.py check FILE [PART/PARTS]

`check` prints a line a case, then false alarms and the shares of tokens and of positions of f_hat that were judged.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from harness.golden._cases import CPU, parse
from harness.golden._check import check_case, recorded_cases
from harness.golden._metadata import DrawSettings, GoldenCase
from harness.golden._record import produce
from harness.golden._store import as_bytes, read_recording
from harness.rounding import set_precision

METADATA = {"device": "cpu", "models": "digits", "dtype": "float32", "tf32": "off", "device_name": "campaign"}


def cases(count: int, seed: int) -> list[GoldenCase]:
    """Return cases of all samplers, filters and guidance values; every fifth has f_hat of every scale."""
    rng, listed = random.Random(seed), []
    for i in range(count):
        labels = tuple(rng.randrange(11) for _ in range(rng.choice([1, 2])))
        drawing = DrawSettings(
            1000 * seed + i, cfg=rng.choice([0.0, 1.0, 1.5, 1.5, 3.0, 5.0]), top_k=rng.choice([0, 0, 0, 20, 100]),
            top_p=rng.choice([0.0, 0.0, 0.0, 0.8, 0.95]), more_smooth=True,
        )  # fmt: skip
        case = GoldenCase(f"soft-{i:03d}", "sequential", labels, drawing, deep=i % 5 == 0)
        entry, sd_mask = rng.choice([0, 1, 3, 6, 8, 10]), rng.randrange(6)
        handed = replace(case, sampler="test3", entry_num=entry, sd_mask=sd_mask)
        plain = replace(case, model=rng.choice(["draft", "target", "target"]))
        listed.append(rng.choice([handed, plain]))
    return listed


def record(path: Path, count: int, seed: int) -> None:
    """Write a recording of fresh cases."""
    listed = cases(count, seed)
    tensors = dict(pair for case in listed for pair in produce(parse(case, "digits", CPU)))
    path.write_bytes(as_bytes(METADATA, listed, tensors))


def check(path: Path, part: int, parts: int) -> None:
    """Judge every `parts`-th case of a recording, from the one with number `part`."""
    recording, found = read_recording(path), []
    for case in recorded_cases(recording, CPU)[part::parts]:
        result = check_case(case, recording)
        found.append(result)
        counts = (
            f"{result.identical} identical, {len(result.ties)} ties, {result.not_judged} of {result.draws} not judged"
        )
        maps = f"{result.map_not_judged} of {result.map_positions} of f_hat not judged, off by {result.delta_f_hat:.1e}"
        print(case.id, result.verdict, counts, maps, *map(str, result.defects[:2]), sep="; ", flush=True)
    tokens = [1 - result.not_judged / result.draws for result in found]
    maps = [1 - result.map_not_judged / max(1, result.map_positions) for result in found]
    alarms = [result.id for result in found if result.defects]
    judged = f"judged: tokens median {median(tokens):.1%} least {min(tokens):.1%}, f_hat median {median(maps):.1%}"
    print(f"{torch.backends.cpu.get_cpu_capability()}: {len(alarms)} false alarms in {len(found)}; {judged}", *alarms)


if __name__ == "__main__":
    set_precision(False)
    torch.set_num_threads(1)
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        which, _, of = (sys.argv[3] if len(sys.argv) > 3 else "0/1").partition("/")
        check(Path(sys.argv[2]), int(which), int(of))
