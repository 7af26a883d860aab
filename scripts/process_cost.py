"""What a process of its own costs a run of `verify`: its wall time beside that of the same run in the judge's process.

Both sides are whole commands, start and end included, in turns, so that what else the machine does meets both alike.
Status 1 where the ratio of the medians is above `--most`.

    python -m scripts.process_cost                                           # digits on the CPU, 40 images
    python -m scripts.process_cost --models d16-d30 --device cuda --tf32     # random weights of published sizes
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = "harness.speculative.sampler:build_decoder"  # the short name would run in the judge's process
IMAGES = ("--labels", "0:10", "--seeds", "0:4", "--draft-len", "5")
SIDES = {"apart": (), "in the judge": ("--in-process",)}
ENDS = (0, 3)  # statuses of a whole run of a right decoder: holds, and inconclusive


def seconds_of(words: Sequence[str]) -> float:
    """Return the wall time of one command. Raises `RuntimeError` where it ends otherwise than a whole run does."""
    line = [sys.executable, "-P", "-m", "harness", "verify", "--implementation", OWN, *IMAGES, "--quiet", *words]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    begin = time.perf_counter()
    done = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode not in ENDS:
        raise RuntimeError(f"status {done.returncode}: {done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def in_turns(words: Sequence[str], turns: int, within_s: float) -> dict[str, list[float]]:
    """Return the seconds of both sides in so many turns, or as many as fit in a time; which goes first alternates."""
    begin, last, seconds = time.perf_counter(), 0.0, {side: list[float]() for side in SIDES}
    for turn in range(turns):
        since = time.perf_counter()
        if since - begin + last > within_s:
            print(f"{turn} turns of {turns}: another one would take more than the {within_s:g} s of --within")
            break
        for side in list(SIDES) if turn % 2 else list(reversed(SIDES)):
            seconds[side].append(seconds_of([*words, *SIDES[side]]))
        last = time.perf_counter() - since
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and say what was seen; unknown options are those of `verify`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="runs of each side; the medians are compared")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds that all of it may take")
    parser.add_argument("--most", type=float, default=1.05, help="ratio that is allowed")
    given, words = parser.parse_known_args(arguments)
    seconds = in_turns(words, given.turns, given.within)
    for side, each in seconds.items():
        times = ", ".join(f"{one:.1f}" for one in each)
        print(f"{side}: median {statistics.median(each):.2f} s ({times})")
    ratio = statistics.median(seconds["apart"]) / statistics.median(seconds["in the judge"])
    print(f"ratio {ratio:.3f}, at most {given.most:g}")
    sys.exit(ratio > given.most)


if __name__ == "__main__":
    main()
