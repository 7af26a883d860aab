"""From a wrong tensor to the component that made it.

Promise: the tensors of a scale are compared in the order in which they are computed (input, rows, guided, token,
f_hat), so the first one that differs names the component; where the decoder exposes no intermediates it says so.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.judge._evidence import Evidence, Named, WrongTensor
from harness.judge._inputs import MODES, wrong_input
from harness.judge._rounded import guided_in_fewer_bits, in_fewer_bits, rounding_of
from harness.judge._rows import FILTERED, wrong_rows
from harness.judge._suspects import drafted_f_hats, made_of_other_tokens, with_scale
from harness.models import product_dtype
from harness.protocol import Guidance, ScaleGuidance, largest_factor
from harness.reference import family_of, filter_logits
from harness.rounding import Budget

# The input is a sum of embeddings and one linear map of C terms: rounding leaves a few units in the last place of the
# largest term; in float32, where two kernels may sum C terms in another order, up to 64 of them.
INPUT_ULPS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}
# Two products, a difference and the rounding of t, in any order.
GUIDANCE_ULPS = 8

WrongTensors = dict[int, WrongTensor | None]  # the first one of every row of the batch
INPUT, ROWS, GUIDED, F_HAT = range(4)  # what is compared of a scale, in the order in which it is computed
KINDS = "inputs", "logits", "guided logits", "values of f_hat"


def first_wrong(evidence: Evidence) -> WrongTensors:
    """Return the first wrong tensor of every image; None where every tensor agrees, or intermediates are not shown."""
    wrong: WrongTensors = dict.fromkeys(range(evidence.request.B))
    places = _disagreeing(evidence, evidence.models.pyramid)
    for si, image, which in sorted((si, image, which) for image, (si, which) in places.items()):
        wrong[image] = first = _explained(evidence, image, si, which)
        if first.component != "precision":
            evidence = replace(evidence, is_exact=True)  # whatever is wrong in the batch, it is not its precision
    return wrong


def first_wrong_of(evidence: Evidence, image: int, scales: Iterable[int]) -> WrongTensor | None:
    """Return the first wrong tensor of one image at some scales, if any; None where intermediates are not shown."""
    place = _disagreeing(evidence, scales).get(image)
    return None if place is None else _explained(evidence, image, *place)


@torch.inference_mode()
def _disagreeing(evidence: Evidence, scales: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return the scale of every image's first wrong tensor, and which it is; without target tensors f_hat alone."""
    actual, expected, scales = evidence.actual.intermediates, evidence.expected.intermediates, list(scales)
    if actual is None or expected is None or not scales:
        return {}
    pyramid, B = evidence.models.pyramid, evidence.request.B
    agree, error_B, steps_B = [], _input_error(evidence), _steps(evidence)
    for si in scales:
        span, draws = pyramid.span(si), pyramid.draws.span(si)
        x, expected_x = (_halves(each.x_RLD, B)[:, :, span] for each in (actual, expected))
        rows, expected_rows = (_halves(each.rows_RLV, B)[:, :, draws] for each in (actual, expected))
        agree_4B = torch.stack((
            _close(x, expected_x, error_B + (steps_B if si == 0 else 0)),
            _same_rows(rows, expected_rows, evidence.budget),
            _is_guided(evidence, actual.guided_BLV[:, draws], rows, si),
            _close(actual.f_hat_SBCPP[si], expected.f_hat_SBCPP[si], evidence.f_hat_error),
        ))  # fmt: skip
        agree_4B[:F_HAT, [image for image, alone in enumerate(evidence.unverified) if si in alone]] = True
        agree.append(agree_4B)
    places: dict[int, tuple[int, int]] = {}
    for k, which, image in torch.nonzero(~torch.stack(agree)).tolist():  # the one wait for the device
        places.setdefault(image, (scales[k], which))
    return places


def _halves(tensor_RLx: Tensor, B: int) -> Tensor:
    """Return rows as (2, B, L, x): conditional, then unconditional where these run; a view."""
    halves: Tensor = tensor_RLx.unflatten(0, (-1, B))
    return halves


def _explained(evidence: Evidence, image: int, si: int, which: int) -> WrongTensor:
    """Return what a tensor is that is wrong, the first one of its image."""
    shown, pyramid = evidence.actual.shown, evidence.models.pyramid
    draws, rows = pyramid.draws.span(si), evidence.request.rows_of(image)
    for name, place in (("x_RLD", pyramid.span(si)), ("rows_RLV", draws)) if which in (INPUT, ROWS) else ():
        tensor = getattr(shown, name)[rows, place]
        if not bool(torch.isfinite(tensor).all()):
            if bool(tensor.isnan().all()) and bool(shown.guided_BLV[image, draws].isfinite().all()):
                detail = f"{name} of scale {si} was never written, though guided logits of that scale were"
                return WrongTensor(si, "trace", detail)
            is_low = tensor.isneginf()
            filters = name == "rows_RLV" and any(evidence.request.filter(si)) and not bool(is_low.all())
            if filters and bool((tensor.isfinite() | is_low).all()):
                return WrongTensor(si, "filter", f"logits of scale {si} hold -inf: {FILTERED}")
            return WrongTensor(si, "scheduling", f"{name} of scale {si} is not finite or was never written")
    (setting, task), searches = evidence.decode, evidence.searches
    at = si, task, image
    if searches is not None and (known := searches.known(setting, which, at)) is not None:
        taken = "not searched: taken for what the first ones of this kind were"
        return WrongTensor(si, known, f"{KINDS[which]} of scale {si} differ; {taken}", which == F_HAT)
    if which == INPUT:
        error_B = _input_error(evidence) + (_steps(evidence) if si == 0 else 0)
        named = wrong_input(evidence, image, si, float(error_B[image]))
    else:
        named = {ROWS: wrong_rows, GUIDED: _wrong_guided, F_HAT: _wrong_f_hat}[which](evidence, image, si)
    if searches is not None:
        searches.add(setting, which, at, named[0])
    return WrongTensor(si, *named, which == F_HAT)


def _wrong_guided(evidence: Evidence, image: int, si: int) -> Named:
    """Return component and clause of guided logits that are not those of their rows."""
    shown, pyramid, one = evidence.actual.shown, evidence.models.pyramid, slice(image, image + 1)
    spans = {scale: pyramid.draws.span(scale) for scale in (si, pyramid.S - 1)}
    halves = {scale: _halves(shown.rows_RLV, evidence.request.B)[:, one, span] for scale, span in spans.items()}
    guided, what = shown.guided_BLV[one, spans[si]], f"guided logits of scale {si}"
    if guided.isneginf().any() and _is_guided(evidence, guided, halves[si], si, of_finite=True):
        return "filter", f"{what} hold -inf: they must be shown as they are before the filter"
    expected = _guided(evidence, halves[si], si)
    shift_bl1 = (guided - expected).mean(-1, keepdim=True)
    # one number a row, which no draw sees; as finely as the reference computes: rounding to fewer bits is no shift
    error = GUIDANCE_ULPS * torch.finfo(expected.dtype).eps * float(guided.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    if bool(((guided - expected - shift_bl1).abs() <= error).all()) and bool((shift_bl1.abs() > error).any()):
        detail = f"{what} are right but for a number a row, as after a log-softmax"
        return "trace", f"{detail}: they must be shown as guidance makes them"
    right_blV, (top_k, top_p) = (guided - expected).abs() <= error, evidence.request.filter(si)
    for filters in {(top_k, top_p), (top_k, 0.0), (0, top_p)} - {(0, 0.0)}:
        kept_blV = filter_logits(halves[si], *filters).isfinite().all(0)
        if bool((right_blV | ~kept_blV).all()) and bool(kept_blV.any(-1).all()):
            return "filter", f"{what} are those of their rows where the filter keeps both, and no others: {FILTERED}"
    if word := guided_in_fewer_bits(evidence, guided[0], halves[si][:, 0], si):
        return "precision", f"{what} are combined in {word}"
    # whether the halves explain it the last scale tells, too, since scale 0 has no weight
    fits, fits_last = (
        bool(_is_guided(evidence, shown.guided_BLV[one, span], halves[scale].flip(0), scale))
        for scale, span in ((si, spans[si]), (pyramid.S - 1, spans[pyramid.S - 1]))
    )
    swapped = "halves swapped, unconditional half first" if fits_last or si else "the unconditional half alone"
    why = swapped if fits else _weights(evidence, guided, halves[si], si) or "weight or halves"
    return "guidance", f"{what} are not those of their rows: {why}"


def _weights(evidence: Evidence, guided_blV: Tensor, rows_2blV: Tensor, si: int) -> str:
    """Say with which weights guided logits combine their rows, and which are due; empty where no weights give them."""
    rows_n2, guided_n1 = (each.double().cpu() for each in (rows_2blV.flatten(1).mT, guided_blV.flatten()[:, None]))
    if not bool(guided_n1.isfinite().all()):
        return ""
    weight_21 = torch.zeros_like(guided_n1[:2])
    for _ in range(2):  # where halves differ in size, the first leaves more than is allowed
        weight_21 += torch.linalg.lstsq(rows_n2, guided_n1 - rows_n2 @ weight_21).solution
    # as `_is_guided` has it, of these weights
    error = GUIDANCE_ULPS * guidance_ulp(evidence) * max(1.0, float(weight_21.abs().max()))
    if not bool(((rows_n2 @ weight_21 - guided_n1).abs() <= error * rows_n2.abs().sum(1, keepdim=True)).all()):
        return ""
    due = _guided(evidence, torch.eye(len(weight_21), dtype=torch.double)[:, None, None], si)
    for decimals in (3, 6, 9):  # as few as tell them from those that are due
        if (found := _combined(weight_21, decimals)) != _combined(due, decimals):
            due_said = _due(evidence.request.guidance, evidence.models.pyramid.ramp(si), si, decimals)
            return f"they are {found}; {due_said} is due{', as where t is rounded to fewer bits' * (decimals == 9)}"
    return ""


def _combined(weights: Tensor, decimals: int) -> str:
    conditional, *unconditional = (round(weight, decimals) for weight in weights.flatten().tolist())
    others = (f" {'−' if w <= 0 else '+'} {abs(w):.12g}·uncond" for w in unconditional)
    return f"{conditional:.12g}·cond{''.join(others)}"


def _due(guidance: Guidance, ramp: float, si: int, decimals: int) -> str:
    """Write how guidance of a scale combines rows; `ramp` is si/(S-1), and `decimals` tell it from what is not due."""
    if isinstance(guidance, ScaleGuidance):
        w = guidance.weights[si] if 0 in guidance.places else 1.0
        return f"(w·cond + (1 − w)·uncond)/τ with w = {w:g} and τ = {guidance.temperature(si):g}"
    return f"(1 + t)·cond − t·uncond with t = cfg·si/(S−1) = {round(guidance * ramp, max(6, decimals)):.12g}"


def _wrong_f_hat(evidence: Evidence, image: int, si: int) -> Named:
    """Return component and clause of an f_hat that is wrong after scale `si`."""
    models, what = evidence.models, f"f_hat after scale {si}"
    (found, own_before), (after, before) = (
        (f_hats[si], f_hats[si - 1] if si else torch.zeros_like(f_hats[0]))
        for f_hats in (side.shown.f_hat_SBCPP[:, image : image + 1] for side in (evidence.actual, evidence.expected))
    )
    if evidence.request.more_smooth:
        f_hat = with_scale(evidence, own_before, evidence.actual.tokens_BL[image, models.pyramid.draws.span(si)], si)
        if bool(_close(found, f_hat, 2 * evidence.budget.f_hat)):
            return "f_hat", f"{what} is that of the tokens: more_smooth has no effect"
    word = rounding_of(evidence, image, si, lambda shown, row: shown.f_hat_SBCPP[si, row])
    if word := word or in_fewer_bits(evidence, found, after):
        return "precision", f"{what} is the right one, rounded to {word}"
    later = evidence.actual.shown.f_hat_SBCPP[si + 1 :, image : image + 1]
    right_later = evidence.expected.shown.f_hat_SBCPP[si + 1 :, image : image + 1]
    is_later = any(bool(_close(found, each, evidence.f_hat_error)) for each in right_later)
    if len(later) and torch.equal(found, later[0]) and is_later:
        return "f_hat", f"{what} is shown as that after scale {si + 1} is: one tensor, to which later scales are added"
    for clause, f_hat in made_of_other_tokens(evidence, image, si, before):
        if bool(_close(found, f_hat, evidence.f_hat_error)):
            return "f_hat", f"{what} is that of {clause}, not of its tokens"
    for component, clause, f_hat in _other_codes(evidence, image, si, before) if models.pyramid.channels > 1 else ():
        if bool(_close(found, f_hat, evidence.f_hat_error)):
            return component, f"{what} differs: {clause}"
    if (scale := stale_scale(evidence, image, max(si - 1, 0), found[0])) is not None:
        return "f_hat", f"{what} is the one after scale {scale}: what later scales add is missing"
    found, before, after = found.double(), before.double(), after.double()  # a decoder may show another dtype
    added = (found - before).flatten() @ (after - before).flatten() / (after - before).square().sum()
    residue = (found - before - added * (after - before)).abs().max()
    if residue <= 1e-3 * (after - before).abs().max() and round(float(added), 3) != 1:
        return "f_hat", f"{what} differs: the scale's contribution was added {round(float(added), 3):zg} times"
    finals = ((f"f_hat after scale {k}", each) for k, each in enumerate(evidence.expected.shown.f_hat_SBCPP[:, image]))
    for clause, start in chain([("zeros", 0 * before)], finals, drafted_f_hats(evidence, image, si)):
        if bool(_close(found, start + (after - before), evidence.f_hat_error)):
            due = f"that after scale {si - 1}" if si else "zeros"
            return "f_hat", f"{what} starts from {clause}, not from {due}"
    return "f_hat", f"{what} differs: codes, their resize or the sum"


def stale_scale(evidence: Evidence, image: int, end: int, f_hat_CPP: Tensor) -> int | None:
    """Return the last scale before `end` after which an image's f_hat is this one; None where it never is."""
    if evidence.expected.intermediates is None:
        return None
    known_SCPP = evidence.expected.shown.f_hat_SBCPP[:end, image]
    same = torch.nonzero(_close(f_hat_CPP, known_SCPP, evidence.f_hat_error)).flatten().tolist()
    return max(same, default=None)


def _other_codes(evidence: Evidence, image: int, si: int, before: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (component, clause, f_hat) of a position's bits in another order, and of codes resized otherwise."""
    models, quantizer, C = evidence.models, evidence.models.vae.quantizer, evidence.models.vae.config.C
    (h, w), family, N = models.pyramid.sides[si], family_of(models.target), models.pyramid.channels
    bits_hwN = evidence.actual.tokens_BL[image, models.pyramid.draws.span(si)].view(h, w, N)
    orders = {
        "from the last channel to the first": bits_hwN.flip(-1),
        "channel by channel, not position by position": bits_hwN.flatten().view(N, h, w).permute(1, 2, 0),
        "column by column": bits_hwN.reshape(w, h, N).transpose(0, 1),
        "with 0 and 1 exchanged": 1 - bits_hwN,
    }
    if N == 4 * C:
        patch_hwCij = bits_hwN.unflatten(-1, (C, 2, 2))
        orders["with rows and columns of a patch exchanged"] = patch_hwCij.mT.flatten(2)
        orders["with a patch's place before its channel"] = bits_hwN.unflatten(-1, (4, C)).mT.flatten(2)
    for clause, bits in orders.items():
        codes = quantizer.codes(bits.reshape(1, -1), h, w)
        yield "bits", f"bits are taken {clause}", family.accumulate(before, codes, si, quantizer, models.pyramid)
    for mode in MODES if si < models.pyramid.S - 1 else ():
        codes = F.interpolate(quantizer.codes(bits_hwN.reshape(1, -1), h, w), size=before.shape[-2:], **MODES[mode])
        yield "resize", f"codes are resized by {mode}, not by {family.resize}", before + codes


# Each of these answers for every image of a batch, so that one image is judged as a batch is.


def guidance_ulp(evidence: Evidence) -> float:
    """Return how finely guidance may be asked to compute: as the networks do, whatever dtype the decoder shows.

    It may show numbers of a wider dtype than it computed them in, and of a narrower one down to that of the networks:
    never so coarse that a mistake would be within it.
    """
    shown, expected = (side.shown.guided_BLV.dtype for side in (evidence.actual, evidence.expected))
    finest, coarsest = (torch.finfo(dtype).eps for dtype in (expected, product_dtype(evidence.models.target)))
    return min(max(torch.finfo(shown).eps, finest), max(coarsest, finest))


def _guided(evidence: Evidence, rows_2blV: Tensor, si: int) -> Tensor:
    """Return the guidance of rows (spec §7)."""
    guide, S = family_of(evidence.models.target).guide, evidence.models.pyramid.S
    return guide(rows_2blV.flatten(0, 1), evidence.request.guidance, si, S)


def _is_guided(evidence: Evidence, guided_blV: Tensor, rows_2blV: Tensor, si: int, of_finite: bool = False) -> Tensor:
    """Compare with the guidance of the decoder's own rows; `of_finite` leaves guided logits of -inf out."""
    guidance, ramp = evidence.request.guidance, evidence.models.pyramid.ramp(si)
    # of the largest term in any usual form; that of u + (1+t)·(c − u) is u, even where t = 0 leaves c alone
    error = GUIDANCE_ULPS * guidance_ulp(evidence) * largest_factor(guidance, ramp, si) * rows_2blV.abs().sum(0)
    agree_blV = (guided_blV - _guided(evidence, rows_2blV, si)).abs() <= error
    return (agree_blV | guided_blV.isneginf() if of_finite else agree_blV).all(dim=(1, 2))


def _close(actual: Tensor, expected: Tensor, error: Tensor | float) -> Tensor:
    """Compare (2, b, l, D) or (b, C, P, P), an error an image or one for all; NaN compares False."""
    if isinstance(error, Tensor):
        return ((actual - expected).abs() <= error[:, None, None]).all(dim=(0, 2, 3))
    return ((actual - expected).abs() <= error).flatten(1).all(1)


def _same_rows(actual_2blV: Tensor, expected_2blV: Tensor, budget: Budget) -> Tensor:
    """Both sides may be one budget away from float64, at worst and on average; NaN compares False."""
    difference = (actual_2blV - expected_2blV).abs()
    worst_b, rms_b = difference.amax(dim=(0, 2, 3)), difference.square().mean(dim=(0, 2, 3)).sqrt()
    return (worst_b <= 2 * budget.rows) & (rms_b <= 2 * budget.rows_rms)


def _input_error(evidence: Evidence) -> Tensor:
    """Return the largest error of every image's input, but for `_steps` at scale 0."""
    dtype, halves = product_dtype(evidence.models.target), _halves(evidence.expected.shown.x_RLD, evidence.request.B)
    relative = max(2 * evidence.budget.f_hat, INPUT_ULPS[dtype] * torch.finfo(dtype).eps)
    return relative * halves.abs().amax(dim=(0, 2, 3)).clamp_min(1.0).float()


def _steps(evidence: Evidence) -> Tensor:
    """Return by how much what the law rounds of an image's condition may move its input of scale 0."""
    models, request = evidence.models, evidence.request
    even = models.unrounded()
    if even is models:
        return torch.zeros(request.B, device=models.device)
    labels_B, family = evidence.numbers.labels(models.target.config.classes), family_of(models.target)
    x, even_x = (
        family.input(network, family.condition(network, request, labels_B), None, 0)
        for network in (models.target, even.target)
    )
    moved_B: Tensor = (x - even_x).abs().unflatten(0, (-1, request.B)).amax(dim=(0, 2, 3)).float()
    return moved_B
