"""Compare what two checkouts say of five runs on VAR: verdicts, every count, digests of tokens, and processor time.

    python scripts/unchanged.py BEFORE AFTER          # folders of checkouts; --turns 3

Promise: each run is a process of its own on one thread, the two checkouts in turns; of their times the least count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.published.checkout import make

RUNS = ("own decoder", "published code", "contract B", "greedy", "filters")
TIMES = ("seconds", "decode_seconds", "reference_seconds", "wall_seconds", "versions", "run", "alone")
CHILD = """
import hashlib, json, sys, time
import torch
torch.set_num_threads(1)
from harness import Request, Settings, Terms, verify
from harness.decoders import load_factory
from harness.models import load_digits
run, checkout = sys.argv[1:]
policy = {"contract B": "rejection", "greedy": "greedy"}.get(run, "coupled")
setting, name = Settings(3, policy=policy), "harness:build_decoder"
if run == "published code":
    setting, name = Settings("", policy="", options=(("checkout", checkout),)), "published:var"
filters = {"top_k": 100, "top_p": 0.9} if run == "filters" else {}
build, digest = load_factory(name), hashlib.sha256()

def factory(models, settings):
    decoder = build(models, settings)
    decode = decoder.decode
    def noted(request, noise):
        trace = decode(request, noise)
        digest.update(trace.tokens_BL.cpu().numpy().tobytes())
        return trace
    class Noting:
        contract = decoder.contract
        policy = getattr(decoder, "policy", "")
        def decode(self, request, noise):
            return noted(request, noise)
    return Noting()

requests = [Request((0, 4, 7), seed, **filters) for seed in (0, 1)]
models, before = load_digits(), time.process_time()
terms = Terms(in_process=True, sequential=run == "published code")
result = verify(models, factory, setting, requests, lambda: None, terms)
spent = time.process_time() - before
print(json.dumps([digest.hexdigest(), spent, json.loads(result.to_json())]))
"""


def said(tree: Path, run: str, checkout: Path) -> tuple[str, float, dict[str, object]]:
    """Return digest of tokens, seconds of a processor, and the JSON of one run of a checkout, times left out."""
    words = [sys.executable, "-P", "-c", CHILD, run, str(checkout)]
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=os.environ | own, cwd=tree, capture_output=True, text=True, check=True)
    digest, seconds, document = json.loads(done.stdout.splitlines()[-1])
    return digest, seconds, _without_times(document)


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def compare(before: Path, after: Path, turns: int) -> int:
    """Print a line a run; return how many differ in more than time."""
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = make(Path(folder), "var")
        for run in RUNS:
            made = [[said(tree, run, checkout) for tree in (before, after)] for _ in range(turns)]
            one, other = made[0]
            keys = [key for key in one[2].keys() | other[2].keys() if one[2].get(key) != other[2].get(key)]
            same = one[0] == other[0] and not keys
            differ += not same
            old, new = (min(each[k][1] for each in made) for k in (0, 1))
            counts = {key: other[2][key] for key in ("verdict", "draws", "identical", "ties", "defects")}
            print(f"{run:15s} {'same' if same else f'DIFFERS {keys}'} {counts} tokens {one[0][:8]} {other[0][:8]}; "
                  f"{old:.2f} s, {new:.2f} s ({new / old - 1:+.1%})", flush=True)  # fmt: skip
    return differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    sys.exit(compare(asked.before.resolve(), asked.after.resolve(), asked.turns))
