"""Stored error budgets: how far rounding moves a network's logits on one kind of machine, measured once and kept.

Promise: what is measured is the plain reference over every window of the pyramid, against float64 on the same rows;
the decoder under test has no part in it, so that no failing run can widen what it is judged by. An entry holds for one
set of weights, one device, dtype and mode; anything else is measured at the run (`budget.calibrate`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError, NonFiniteError
from harness.files import compact, write_whole
from harness.models.pair import ModelPair
from harness.protocol.noise import SeededNoise
from harness.protocol.request import Request
from harness.provenance import versions
from harness.reference import cachefree, sequential
from harness.reference.masks import block_causal
from harness.reference.sequential import GrowingCache, guidance_labels
from harness.rounding.budget import ROUNDING, Budget, calibrate
from harness.rounding.precision import precision

# Other seeds, labels, batch sizes and processors of the same kind round a little differently: fresh images on the
# machines of the stored entries stayed within 1.4 times what is stored (tests/unit/test_calibration.py, tests/gpu).
MARGIN = 2.0
EXACT = "exact"
Mode = tuple[str, str, str, str, str]  # models, weights, device, dtype, products
SHIPPED = Path(str(files("harness.rounding") / "budgets.json"))
BATCHES = (1, 2, 8)


@dataclass(frozen=True)
class Entry:
    """What rounding did, at worst.

    Args:
        models: name of the pair.
        weights: fingerprint of the target's and the quantiser's weights in this dtype; "random" for a random pair.
        device: cpu, or the name of the GPU.
        dtype: of the transformers.
        products: of float32 numbers: exact, TF32, or mixed where products and convolutions differ.
        rows: largest error of a logit before guidance, over every window of scales in one pass.
        rows_rms: largest root mean square of it over one scale of one guidance row.
        f_hat: largest error of f_hat.
        windows: measured windows.
        images: measured images.
        versions: of what measured it.
        reason: why it replaced a smaller one; empty for a first measurement.
    """

    models: str
    weights: str
    device: str
    dtype: str
    products: str
    rows: float
    rows_rms: float
    f_hat: float
    windows: int
    images: int
    versions: dict[str, str]
    reason: str = ""

    @property
    def mode(self) -> Mode:
        """What the entry holds for."""
        return self.models, self.weights, self.device, self.dtype, self.products

    def budget(self, cfg: float) -> Budget:
        """Return the budget of guided logits: (1+t)·c − t·u moves by (1+2t) errors of a row at most, t <= |cfg|."""
        factor = MARGIN * (1 + 2 * abs(cfg))
        products = "" if self.products == EXACT else f" {self.products}"
        mode = f"{self.device}, {self.dtype}{products}, {self.windows} windows"
        source = f"{MARGIN:g} × the reference's largest error against float64, stored ({mode})"
        return Budget(factor * self.rows, factor * self.rows_rms, MARGIN * self.f_hat, source)


def mode_of(models: ModelPair) -> Mode:
    """Return what an entry for these networks must hold for. Reads the process-wide TF32 settings."""
    device, now = models.device, precision()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtype = str(models.target.dtype).removeprefix("torch.")
    products = {(False, False): EXACT, (True, True): "TF32"}.get((now["tf32_matmul"], now["tf32_convolution"]), "mixed")
    # a CPU has no TF32, and float64 is not rounded to it; a bfloat16 network's head and quantiser are float32
    in_effect = device.type == "cuda" and dtype != "float64"
    return models.name, _fingerprint(models), name, dtype, products if in_effect else EXACT


def _fingerprint(models: ModelPair) -> str:
    """Return a digest of what rounding depends on: every weight of the target, and the quantiser's."""
    if models.random:
        return "random"  # drawn on the device, so another one every time; their rounding is that of their law
    digest = hashlib.blake2b(digest_size=8)
    quantizer = models.vae.quantizer
    phi = {f"phi.{k}.{n}": w for k, pair in enumerate(quantizer.phi_weights) for n, w in enumerate(pair)}
    for name, weight in sorted({**models.target.weights, **phi, "codebook": quantizer.codebook_VC}.items()):
        wide = weight.detach().double()
        # moments weighted by position: cheap on a GPU, and every number counts
        ramp = torch.linspace(1, 2, wide.numel(), dtype=torch.float64, device=wide.device)
        moments = torch.stack((wide.flatten() @ ramp, wide.square().flatten() @ ramp))
        digest.update(f"{name} {tuple(weight.shape)} {[f'{moment:.7g}' for moment in moments.tolist()]}".encode())
    return digest.hexdigest()


def budget_for(models: ModelPair, request: Request, store: Path = SHIPPED) -> Budget:
    """Return the stored budget of this mode, or measure one where there is none."""
    mode = mode_of(models)
    entry = next((entry for entry in load(store) if entry.mode == mode), None)
    return calibrate(models, request) if entry is None else entry.budget(request.cfg)


def load(store: Path) -> list[Entry]:
    """Read a file of entries; none where there is no file.

    Raises:
        InputError: it is no such file, or a number in it is not positive and finite.
    """
    if not store.exists():
        return []
    try:
        entries = [Entry(**values) for values in json.loads(store.read_text())["entries"]]
        good = all(isinstance(word, str) for entry in entries for word in entry.mode)
        good = good and all(0 < number < float("inf") for e in entries for number in (e.rows, e.rows_rms, e.f_hat))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        rule = "must hold entries of `sdvar-harness calibrate` with positive, finite errors"
        raise InputError("budgets", str(store), rule, "restore it, or delete it and calibrate again")
    return entries


def save(entry: Entry, store: Path, reason: str = "") -> None:
    """Add an entry to a file, or replace the one of its mode.

    Raises:
        InputError: the new one is wider, or from fewer images, and there is no reason for it.
    """
    entries = load(store)
    old = next((other for other in entries if other.mode == entry.mode), None)
    grown = old is not None and any(getattr(entry, n) > getattr(old, n) for n in ("rows", "rows_rms", "f_hat"))
    if old is not None and entry.images < old.images and not reason:
        rule = f"has {entry.images} images where the stored one has {old.images}"
        raise InputError("budget", entry.models, rule, 'measure as many, or pass --reason "…"')
    if grown and not reason:
        assert old is not None
        rule = f"must not widen the stored one without a reason (logits {old.rows:.3g} -> {entry.rows:.3g})"
        raise InputError("budget", entry.models, rule, 'find out why, or pass --reason "…"')
    kept = [other for other in entries if other is not old]
    kept.append(replace(entry, reason=reason if old is not None else ""))
    ordered = sorted(kept, key=lambda e: e.mode)
    write_whole(store, compact({"entries": [asdict(e) for e in ordered]}))


@torch.inference_mode()
def measure(models: ModelPair, batches: Sequence[int] = BATCHES) -> Entry:
    """Measure every window of the pyramid in one pass, scales before it cached one pass each.

    Args:
        models: in the dtype and on the device of the mode.
        batches: images per batch; a batch's number in the list is its seed.

    Draws: from generators of its own.
    """
    rows, rms, f_hat = [], [], []
    for seed, B in enumerate(batches):
        labels = tuple((seed + k) % models.target.config.classes for k in range(B))
        found = errors(models, Request(labels, seed))
        rows.append(found[0])
        rms.append(found[1])
        f_hat.append(found[2])
    S = models.pyramid.S
    return Entry(*mode_of(models), max(rows), max(rms), max(f_hat), S * (S + 1) // 2, sum(batches), versions=versions())


def errors(models: ModelPair, request: Request) -> tuple[float, float, float]:
    """Return the largest error of rows, of their mean square by scale, and of f_hat, over one batch."""
    pyramid = models.pyramid
    noise = SeededNoise(request, pyramid, models.target.config.V, models.device)
    run = sequential.sample(models.target, models.vae, request, noise)
    assert run.intermediates is not None
    labels_B, tokens_BL = noise.labels(models.target.config.classes), run.tokens_BL
    wide = models.to(models.device, torch.float64)
    exact_RLV, _, f_hats = cachefree.teacher_forced(wide.target, wide.vae, request.cfg, labels_B, tokens_BL, pyramid.S)
    del wide
    worst = worst_rms = 0.0
    if not bool(torch.isfinite(exact_RLV).all()):
        raise NonFiniteError("target.logits")
    for first, rows_RnV in windows(models, labels_B, tokens_BL):
        begin = pyramid.begin(first)
        error_RnV = (rows_RnV.double() - exact_RLV[:, begin : begin + rows_RnV.shape[1]]).abs()
        if not bool(torch.isfinite(error_RnV).all()):
            raise NonFiniteError("target.logits", f"the window that begins at scale {first}")
        worst = max(worst, float(error_RnV.max()))
        for si in range(first, pyramid.level_of(begin + rows_RnV.shape[1] - 1) + 1):
            scale_RlV = error_RnV[:, pyramid.begin(si) - begin : pyramid.end(si) - begin]
            worst_rms = max(worst_rms, float(scale_RlV.square().mean((1, 2)).max().sqrt()))
    # teacher_forced lists f_hat before scales 0..S-1, the run lists it after them
    made = run.intermediates.f_hat_SBCPP[:-1]
    f_hat = float((made.double() - f_hats[1:]).abs().max()) if len(made) else 0.0
    # one rounding of the largest number met is the least that an error may be
    return (
        max(worst, ROUNDING * float(exact_RLV.abs().max())),
        max(worst_rms, ROUNDING * float(exact_RLV.square().mean().sqrt())),
        max(f_hat, ROUNDING * max(1.0, float(run.f_hat_BCPP.abs().max()))),
    )


def windows(models: ModelPair, labels_B: Tensor, tokens_BL: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first scale, rows_RnV) of every window, from the given tokens of the scales before each."""
    network, pyramid = models.target, models.pyramid
    condition = network.condition(guidance_labels(labels_B, network.config.classes))
    xs, _ = cachefree.prefix_inputs(network, models.vae, condition, tokens_BL, pyramid.S)
    x_RLD = torch.cat(xs, 1)
    mask_11LL = block_causal(pyramid, network.device, network.dtype)
    before = GrowingCache()
    for first in pyramid:
        for last in range(first, pyramid.S):
            cache = GrowingCache()
            cache.layers = dict(before.layers)
            window = slice(pyramid.begin(first), pyramid.end(last))
            mask_11nK = mask_11LL[:, :, window, : window.stop] if last > first else None
            yield first, network.logits(network.hidden(x_RLD[:, window], condition, cache, mask_11nK), condition)
            if last == first:
                one_more = cache
        before = one_more
