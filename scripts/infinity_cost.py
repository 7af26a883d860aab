"""What a verification of Infinity costs on networks of published sizes with random weights: memory, seconds, judging.

    python -m scripts.infinity_cost --device cuda                     # the 2B sizes at 1.0/0.25M, one image a decode
    python -m scripts.infinity_cost --sizes tiny --schedule 1.0/0.06M  # the same in a minute on a CPU

Status 1 where judging takes more than `--most` of the decodes that it judges, where the right decoder is not right, or
where more memory was taken than was stated before, or less than half of that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import torch

from harness import ModelPair, Request, Settings, Terms, Verdict, verify
from harness.decoders import OWN_DECODER
from harness.models import close_pair
from harness.models.infinity.autoencoder import InfinityAutoencoder, binary_config, infinity_autoencoder_shapes
from harness.models.infinity.checkpoint import parse_schedule
from harness.models.infinity.transformer import InfinityConfig, InfinityTransformer, infinity_shapes
from harness.models.var.sizes import count_scalars, random_weights
from harness.protocol import Rows, ScaleGuidance
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget, set_precision
from harness.runs._plan import bytes_of_a_run, bytes_of_networks
from harness.runs._work import resident_bytes
from harness.speculative.sampler import peak_bytes
from scripts.evidence_cost import clock
from scripts.process_cost import OWN

FACTOR = 2  # by which less memory may be taken than is stated
LOADED = 0.15 * 2**30  # bytes of what a process on a CPU loads as it works, and of holes between tensors

# depth, D, H, C, text width, longest text, chunks, ch and multipliers of the autoencoder
SIZES = {
    "2B": (32, 2048, 16, 32, 2048, 512, 8, 128, (1, 2, 4, 4, 4)),
    "small": (4, 64, 2, 32, 128, 16, 2, 32, (1, 2)),  # as many bits a position as 2B
    "tiny": (4, 64, 2, 4, 128, 16, 2, 32, (1, 2)),
}


def random_infinity(sizes: str, schedule: str, device: str) -> ModelPair:
    """Return a pair of published sizes, its draft the target moved by a little; weights are drawn on the device."""
    depth, D, H, C, A, X, chunks, ch, multipliers = SIZES[sizes]
    asked = parse_schedule(schedule)
    pyramid = ScalePyramid(sides=asked.sides, channels=C)
    config = InfinityConfig(
        pyramid, depth, D, H, C, A, X, ffn=4 * D, pool_heads=max(A // 128, 1), chunks=chunks, full=asked.full
    )
    target = InfinityTransformer(config, random_weights(infinity_shapes(config), 0, device))
    of_vae = binary_config(C, ch, multipliers, has_encoder=False)
    vae = InfinityAutoencoder(of_vae, random_weights(infinity_autoencoder_shapes(of_vae), 1, device))
    return close_pair(ModelPair(target, target, vae, f"Infinity {sizes} (random weights)", random=True), 0.001)


def request_of(models: ModelPair, rows: int, images: int, seed: int, places: tuple[int, ...]) -> Request:
    """Return guided texts of so many rows."""
    generator, A = torch.Generator().manual_seed(seed), models.target.weights["cfg_uncond"].shape[1]
    texts = tuple(Rows(torch.randn(rows, A, generator=generator)) for _ in range(images))
    guidance = ScaleGuidance((3.0,) * models.pyramid.S, (0.5,) * models.pyramid.S, places)
    return Request(tuple(range(images)), seed, texts=texts, scale_guidance=guidance)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and say what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--sizes", choices=sorted(SIZES), default="2B")
    parser.add_argument("--schedule", default="1.0/0.25M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1, help="of a decode")
    parser.add_argument("--rows", type=int, default=0, help="of a text; 0 = 64, or the longest")
    parser.add_argument("--draft-len", type=int, default=3)
    parser.add_argument("--own-process", action="store_true", help="of the decoder; its memory is not compared then")
    parser.add_argument("--most", type=float, default=0.15, help="judging's share of the decodes that is allowed")
    given = parser.parse_args(arguments)
    set_precision(False)
    begin, own = time.perf_counter(), resident_bytes()
    models = random_infinity(given.sizes, given.schedule, given.device)
    rows = given.rows or min(64, SIZES[given.sizes][5])
    requests = [request_of(models, rows, given.images, k, places) for k, places in enumerate(((0,), (0,), (-1,)))]
    numbers = count_scalars(infinity_shapes(models.target.config))
    print(f"{models.title}: {numbers:,} parameters a network, {models.pyramid.draws.L:,} draws an image; "
          f"made in {clock(models) - begin:.1f} s", flush=True)  # fmt: skip
    on_cuda, networks = models.device.type == "cuda", bytes_of_networks(models)
    run = bytes_of_a_run(models, given.images)
    # on a CPU all memory of the process is seen, Python and its packages, too
    stated = networks + run + (0 if on_cuda else own + LOADED)
    print(f"stated: {stated / 2**30:.2f} GiB at most; networks {networks / 2**30:.2f}, images {run / 2**30:.2f}",
          flush=True)  # fmt: skip
    plain = models.unrounded()  # as the harness's own decoder is judged
    for turn in ("first", "second"):
        since = clock(models)
        sample_sequential(plain.target, plain.vae, requests[0], plain.noise(requests[0]))
        print(f"sequential decode, {turn}: {clock(models) - since:.2f} s", flush=True)
    since = clock(models)
    budget = quick_budget(plain)
    print(f"budget: a logit {budget.rows:.2g}, f_hat {budget.f_hat:.2g}; {clock(models) - since:.1f} s", flush=True)
    result = verify(
        models,
        OWN if given.own_process else OWN_DECODER,
        settings=Settings(given.draft_len),
        requests=requests,
        progress=lambda: None,
        terms=Terms(in_process=not given.own_process),
    )
    share, said = result.seconds / result.decode_seconds - 1, json.loads(result.to_json())
    print(f"{result.verdict.value}: {said['draws']:,} draws, {said['ties']} ties; decoder and reference "
          f"{result.decode_seconds:.1f} s, judging {share:.1%} on top, at most {given.most:.0%}")  # fmt: skip
    seen = peak_bytes(models.device)
    where = f"on {torch.cuda.get_device_name()}" if on_cuda else "of the process"
    of_stated = "" if given.own_process else f", {seen / stated:.0%} of what was stated"
    print(f"most memory: {seen / 2**30:.2f} GiB {where}{of_stated}")
    print(f"all: {clock(models) - begin:.0f} s")
    is_right = result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
    is_stated = given.own_process or stated / FACTOR <= seen <= stated
    sys.exit(share > given.most or not is_right or not is_stated)


if __name__ == "__main__":
    main()
