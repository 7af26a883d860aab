"""From a wrong tensor to the component that made it.

Promise: the tensors of a scale are compared in the order in which they are computed (input, rows, guided, token,
f_hat), so the first one that differs names the component; where the decoder exposes no intermediates it says so.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.judge._evidence import Evidence, WrongTensor
from harness.judge._inputs import MODES, wrong_input
from harness.judge._rounded import guided_in_fewer_bits, rounding_of
from harness.judge._rows import wrong_rows
from harness.models import product_dtype
from harness.protocol import Intermediates, largest_factor
from harness.reference import family_of
from harness.rounding import Budget

# The input is a sum of embeddings and one linear map of C terms: rounding leaves a few units in the last place of the
# largest term; in float32, where two kernels may sum C terms in another order, up to 64 of them.
INPUT_ULPS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}
# Two products, a difference and the rounding of t, in any order.
GUIDANCE_ULPS = 8


WrongTensors = dict[int, WrongTensor | None]  # the first one of every row of the batch


def first_wrong(evidence: Evidence) -> WrongTensors:
    """Return the first wrong tensor of every image; None where every tensor agrees, or intermediates are not shown."""
    actual, expected = evidence.actual.intermediates, evidence.expected.intermediates
    if actual is None or expected is None:
        return dict.fromkeys(range(evidence.request.B))
    agree = _agree_SB(evidence, actual, expected).T.tolist()  # the one wait for the device
    wrong: WrongTensors = dict.fromkeys(range(evidence.request.B))
    for b in sorted((b for b, agree_S in enumerate(agree) if not all(agree_S)), key=lambda b: agree[b].index(False)):
        wrong[b] = first = first_wrong_of(evidence, b, evidence.models.pyramid)
        if first is not None and first.component != "precision":
            evidence = replace(evidence, is_exact=True)  # whatever is wrong in the batch, it is not its precision
    return wrong


def first_wrong_of(evidence: Evidence, image: int, scales: Iterable[int]) -> WrongTensor | None:
    """Return the first wrong tensor of one image at some scales, if any; None where intermediates are not shown."""
    actual, expected = evidence.actual.intermediates, evidence.expected.intermediates
    if actual is None or expected is None:
        return None
    for si in scales:
        unverified = bool(evidence.unverified) and si in evidence.unverified[image]
        check = wrong_f_hat_at if unverified else wrong_at
        wrong = check(evidence, actual, expected, image, si)
        if wrong is not None:
            return wrong
    return None


@torch.inference_mode()
def _agree_SB(evidence: Evidence, actual: Intermediates, expected: Intermediates) -> Tensor:
    """Tell of every scale of every image whether all its tensors agree, by the checks of `wrong_at`."""
    pyramid, budget, B = evidence.models.pyramid, evidence.budget, evidence.request.B
    every_error_B = _input_error(evidence, _halves(expected.x_RLD, B, slice(None), slice(None)))
    steps_B = _steps(evidence)
    error = evidence.f_hat_error
    agree, ulp, every = [], guidance_ulp(evidence, actual, expected), slice(None)
    for si in pyramid:
        span, draws = pyramid.span(si), pyramid.draws.span(si)
        x, expected_x = (_halves(each.x_RLD, B, every, span) for each in (actual, expected))
        rows, expected_rows = (_halves(each.rows_RLV, B, every, draws) for each in (actual, expected))
        error_B = every_error_B + (steps_B if si == 0 else 0)
        agree_B = _close(x, expected_x, error_B) & _same_rows(rows, expected_rows, budget)
        agree_B &= _is_guided(evidence, actual.guided_BLV[:, draws], rows, si, ulp)
        for image, scales in enumerate(evidence.unverified):
            if si in scales:
                agree_B[image] = True
        agree.append(agree_B & _close(actual.f_hat_SBCPP[si], expected.f_hat_SBCPP[si], error))
    return torch.stack(agree)


def _halves(tensor_RLx: Tensor, B: int, images: slice, span: slice) -> Tensor:
    """Return the rows of some images as (2, b, l, x): conditional, then unconditional where these run; a view."""
    halves: Tensor = tensor_RLx.unflatten(0, (-1, B))  # (R, L, x) -> (R/B, B, L, x)
    return halves[:, images, span]


def wrong_at(
    evidence: Evidence, actual: Intermediates, expected: Intermediates, image: int, si: int
) -> WrongTensor | None:
    """Return the first wrong tensor of one image at one scale; None when all agree."""
    pyramid, budget = evidence.models.pyramid, evidence.budget
    span, draws, one, B = pyramid.span(si), pyramid.draws.span(si), slice(image, image + 1), evidence.request.B
    for name, place in (("x_RLD", span), ("rows_RLV", draws)):
        shown = _halves(getattr(actual, name), B, one, place)
        if not bool(torch.isfinite(shown).all()):
            if bool(shown.isnan().all()) and bool(actual.guided_BLV[image, draws].isfinite().all()):
                detail = f"{name} of scale {si} was never written, though guided logits of that scale were"
                return WrongTensor(si, "trace", detail)
            return WrongTensor(si, "scheduling", f"{name} of scale {si} is not finite or was never written")
    error_b = _input_error(evidence, _halves(expected.x_RLD, B, one, slice(None)))
    error_b = error_b + (_steps(evidence)[one] if si == 0 else 0)
    if not _close(_halves(actual.x_RLD, B, one, span), _halves(expected.x_RLD, B, one, span), error_b):
        return wrong_input(evidence, image, si, float(error_b))
    rows, expected_rows = _halves(actual.rows_RLV, B, one, draws), _halves(expected.rows_RLV, B, one, draws)
    if not _same_rows(rows, expected_rows, budget):
        return wrong_rows(evidence, image, si)
    guided, ulp = actual.guided_BLV[one, draws], guidance_ulp(evidence, actual, expected)
    if not _is_guided(evidence, guided, rows, si, ulp):
        if guided.isneginf().any() and _is_guided(evidence, guided, rows, si, ulp, of_finite=True):
            detail = f"guided logits of scale {si} hold -inf: they must be shown as they are before the filter"
            return WrongTensor(si, "filter", detail)
        if _is_shifted(evidence, guided, rows, si):
            detail = f"guided logits of scale {si} are right but for a number a row, as after a log-softmax"
            return WrongTensor(si, "trace", f"{detail}: they must be shown as guidance makes them")
        word = guided_in_fewer_bits(evidence, guided[0], rows[:, 0], si)
        if word:
            return WrongTensor(si, "precision", f"guided logits of scale {si} are combined in {word}")
        why = _wrong_halves(evidence, actual, image, si, ulp)
        return WrongTensor(si, "guidance", f"guided logits of scale {si} are not those of their rows: {why}")
    return wrong_f_hat_at(evidence, actual, expected, image, si)


def _wrong_halves(evidence: Evidence, actual: Intermediates, image: int, si: int, ulp: float) -> str:
    """Say which half is whose where that explains guided logits; the last scale tells, since scale 0 has no weight."""
    pyramid, one, B = evidence.models.pyramid, slice(image, image + 1), evidence.request.B
    fits = []
    for scale in (si, pyramid.S - 1):
        guided = actual.guided_BLV[one, pyramid.draws.span(scale)]
        rows = _halves(actual.rows_RLV, B, one, pyramid.draws.span(scale)).flip(0)
        fits.append(bool(_is_guided(evidence, guided, rows, scale, ulp)))
    if fits[0] and (fits[1] or si):
        return "halves swapped, unconditional half first"
    return "the unconditional half alone" if fits[0] else "weight or halves"


def wrong_f_hat_at(
    evidence: Evidence, actual: Intermediates, expected: Intermediates, image: int, si: int
) -> WrongTensor | None:
    """Return what is wrong with one image's f_hat after scale `si`; None where it agrees."""
    f_hat, one = actual.f_hat_SBCPP[si, image], slice(image, image + 1)
    if not _close(actual.f_hat_SBCPP[si, one], expected.f_hat_SBCPP[si, one], evidence.f_hat_error):
        if evidence.request.more_smooth and _is_of_tokens(evidence, image, si):
            detail = f"f_hat after scale {si} is that of the tokens: more_smooth has no effect"
            return WrongTensor(si, "f_hat", detail)
        word = rounding_of(evidence, image, si, lambda shown, row: shown.f_hat_SBCPP[si, row])
        if word:
            return WrongTensor(si, "precision", f"f_hat after scale {si} is the right one, rounded to {word}")
        if evidence.models.pyramid.channels > 1 and (known := _other_codes(evidence, expected, image, si)) is not None:
            return known
        return WrongTensor(si, "f_hat", f"f_hat after scale {si} differs: {_wrong_f_hat(expected, image, si, f_hat)}")
    return None


def _other_codes(evidence: Evidence, expected: Intermediates, image: int, si: int) -> WrongTensor | None:
    """Tell whether an f_hat is that of a position's bits in another order, or of codes that were resized otherwise."""
    models, after = evidence.models, expected.f_hat_SBCPP[si, image : image + 1]
    (h, w), family, N = models.pyramid.sides[si], family_of(models.target), models.pyramid.channels
    before = expected.f_hat_SBCPP[si - 1, image : image + 1] if si else torch.zeros_like(after)
    bits_hwN = evidence.actual.tokens_BL[image, models.pyramid.draws.span(si)].view(h, w, N)
    orders = {
        "from the last channel to the first": bits_hwN.flip(-1),
        "channel by channel, not position by position": bits_hwN.flatten().view(N, h, w).permute(1, 2, 0),
        "column by column": bits_hwN.reshape(w, h, N).transpose(0, 1),
        "with 0 and 1 exchanged": 1 - bits_hwN,
    }
    C = models.vae.config.C
    if N == 4 * C:
        patch_hwCij = bits_hwN.unflatten(-1, (C, 2, 2))
        orders["with rows and columns of a patch exchanged"] = patch_hwCij.mT.flatten(2)
        orders["with a patch's place before its channel"] = bits_hwN.unflatten(-1, (4, C)).mT.flatten(2)
    made = {f"bits are taken {clause}": ("bits", bits.reshape(1, -1), "") for clause, bits in orders.items()}
    for mode in MODES if si < models.pyramid.S - 1 else ():
        made[f"codes are resized by {mode}, not by {family.resize}"] = ("resize", bits_hwN.reshape(1, -1), mode)
    for clause, (component, bits_1l, mode) in made.items():
        codes = models.vae.quantizer.codes(bits_1l, h, w)
        if mode:
            f_hat = before + F.interpolate(codes, size=after.shape[-2:], mode=mode)
        else:
            f_hat = family.accumulate(before, codes, si, models.vae.quantizer, models.pyramid)
        if bool(_close(evidence.actual.shown.f_hat_SBCPP[si, image : image + 1], f_hat, evidence.f_hat_error)):
            return WrongTensor(si, component, f"f_hat after scale {si} differs: {clause}")
    return None


def _is_of_tokens(evidence: Evidence, image: int, si: int) -> bool:
    """Tell whether an image's f_hat after a scale is that of its tokens, where soft codes were asked for."""
    models, shown, one = evidence.models, evidence.actual.intermediates, slice(image, image + 1)
    assert shown is not None
    before = shown.f_hat_SBCPP[si - 1, one] if si else torch.zeros_like(shown.f_hat_SBCPP[0, one])
    codes = models.vae.quantizer.codes(
        evidence.actual.tokens_BL[one, models.pyramid.draws.span(si)], *models.pyramid.sides[si]
    )
    f_hat = family_of(models.target).accumulate(before, codes, si, models.vae.quantizer, models.pyramid)
    return bool(_close(shown.f_hat_SBCPP[si, one], f_hat, 2 * evidence.budget.f_hat))


# Each of these takes some images and answers for every one of them, so that one image is judged as a batch is.


def guidance_ulp(evidence: Evidence, actual: Intermediates, expected: Intermediates) -> float:
    """Return how finely guidance may be asked to compute: as the networks do, whatever dtype the decoder shows.

    It may show numbers of a wider dtype than it computed them in, and of a narrower one down to that of the networks:
    never so coarse that a mistake would be within it.
    """
    own = product_dtype(evidence.models.target)
    finest, coarsest = (torch.finfo(dtype).eps for dtype in (expected.guided_BLV.dtype, own))
    return min(max(torch.finfo(actual.guided_BLV.dtype).eps, finest), max(coarsest, finest))


def _is_guided(
    evidence: Evidence, guided_blV: Tensor, rows_2blV: Tensor, si: int, ulp: float, of_finite: bool = False
) -> Tensor:
    """Compare with the guidance of the decoder's own rows (spec §7); `of_finite` leaves guided logits of -inf out."""
    guidance, pyramid = evidence.request.guidance, evidence.models.pyramid
    expected_blV = family_of(evidence.models.target).guide(rows_2blV.flatten(0, 1), guidance, si, pyramid.S)
    # of the largest term in any usual form; that of u + (1+t)·(c − u) is u, even where t = 0 leaves c alone
    scale = largest_factor(guidance, pyramid.ramp(si), si) * rows_2blV.abs().sum(0)
    error = GUIDANCE_ULPS * ulp * scale
    agree_blV = (guided_blV - expected_blV).abs() <= error
    return (agree_blV | guided_blV.isneginf() if of_finite else agree_blV).all(dim=(1, 2))


def _is_shifted(evidence: Evidence, guided_blV: Tensor, rows_2blV: Tensor, si: int) -> bool:
    """Tell whether guided logits are those of their rows but for one number a row, which no draw sees."""
    guidance, pyramid = evidence.request.guidance, evidence.models.pyramid
    expected_blV = family_of(evidence.models.target).guide(rows_2blV.flatten(0, 1), guidance, si, pyramid.S)
    far_blV = guided_blV - expected_blV
    shift_bl1 = far_blV.mean(-1, keepdim=True)
    # as finely as the reference computes: rounding to fewer bits is no shift
    error = GUIDANCE_ULPS * torch.finfo(expected_blV.dtype).eps * float(guided_blV.abs().amax())
    return bool(((far_blV - shift_bl1).abs() <= error).all()) and bool((shift_bl1.abs() > error).any())


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


def _input_error(evidence: Evidence, expected_2bLD: Tensor) -> Tensor:
    """Return the largest error of every image's input."""
    dtype = product_dtype(evidence.models.target)
    relative = max(2 * evidence.budget.f_hat, INPUT_ULPS[dtype] * torch.finfo(dtype).eps)
    return relative * expected_2bLD.abs().amax(dim=(0, 2, 3)).clamp_min(1.0).float()


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


def _wrong_f_hat(expected: Intermediates, image: int, si: int, f_hat: Tensor) -> str:
    after = expected.f_hat_SBCPP[si, image]
    before = expected.f_hat_SBCPP[si - 1, image] if si else torch.zeros_like(after)
    f_hat, before, after = f_hat.double(), before.double(), after.double()  # a decoder may show another dtype
    added = (f_hat - before).flatten() @ (after - before).flatten() / (after - before).square().sum()
    residue = (f_hat - before - added * (after - before)).abs().max()
    if residue <= 1e-3 * (after - before).abs().max() and round(float(added), 3) != 1:
        return f"the scale's contribution was added {round(float(added), 3):zg} times"
    return "accumulation"
