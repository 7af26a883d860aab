"""Train a draft for its job: in `code:ENTRY` the target decides scales before ENTRY, the draft draws the others.

    python -m scripts.distil draft.safetensors --keep 0,1,3 --steps 8000 --minutes 8 --device cuda
    python -m scripts.distil draft.safetensors --keep 0,1,3 --steps 8000 --resume --device cuda   # goes on from there
    sdvar-harness quality --draft draft.safetensors --policies code:5 --max-loss 0.1              # what it loses

The draft begins as the target without some of its blocks (`--keep`), or as any checkpoint (`--draft`).

The law that is learned is the one that is drawn from: p, the target's guided and filtered law, and q, the draft's
guided law. What is made small is a relative entropy, the mean over all tokens from ENTRY on: KL(p ‖ q) along the
target's own images, so that the draft draws all that the target does. A draft meets its own mistakes, too: from a
third of the time on every second batch is of images whose scales from ENTRY on the draft has drawn, and there it is
KL(q ‖ p), the nats that `sdvar-harness quality --max-nats` measures, so that it draws nothing that the target does not.
A batch is learned from `USES` times, among `POOL` others. What is kept is a moving average of the weights.

One batch has one guidance value, drawn from a range, so that one draft serves them all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import InputError
from harness.models import DIGITS, ModelPair, autocast_of, load_pair, parse_mode
from harness.models.var.transformer import Transformer, transformer_shapes
from harness.protocol import Request
from harness.reference import block_causal, family_of, filter_logits, prefix_inputs
from harness.reference.sequential import GrowingCache, Progress, sample_sequential, walked
from harness.rounding import set_precision
from scripts.training import Learner

RATE, EVERY = 1e-3, 100
POOL, USES = 8, 4  # batches that are drawn together, and how often each is learned from, in random order
ROUND = POOL * USES  # steps; training stops and goes on between rounds
RAREST = -30.0  # logarithm of the probability of what the target's filter drops


class Batch(NamedTuple):
    """Images to learn from: what was asked, the tokens, the target's law, and whether the draft drew them."""

    request: Request
    tokens_BL: Tensor
    wanted_BlV: Tensor  # logarithms of p of every token from the entry on
    own: bool


@dataclass(frozen=True)
class Lesson:
    """What a draft is to learn."""

    models: ModelPair  # the target whose law it is, and the draft to begin with
    entry: int  # the first scale that the draft draws, 0..S-1
    guidance: tuple[float, float]  # smallest and largest
    top_k: int  # 0 = off
    top_p: float  # 0 = off
    batch: int  # images

    def request(self, generator: torch.Generator) -> Request:
        """Return a batch to draw: labels and one guidance value, from a generator on the CPU."""
        low, high = self.guidance
        cfg = low + (high - low) * float(torch.rand((), generator=generator))
        labels = torch.randint(self.models.target.config.classes, (self.batch,), generator=generator)
        return Request(tuple(labels.tolist()), 0, cfg, self.top_k, self.top_p)


class Numbers:
    """Numbers of one batch, straight from a generator of the device: nobody draws this batch again."""

    def __init__(self, request: Request, models: ModelPair, generator: torch.Generator) -> None:
        self._request, self._models, self._generator = request, models, generator

    def labels(self, classes: int) -> Tensor:
        """Return int64 labels_B."""
        return torch.tensor(self._request.labels, device=self._models.device)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return E_BlV."""
        shape = self._request.B, self._models.pyramid.draws.counts[si], self._models.target.config.V
        return torch.empty(shape, device=self._models.device).exponential_(generator=self._generator)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return u_Bl."""
        return self.exponential(si, stream, reader)[..., 0].neg().exp()


def pruned(target: Transformer, kept: Sequence[int]) -> Transformer:
    """Return a network of some blocks of the target, in their order, which share one modulation (AdaLN).

    Shared is the mean over these blocks; a block's own part is what it differs by, on the mean over the classes.
    """
    config, w = replace(target.config, depth=len(kept), shared_adaln=True), target.weights
    silu_ND = F.silu(w["class_emb.weight"].float())
    each = [torch.cat((w[f"blocks.{i}.ada_lin.1.weight"].T, w[f"blocks.{i}.ada_lin.1.bias"][None])) for i in kept]
    shared = torch.stack(each).mean(0)  # (D+1, 6D): the weight, and the bias in its last row
    weights = {"shared_ada_lin.1.weight": shared[:-1].T.contiguous(), "shared_ada_lin.1.bias": shared[-1]}
    for new, (old, own) in enumerate(zip(kept, each, strict=True)):
        rest = own - shared
        weights[f"blocks.{new}.ada_gss"] = (silu_ND @ rest[:-1] + rest[-1]).mean(0).view(1, 1, 6, -1)
        weights |= {
            name.replace(f"blocks.{old}.", f"blocks.{new}."): weight
            for name, weight in w.items()
            if name.startswith(f"blocks.{old}.") and "ada_lin" not in name
        }
    weights |= {name: weight for name, weight in w.items() if not name.startswith("blocks.")}
    return Transformer(config, {name: weights[name] for name in transformer_shapes(config)})


def guided_law(network: Any, vae: Any, request: Request, tokens_BL: Tensor, labels_B: Tensor) -> Tensor:
    """Return the guided logits_BLV of every scale along given tokens, one masked pass; a gradient passes through."""
    pyramid, family = network.pyramid, family_of(network)
    condition = family.condition(network, request, labels_B)
    xs, _ = prefix_inputs(network, vae, condition, tokens_BL, pyramid.S)
    mask_11LL = block_causal(pyramid, network.device, network.dtype)
    where = family.positions(network, 0, pyramid.S - 1)
    hidden_RLD = network.hidden(torch.cat(xs, 1), condition, GrowingCache(), mask_11LL, where)
    rows_RLV = network.logits(hidden_RLD, condition)
    scales = [rows_RLV[:, pyramid.draws.span(si)] for si in pyramid]
    return torch.cat([family.guide(rows, request.guidance, si, pyramid.S) for si, rows in enumerate(scales)], 1)


class Apprentice(Learner):
    """A draft in training: its weights, their moving average, the optimiser, and where it stands."""

    def __init__(self, lesson: Lesson, seed: int, compiled: bool = False) -> None:
        self.lesson, self.compiled = lesson, compiled
        self.todo = list[Batch]()  # what is left of a round
        self.of_cpu = torch.Generator().manual_seed(seed)
        self.of_device = torch.Generator(lesson.models.device).manual_seed(seed)
        generators = {"of_cpu": self.of_cpu, "of_device": self.of_device}
        super().__init__(lesson.models.draft.weights, RATE, generators)

    def draft(self, averaged: bool = False) -> Transformer:
        """Return the draft as it stands."""
        models = self.lesson.models
        weights, autocast = self.average if averaged else self.weights, autocast_of(models.target)
        return Transformer(models.draft.config, weights, self.compiled, autocast)

    def images(self, request: Request, own: bool) -> Tensor:
        """Return tokens_BL of the target's images, or of such whose scales from the entry on the draft has drawn."""
        models, lesson = self.lesson.models, self.lesson
        numbers = Numbers(request, models, self.of_device)
        with torch.inference_mode():
            scales = lesson.entry if own else models.pyramid.S
            progress = Progress(models.target, models.vae, request, numbers)
            first_BL = walked(progress, scales).tokens_BL if scales else None
        if first_BL is not None and not own:
            return first_BL
        return sample_sequential(self.draft(), models.vae, request, numbers, first_BL).tokens_BL

    def batch(self, own: bool) -> Batch:
        """Draw one, and take the target's law along it."""
        lesson, models = self.lesson, self.lesson.models
        request = lesson.request(self.of_cpu)
        tokens_BL = self.images(request, own)
        with torch.inference_mode():
            law_BLV = self.law(models.target, request, tokens_BL)
            wanted_BlV = filter_logits(law_BLV, lesson.top_k, lesson.top_p).log_softmax(-1).clamp_min(RAREST)
        return Batch(request, tokens_BL, wanted_BlV, own)

    def law(self, network: Transformer, request: Request, tokens_BL: Tensor) -> Tensor:
        """Return the guided logits_BlV from the entry on."""
        models = self.lesson.models
        labels_B = torch.tensor(request.labels, device=models.device)
        begin = models.pyramid.draws.begin(self.lesson.entry)
        return guided_law(network, models.vae, request, tokens_BL, labels_B)[:, begin:]

    def loss(self, batch: Batch) -> Tensor:
        """Return the relative entropy of a batch, nats a token."""
        wanted_BlV = batch.wanted_BlV.clone()  # of inference: a gradient keeps none of those
        own_BlV = self.law(self.draft(), batch.request, batch.tokens_BL.clone()).log_softmax(-1)
        if batch.own:
            return (own_BlV.exp() * (own_BlV - wanted_BlV)).sum(-1).mean()
        return (wanted_BlV.exp() * (wanted_BlV - own_BlV)).sum(-1).mean()

    def train(self, steps: int) -> Iterator[tuple[int, Tensor, bool]]:
        """Train up to so many steps in all; yield every step, its loss, nats a token, and whether the draft drew it."""
        while self.step < steps:
            done = self.step / steps
            if not self.todo:
                pool = [self.batch(own=done >= 1 / 3 and k % 2 == 1) for k in range(POOL)]
                self.todo = [pool[k % POOL] for k in torch.randperm(ROUND, generator=self.of_cpu).tolist()]
            batch = self.todo.pop()
            loss = self.loss(batch)
            self.learn(loss, done)
            yield self.step, loss.detach(), batch.own


def guidance_of(text: str) -> tuple[float, float]:
    """Return the smallest and the largest guidance value of LOW:HIGH, or of one value. Raises `InputError`."""
    with suppress(ValueError):
        low, _, high = text.partition(":")
        if -math.inf < float(low) <= float(high or low) < math.inf:
            return float(low), float(high or low)
    raise InputError("cfg", text, "must be LOW:HIGH or one value", "pass --cfg 0.25:1.5")


def whose(drawn: bool) -> str:
    """Return the word of whose images a batch has."""
    return "its own" if drawn else "the target's"


def blocks_of(text: str, target: Transformer) -> list[int]:
    """Return the target's blocks to keep, of 0,1,3. Raises `InputError`."""
    depth = target.config.depth
    if target.config.shared_adaln:
        raise InputError("keep", text, "takes a target whose blocks have modulations of their own", "drop it")
    with suppress(ValueError):
        kept = [int(word) for word in text.split(",")]
        if kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < depth:
            return kept
    raise InputError("keep", text, f"must be ascending blocks of the target, 0..{depth - 1}", "pass --keep 0,1,3")


def write(draft: Transformer, into: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint of the draft; one that is there already is replaced at once, never half."""
    fresh = into.with_name(into.name + ".part")
    save_file({name: weight.detach().to("cpu", dtype).contiguous() for name, weight in draft.weights.items()}, fresh)
    fresh.replace(into)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the draft, what going on needs beside it (`.state`), and a line of the log a hundred steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("into", type=Path, help="the draft's checkpoint")
    parser.add_argument("--steps", type=int, default=5000, help="in all; the rate falls to 0 there")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, to go on with --resume")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--entry", type=int, default=5, help="the first scale that the draft draws")
    parser.add_argument("--cfg", default="0.25:1.5", help="guidance: LOW:HIGH, or one value")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=192, help="images a step")
    parser.add_argument("--keep", default="", help="begin as the target with these blocks alone, e.g. 0,1,3")
    parser.add_argument("--compile", action="store_true", help="through PyTorch's compiler: faster, after a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="autocast-bfloat16 is several times faster on CUDA")
    for side in ("draft", "target", "vae"):
        parser.add_argument(f"--{side}", type=Path, default=DIGITS / f"{side}.safetensors", help="a checkpoint")
    given = parser.parse_args(arguments)
    try:
        learn(given)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def learn(given: argparse.Namespace) -> None:
    """Do what the command line says. Raises `InputError`."""
    set_precision(given.device == "cuda")  # TF32: what is learned is measured afterwards, in float32
    if parse_mode("dtype", given.dtype)[0] != torch.float32:
        raise InputError("dtype", given.dtype, "keeps no float32 weights, which learn", "pass float32 or an autocast")
    models = load_pair(given.draft, given.target, given.vae)
    if given.keep:
        models = replace(models, draft=pruned(models.target, blocks_of(given.keep, models.target)))
    models = models.in_mode(given.device, given.dtype)
    if given.compile:
        models = replace(models, target=replace(models.target, compiled=True))
    lesson = Lesson(models, given.entry, guidance_of(given.cfg), given.top_k, given.top_p, given.batch)
    if not 0 <= given.entry < models.pyramid.S:
        raise InputError("entry", given.entry, f"must lie in 0..{models.pyramid.S - 1}", "pass --entry 5")
    lesson.request(torch.Generator()).check_for(models.target.config)
    apprentice = Apprentice(lesson, given.seed, given.compile)
    state = given.into.with_name(given.into.name + ".state")
    if given.resume and not state.exists():
        raise InputError("resume", True, f"nothing was kept in {state}", "drop it to begin")
    if given.resume:
        apprentice.go_on(torch.load(state, map_location=models.device, weights_only=True))
    before, start, losses = apprentice.seconds, time.perf_counter(), {False: list[Tensor](), True: list[Tensor]()}
    log = given.into.with_name(given.into.name + ".log")
    for step, loss, own in apprentice.train(given.steps):
        losses[own].append(loss)
        if step % EVERY == 0 or step == given.steps:
            means = {drawn: float(torch.stack(each[-EVERY:]).mean()) for drawn, each in losses.items() if each}
            along = " and ".join(f"{mean:.4f} along {whose(drawn)} images" for drawn, mean in means.items())
            apprentice.seconds = before + time.perf_counter() - start
            line = f"step {step} of {given.steps}: nats a token {along}, {apprentice.seconds / 60:.1f} minutes"
            print(line, file=sys.stderr, flush=True)
            with log.open("a") as stream:
                stream.write(line + "\n")
        if not apprentice.todo and time.perf_counter() - start > 60 * given.minutes:
            break
    write(apprentice.draft(averaged=True), given.into, torch.float32)
    torch.save(apprentice.state(), state)


if __name__ == "__main__":
    main()
