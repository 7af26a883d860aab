"""Laws of masks: what a row of a verify pass may see, and what it must see."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import Case
from harness.laws._law import Subject, law, shown_tensors
from harness.laws._oracle import Run, allowed, decided_whole, needs_exact, run_over, several
from harness.models.network import Condition
from harness.protocol.pyramid import ScalePyramid
from harness.reference import GrowingCache, block_causal

# A perturbation of unit size either moves a logit of these networks by more than the first number or, by rounding of
# another kernel at most, by less than the second.
SEEN, UNSEEN = 1e-9, 1e-11


def _mask(subject: Subject, case: Case, first: int, last: int) -> Tensor:
    parts = subject.parts(case, "attention_mask")
    mask: Tensor = parts.attention_mask(case.pyramid, first, last, case.at, torch.float64)
    return mask


@lru_cache(maxsize=8)
def _whole(pyramid: ScalePyramid, device: torch.device) -> Tensor:
    return block_causal(pyramid, device, torch.float64)


@law("masks.definition", "attention_mask")
def definition(subject: Subject, case: Case) -> bool:
    """The mask of scales a..b is rows begin(a).., columns 0..end(b) of the block-causal one."""
    parts = subject.parts(case, "attention_mask")
    for pyramid, first, last in case.every_window:
        K, end = pyramid.begin(first), pyramid.end(last)
        expected = _whole(pyramid, case.at)[:, :, K:end, :end]
        mask = parts.attention_mask(pyramid, first, last, case.at, torch.float64)
        where = f"window {first}..{last}"
        shapes = f"shape {tuple(mask.shape)}, not (1, 1, n, K+n) = {tuple(expected.shape)}"
        require(mask.shape == expected.shape, f"{where}: {shapes}")
        require(mask.dtype == expected.dtype, f"{where}: {mask.dtype}, not {expected.dtype}")
        if wrong := torch.nonzero(mask[0, 0] != expected[0, 0]).tolist():
            row, column = wrong[0]
            value = float(mask[0, 0, row, column])
            require(False, f"{where}: row {K + row} holds {value} for column {column}; {len(wrong)} entries wrong")
    return any(a > 0 and b > a for a, b in case.windows)


@law("masks.visible", "attention_mask")
def visible(subject: Subject, case: Case) -> bool:
    """No row of a mask is without a visible column."""
    # softmax would turn such a row into NaN
    for first, last in case.windows:
        blind = torch.nonzero(~(_mask(subject, case, first, last)[0, 0] == 0).any(-1)).flatten().tolist()
        require(not blind, f"window {first}..{last}: rows {blind[:8]} see nothing")
    return case.pyramid.S > 1


@law("masks.dependency", "attention_mask")
@torch.inference_mode()
def dependency(subject: Subject, case: Case) -> bool:
    """A row depends on exactly the positions of its own and earlier scales."""
    needs_exact(case, "rounding moves logits by more than a leak may")
    case = replace(case, labels=case.labels[:1])
    pyramid, network = case.pyramid, case.models.target
    run = run_over(network, case.models.vae, case, case.random_tokens())
    condition = case.condition(network)
    level_L = torch.tensor(pyramid.levels(), device=case.at)
    windows = case.windows if pyramid.end(case.windows[-1][1]) <= 60 else case.windows[-3:]
    for first, last in windows:
        K, end = pyramid.begin(first), pyramid.end(last)
        moved_cr = _moved(run, condition, case, (first, last), _mask(subject, case, first, last))
        due_cr = level_L[:end, None] <= level_L[None, K:end]
        for column, row in torch.nonzero((moved_cr > UNSEEN) & ~due_cr).tolist():
            require(False, f"window {first}..{last}: position {column} leaks into row {K + row}, of an earlier scale")
        for column, row in torch.nonzero((moved_cr < SEEN) & due_cr).tolist():
            require(False, f"window {first}..{last}: row {K + row} does not see position {column}")
    return pyramid.S > 2


def _moved(run: Run, condition: Condition, case: Case, window: tuple[int, int], mask_11nK: Tensor) -> Tensor:
    """Return moved_cr: largest change of the logits of row r when column c is perturbed; all columns in one pass."""
    pyramid, network = case.pyramid, case.models.target
    K, end = pyramid.begin(window[0]), pyramid.end(window[1])
    kick = case.normal(network.config.D)
    x_cnD = run.x_RLD[:1, K:end].repeat(1 + end, 1, 1)
    new, old = torch.arange(end - K, device=case.at), torch.arange(K, device=case.at)
    x_cnD[1 + K + new, new] += kick
    cache = GrowingCache()
    if K:
        for layer, (k_RHLc, v_RHLc) in run.cache.layers.items():
            k_cHKc, v_cHKc = (t[:1, :, :K].repeat(1 + end, 1, 1, 1) for t in (k_RHLc, v_RHLc))
            v_cHKc[1 + old, :, old] += kick[: v_cHKc.shape[-1]]
            cache.layers[layer] = (k_cHKc, v_cHKc)
    # halves are no halves here: what guidance between blocks mixes is no column of a mask
    every = replace(condition.rows(torch.zeros(1 + end, dtype=torch.int64, device=case.at)), guidance=None)
    hidden_cnD = network.hidden(x_cnD, every, cache, mask_11nK, case.steps.positions(network, *window))
    rows_cnV: Tensor = network.logits(hidden_cnD, every).unflatten(1, (end - K, -1)).flatten(2)  # draws of a position
    return (rows_cnV[1:] - rows_cnV[:1]).abs().amax(-1)


@law("masks.future", "decode", "attention_mask", "next_input")
@torch.inference_mode()
def future(subject: Subject, case: Case) -> bool:
    """Logits of a scale are those of a run whose tokens of that scale and later ones are others."""
    decoded = subject.decode(case)
    shown = shown_tensors(decoded)
    pyramid, looked = case.pyramid, 0
    for si in pyramid:
        other_BL = decoded.tokens_BL.clone()
        begin = pyramid.draws.begin(si)
        other_BL[:, begin:] = (other_BL[:, begin:] + 1) % case.V
        if not (rows := case.request.rows_of(*decided_whole(decoded, case.B, si))):
            continue
        looked += 1
        run = run_over(case.models.target, case.models.vae, case, other_BL)
        span = pyramid.draws.span(si)
        moved = float((shown.rows_RLV[rows, span] - run.rows_RLV[rows, span]).abs().max())
        most = SEEN if case.exact else allowed(case).rows
        require(moved <= most, f"logits of scale {si} hold tokens of scale {si} or later: moved by {moved:.3g}")
    return looked > 0 and several(decoded, pyramid.S)
