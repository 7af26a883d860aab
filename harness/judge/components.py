"""From a wrong tensor to the component that made it.

Promise: the tensors of a scale are compared in the order in which they are computed (input, rows, guided, token,
f_hat), so the first one that differs names the component; where the decoder exposes no intermediates it says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judge.evidence import Evidence
from harness.judge.suspects import behind_drafts, other_row, wrong_label
from harness.protocol.trace import Intermediates
from harness.rounding.budget import Budget

# The input is a sum of embeddings and one linear map of C terms: rounding leaves a few units in the last place of the
# largest term; in float32, where two kernels may sum C terms in another order, up to 64 of them.
INPUT_ULPS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4}
# Two products, a difference and the rounding of t, in any order.
GUIDANCE_ULPS = 8


def first_wrong(evidence: Evidence, image: int) -> tuple[int, str, str] | None:
    """Return (scale, component, detail) of the first wrong tensor of one image; None when every tensor agrees.

    Args:
        evidence: both traces, with intermediates.
        image: index in the batch.
    """
    actual, expected = evidence.actual.intermediates, evidence.expected.intermediates
    if actual is None or expected is None:
        return None
    for si in evidence.models.pyramid:
        unseen = bool(evidence.unverified) and si in evidence.unverified[image]
        check = wrong_f_hat_at if unseen else wrong_at
        found = check(evidence, actual, expected, image, si)
        if found is not None:
            return si, *found
    return None


def wrong_at(
    evidence: Evidence, actual: Intermediates, expected: Intermediates, image: int, si: int
) -> tuple[str, str] | None:
    """Return (component, detail) of the first wrong tensor of one image at one scale; None when all agree."""
    pyramid, B = evidence.models.pyramid, evidence.request.B
    span, rows = pyramid.span(si), [image, B + image]
    for name in ("x_RLD", "rows_RLV"):
        if not bool(torch.isfinite(getattr(actual, name)[rows, span]).all()):
            return "scheduling", f"{name} of scale {si} is not finite or was never written"
    if not _close(actual.x_RLD[rows, span], expected.x_RLD[rows, span], _input_error(expected.x_RLD, evidence.budget)):
        return _wrong_input(evidence, actual, expected, image, si)
    budget = evidence.budget
    rows_actual, rows_expected = actual.rows_RLV[rows, span], expected.rows_RLV[rows, span]
    if not _same_rows(rows_actual, rows_expected, budget):
        if _same_rows(rows_actual.flip(0), rows_expected, budget):
            return "guidance", f"rows of scale {si} are swapped: unconditional half first"
        if (found := _misplaced(rows_actual, expected.rows_RLV[:, span], rows, 2 * budget.rows, si)) is not None:
            return found
        if (found_label := wrong_label(evidence, actual, image, si)) is not None:
            return "condition", found_label
        return _wrong_rows(evidence, image, si)
    guided = actual.guided_BLV[image, span]
    conditional, unconditional = rows_actual
    t = evidence.request.cfg * pyramid.ramp(si)
    if not _is_guided(guided, conditional, unconditional, t):
        swapped = _is_guided(guided, unconditional, conditional, t)
        why = "unconditional half first" if swapped else "weight or halves"
        return "guidance", f"guided logits of scale {si} are not those of their rows: {why}"
    return wrong_f_hat_at(evidence, actual, expected, image, si)


def wrong_f_hat_at(
    evidence: Evidence, actual: Intermediates, expected: Intermediates, image: int, si: int
) -> tuple[str, str] | None:
    """Return ("f_hat", detail) where one image's f_hat after scale `si` is wrong; None where it agrees."""
    f_hat = actual.f_hat_SBCPP[si, image]
    if not _close(f_hat, expected.f_hat_SBCPP[si, image], 2 * evidence.budget.f_hat):
        return "f_hat", f"f_hat after scale {si} differs: {_wrong_f_hat(expected, image, si, f_hat)}"
    return None


def _is_guided(guided_lV: Tensor, conditional_lV: Tensor, unconditional_lV: Tensor, t: float) -> bool:
    """Compare with the guidance of the decoder's own rows (spec §7): no network in between, so rounding is tiny."""
    due = (1 + t) * conditional_lV - t * unconditional_lV
    # of the largest term in any usual form; that of u + (1+t)·(c − u) is u, even where t = 0 leaves c alone
    scale = (1 + abs(t)) * (conditional_lV.abs() + unconditional_lV.abs())
    return bool(((guided_lV - due).abs() <= GUIDANCE_ULPS * torch.finfo(due.dtype).eps * scale).all())


def _close(actual: Tensor, expected: Tensor, error: float) -> bool:
    return bool(((actual - expected).abs() <= error).all())  # NaN compares False


def _same_rows(actual: Tensor, expected: Tensor, budget: Budget) -> bool:
    """Both sides may be one budget away from float64, at worst and on average; NaN compares False."""
    difference = (actual - expected).abs()
    rms = difference.square().mean().sqrt()
    return bool((difference <= 2 * budget.rows).all() and rms <= 2 * budget.rows_rms)


def _input_error(expected_x_RLD: Tensor, budget: Budget) -> float:
    dtype = expected_x_RLD.dtype
    relative = max(2 * budget.f_hat, INPUT_ULPS[dtype] * torch.finfo(dtype).eps)
    return relative * max(1.0, float(expected_x_RLD.abs().max()))


def _wrong_input(
    evidence: Evidence, actual: Intermediates, expected: Intermediates, image: int, si: int
) -> tuple[str, str]:
    """The input is embed(raw) + position term: what is left without embed(raw) tells which of the two is wrong."""
    pyramid, network, B = evidence.models.pyramid, evidence.models.target, evidence.request.B
    span, error = pyramid.span(si), _input_error(expected.x_RLD, evidence.budget)
    rows = [image, B + image]
    halves = [_close(actual.x_RLD[row, span], expected.x_RLD[row, span], error) for row in rows]
    if (misplaced := _misplaced(actual.x_RLD[rows, span], expected.x_RLD[:, span], rows, error, si)) is not None:
        return misplaced
    if si == 0:
        return "condition", f"the input of scale 0 is not that of its label{_half(halves)}"
    if any(halves):
        return "rows", f"the input of scale {si} is wrong{_half(halves)}"
    own_lD = network.lvl_SD[si] + network.pos_LD[span]
    left_lD = actual.x_RLD[image, span] - (expected.x_RLD[image, span] - own_lD)
    # [level, row, position]: how far a row is from that position's term, each row free to sit anywhere
    distance_SlL = torch.stack([_cdist(left_lD - level_D, network.pos_LD) for level_D in network.lvl_SD])
    nearest_l, level_l = distance_SlL.amin(2).min(0)
    if bool((nearest_l <= error).all()):
        row_l = torch.arange(len(level_l), device=level_l.device)
        position_l = distance_SlL[level_l, row_l].argmin(1)
        found = f"{int(position_l[0])}..{int(position_l[-1])} with level {_span(level_l)}"
        return "positions", f"inputs of scale {si} sit at positions {found}, not {span.start}..{span.stop - 1}"
    if behind_drafts(evidence, actual.x_RLD[image, span], image, si, error):
        detail = f"scale {si} was made final behind tokens of scale {si - 1} that its input does not hold"
        return "accept", detail
    return "query", f"the input of scale {si} is not that of its f_hat"


def _misplaced(
    actual_2lX: torch.Tensor, expected_RlX: torch.Tensor, rows: list[int], error: float, si: int
) -> tuple[str, str] | None:
    """Tell whether a guidance row holds what belongs to another one: halves mixed, or images."""
    B = len(expected_RlX) // 2
    for own, actual_lX in zip(rows, actual_2lX, strict=True):
        other = other_row(actual_lX, expected_RlX, own, error)
        if other is None:
            continue
        if (own < B) != (other < B):
            return "rows", f"guidance row {own} of scale {si} holds what belongs to row {other}, of the other half"
        if si:  # the input of scale 0 is its label's: another image's is a wrong condition
            return "rows", f"guidance row {own} of scale {si} holds what belongs to row {other}"
    return None


def _half(right: list[bool]) -> str:
    """Say which guidance half is wrong where the other one is right."""
    return {(True, False): " in the unconditional row alone", (False, True): " in the conditional row alone"}.get(
        (right[0], right[1]), ""
    )


def _cdist(actual_lD: Tensor, pos_LD: Tensor) -> Tensor:
    """Largest difference of every row from every position; in float32, since CUDA has no such kernel in bfloat16."""
    wide = torch.promote_types(actual_lD.dtype, torch.float32)
    return torch.cdist(actual_lD.to(wide), pos_LD.to(wide), p=float("inf"))


def _span(level_l: Tensor) -> str:
    low, high = int(level_l.min()), int(level_l.max())
    return str(low) if low == high else f"{low}..{high}"


def _wrong_rows(evidence: Evidence, image: int, si: int) -> tuple[str, str]:
    """Inputs agree and logits do not: the pass saw the wrong keys. A pass over one scale needs no mask."""
    for turn in evidence.actual.rounds[image] if evidence.actual.rounds else []:
        if turn.first <= si < turn.first + turn.finished:
            if turn.drafted + turn.bonus == 1 and turn.target_rows <= evidence.models.pyramid.tokens(si):
                return "cache", f"logits of scale {si}, alone in its pass, differ: keys or values of earlier scales"
            last = max(si, turn.first + turn.drafted - 1)
            return "mask or cache", f"logits of scale {si} differ in the pass over scales {turn.first}..{last}"
    return "mask or cache", f"logits of scale {si} differ while its inputs agree"


def _wrong_f_hat(expected: Intermediates, image: int, si: int, f_hat: Tensor) -> str:
    after = expected.f_hat_SBCPP[si, image]
    before = expected.f_hat_SBCPP[si - 1, image] if si else torch.zeros_like(after)
    added = (f_hat - before).flatten() @ (after - before).flatten() / (after - before).square().sum()
    residue = (f_hat - before - added * (after - before)).abs().max()
    if residue <= 1e-3 * (after - before).abs().max():
        return f"the scale's contribution was added {float(added):.3g} times"
    return "accumulation"
