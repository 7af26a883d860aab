"""The one measurement of how far rounding moves a network's numbers, and the budget that a run takes from it.

Promise: what is measured is the plain reference over windows of scales, against float64 on the same rows; the decoder
under test has no part in it, so that no failing run can widen what it is judged by. Every window is measured once, by
`sdvar-harness calibrate`, and stored; where nothing is stored, fewer windows are measured in the process, once a mode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from harness.errors import NonFiniteError
from harness.models import ModelPair
from harness.protocol import Request
from harness.provenance import versions
from harness.reference import GrowingCache, block_causal, family_of, prefix_inputs, sample_sequential, teacher_forced
from harness.rounding._budget import (
    BUDGET_MARGIN,
    EXACT,
    ROUNDING,
    SHIPPED_BUDGETS,
    Budget,
    BudgetEntry,
    Errors,
    load_budgets,
    mode_of,
)

CALIBRATION_BATCHES = (1, 2, 8)
# Where nothing is stored: every scale alone and all scales in one pass, for one batch of two images, or of more (up to
# eight) where images are that small that two would meet too few numbers. Over all windows of fresh images the errors
# stayed within 1.91 times these (digits and d16 -> d30 on CPU and H100 in float32, TF32 and bfloat16; 16 tiny networks
# and those of 40 cases of the laws in float32 and bfloat16), so `BUDGET_MARGIN` covers them too.
POSITIONS, FEWEST, MOST = 1200, 2, 8

# Where the law of a network rounds to bfloat16, errors are steps: a value at the edge of one may lie on either side.
# Few do, in many a batch none, so that measuring finds 1.3e-6 here and 1.7e-3 there. What the steps of all values do to
# a logit is met in every batch (8.7e-3 to 1.1e-2, three networks, twelve batches of four images each): this share of it
# is taken for an error, which with all margins allows as much as that, and no more.
STEPS = 0.25

# Compiled blocks may round so much more, no further: on an H200 they rounded 0.85 to 1.07 times as much in three modes.
WIDEST = 4.0

Result = TypeVar("Result")
_LOCK = Lock()  # goldens are judged side by side
_BUDGETS: dict[object, Budget] = {}
_SIZES: dict[object, tuple[float, float]] = {}


def budget_for(models: ModelPair, store: Path = SHIPPED_BUDGETS) -> Budget:
    """Return the stored budget of this mode, or measure one where there is none.

    The mode is read here: call it before a decoder is built, which may change what is process-wide. Raises `InputError`
    where the file is none of `calibrate`, or its entry too wide, and `NonFiniteError` where logits are not finite.
    """
    mode = mode_of(models)
    if (entry := next((entry for entry in load_budgets(store) if entry.mode == mode), None)) is None:
        return quick_budget(models)
    check_explained(entry, models)
    return entry.budget()


def joint_budget(models: ModelPair, compiled: bool, store: Path = SHIPPED_BUDGETS) -> Budget:
    """Return the budget of networks as they are, or, for a decoder whose blocks are compiled, the wider of both modes.

    The compiler's work is measured, and is under test: `WIDEST` keeps what it does wrong from excusing itself. `models`
    are not compiled: the reference never is. Raises as `budget_for` does.
    """
    plain = budget_for(models, store)
    if not compiled:
        return plain
    other = budget_for(models.compiled(), store)
    rows, rms, f_hat = (
        max(getattr(plain, name), min(WIDEST * getattr(plain, name), getattr(other, name)))
        for name in ("rows", "rows_rms", "f_hat")
    )
    source = f"the wider of two: {plain.source}; {other.source}, {WIDEST:g} times the first at most"
    return Budget(rows, rms, f_hat, source)


def check_explained(entry: BudgetEntry, models: ModelPair) -> None:
    """Refuse an entry that is wider than its dtype can explain of these networks. Raises `InputError`."""
    entry.check_explained(*_once(_SIZES, models, _sizes))


def quick_budget(models: ModelPair) -> Budget:
    """Return `BUDGET_MARGIN` times the errors of a few windows and images; measured once a process and mode."""
    return _once(_BUDGETS, models, _quick)


def _once(results: dict[object, Result], models: ModelPair, measured: Callable[[ModelPair], Result]) -> Result:
    """Return the result for these weights, sizes and mode, measured at the first call. Effects: kept in `results`."""
    key = (mode_of(models), models.target.config, models.vae.config)
    with _LOCK:
        if key not in results:
            results[key] = measured(models)
        return results[key]


def images_to_measure(models: ModelPair) -> int:
    """Return how many images are measured where nothing is stored."""
    return min(max(-(-POSITIONS // models.pyramid.L), FEWEST), MOST)


def _quick(models: ModelPair) -> Budget:
    images = images_to_measure(models)
    largest = errors(models, family_of(models.target).example(models, images, 0), every=False)
    _, _, device, dtype, products = mode_of(models)
    mode = f"{device}, {dtype}{'' if products == EXACT else f' {products}'}, {images} images"
    source = f"{BUDGET_MARGIN:g} × the reference's largest error against float64, measured in this run ({mode})"
    return Budget.of(largest, source)


def measure_budget(
    models: ModelPair, batches: Sequence[int] = CALIBRATION_BATCHES, progress: Callable[[], None] = lambda: None
) -> BudgetEntry:
    """Measure every window of the pyramid in one pass, scales before it cached one pass each.

    `batches` are images per batch, whose number in the list is its seed; `progress` is called after each.
    Draws: from generators of its own.
    """
    batch_errors = []
    for seed, B in enumerate(batches):
        batch_errors.append(errors(models, family_of(models.target).example(models, B, seed)))
        progress()
    rows, rms, f_hat = (max(getattr(batch, name) for batch in batch_errors) for name in ("rows", "rows_rms", "f_hat"))
    S = models.pyramid.S
    return BudgetEntry(*mode_of(models), rows, rms, f_hat, S * (S + 1) // 2, sum(batches), versions=versions())


@torch.inference_mode()
def errors(models: ModelPair, request: Request, every: bool = True) -> Errors:
    """Return the largest errors of one batch along its tokens, over `windows`. Raises `NonFiniteError`."""
    pyramid = models.pyramid
    noise = models.noise(request)
    run = sample_sequential(models.target, models.vae, request, noise)
    labels_B, tokens_BL = noise.labels(models.target.config.classes), run.tokens_BL
    target, vae = models.target.converted(torch.float64), models.vae.to(models.device, torch.float64)
    wide = replace(models, target=target, vae=vae)  # no weights of a transformer exist twice
    exact_RLV, _, f_hats = teacher_forced(wide.target, wide.vae, request, labels_B, tokens_BL, pyramid.S)
    even, measured = wide.unrounded(), iter(windows(models, request, tokens_BL, every))
    if even is not wide:
        even_RLV, _, _ = teacher_forced(even.target, even.vae, request, labels_B, tokens_BL, pyramid.S)
        measured = chain(measured, [(0, exact_RLV.lerp(even_RLV, STEPS))])
    del wide, even
    if not bool(torch.isfinite(exact_RLV).all()):
        raise NonFiniteError("target.logits")
    rows, rms = ROUNDING * float(exact_RLV.abs().max()), ROUNDING * float(exact_RLV.square().mean().sqrt())
    draws = pyramid.draws
    for first, rows_RnV in measured:
        begin = draws.begin(first)
        error_RnV = (rows_RnV.double() - exact_RLV[:, begin : begin + rows_RnV.shape[1]]).abs()
        if not bool(torch.isfinite(error_RnV).all()):
            raise NonFiniteError("target.logits", f"the window that begins at scale {first}")
        rows = max(rows, float(error_RnV.max()))
        for si in range(first, draws.level_of(begin + rows_RnV.shape[1] - 1) + 1):
            scale_RlV = error_RnV[:, draws.begin(si) - begin : draws.end(si) - begin]
            rms = max(rms, float(scale_RlV.square().mean((1, 2)).max().sqrt()))
    # teacher_forced lists f_hat before scales 0..S-1, the run lists it after them
    after_SBCPP = run.shown.f_hat_SBCPP[:-1]
    f_hat = float((after_SBCPP.double() - f_hats[1:]).abs().max()) if len(after_SBCPP) else 0.0
    return Errors(rows, rms, max(f_hat, ROUNDING * max(1.0, float(run.f_hat_BCPP.abs().max()))))


def windows(models: ModelPair, request: Request, tokens_BL: Tensor, every: bool) -> Iterator[tuple[int, Tensor]]:
    """Yield (first scale, rows_RnV) of the target's windows of scales, after given tokens of the scales before each.

    `every` takes S·(S+1)/2 windows, else there are each scale alone and the window of all scales.
    """
    network, pyramid, family = models.target, models.pyramid, family_of(models.target)
    condition = family.condition(network, request, models.noise(request).labels(network.config.classes))
    xs, _ = prefix_inputs(network, models.vae, condition, tokens_BL, pyramid.S)
    x_RLD = torch.cat(xs, 1)
    mask_11LL = block_causal(pyramid, network.device, network.dtype)
    before = GrowingCache()
    for first in pyramid:
        for last in range(first, pyramid.S):
            if not (every or last == first or (first, last) == (0, pyramid.S - 1)):
                continue
            cache = GrowingCache(grows=last == first < pyramid.S - 1)  # the others' keys and values serve nobody
            cache.layers = dict(before.layers)
            window = slice(pyramid.begin(first), pyramid.end(last))
            mask_11nK = mask_11LL[:, :, window, : window.stop] if last > first else None  # as decoders run one scale
            positions = family.positions(network, first, last)
            hidden_RnD = network.hidden(x_RLD[:, window], condition, cache, mask_11nK, positions)
            yield first, network.logits(hidden_RnD, condition)
            if last == first:
                one_more = cache
        before = one_more


@torch.inference_mode()
def _sizes(models: ModelPair) -> tuple[float, float]:
    """Return the largest logit before guidance and the largest number in f_hat, of one image."""
    request = family_of(models.target).example(models, 1, 0)
    run = sample_sequential(models.target, models.vae, request, models.noise(request))
    return float(run.shown.rows_RLV.abs().max()), float(run.shown.f_hat_SBCPP.abs().max())
