"""How equal two right computations are in a case: to float64's rounding, or within what the networks' dtype explains.

Promise: where a case is exact nothing but `FLOAT64` is allowed; elsewhere tensors differ by measured budgets at most,
and tokens by certified ties alone, as in `verify`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.judge import INPUT_ULPS, exponentials, margin_bound, margins_of_differing_tokens, require
from harness.laws._case import Case
from harness.laws._law import FLOAT64, NotOffered, require_tokens
from harness.models import product_dtype
from harness.protocol import Request
from harness.reference import teacher_forced
from harness.rounding import quick_budget


@dataclass(frozen=True)
class Allowed:
    """Largest differences, absolute, by the names that laws give tensors."""

    x: float  # of network inputs
    rows: float  # of logits before guidance
    f_hat: float  # of f_hat
    guided: float  # of guided logits over their own rows


def allowed(case: Case) -> Allowed:
    """Return what a case allows; measured once a process and network (`rounding.measure.quick_budget`)."""
    if case.exact:
        return Allowed(FLOAT64, FLOAT64, FLOAT64, FLOAT64)
    budget = quick_budget(case.models)
    dtype = product_dtype(case.models.target)
    eps = torch.finfo(dtype).eps
    # inputs of these networks are sums of terms of size 10 at most
    x = 10 * max(2 * budget.f_hat, INPUT_ULPS[dtype] * eps)
    return Allowed(x, 2 * budget.rows, 2 * budget.f_hat, 64 * eps * (1 + 2 * abs(case.cfg)) * 10)


def needs_exact(case: Case, why: str) -> None:
    """Raise `NotOffered` where a law means nothing but in float64."""
    if not case.exact:
        raise NotOffered(f"{case.dtype} networks: {why}")


def require_draws(case: Case, request: Request, actual_BL: Tensor, expected_BL: Tensor, where: str) -> None:
    """Raise `Broken` unless two decodes of one request have the same tokens.

    Where the case is not exact the first scale in which an image differs may hold certified ties: float64 cannot tell
    either token from the best one. What comes after it has another prefix, and is not compared.
    """
    if case.exact or actual_BL.shape != expected_BL.shape:
        require_tokens(actual_BL, expected_BL, where)
        return
    models, pyramid = case.models, case.pyramid
    noise, budget = models.noise(request), quick_budget(models)
    labels_B = noise.labels(models.target.config.classes)
    wide = models.wide()
    for image in torch.nonzero((actual_BL != expected_BL).any(1)).flatten().tolist():
        differ_n = torch.nonzero(actual_BL[image] != expected_BL[image]).flatten()
        si, one = pyramid.draws.level_of(int(differ_n[0])), slice(image, image + 1)
        _, exact_1nV, _ = teacher_forced(wide.target, wide.vae, request, labels_B[one], expected_BL[one], si + 1)
        position_n = differ_n[differ_n < pyramid.draws.end(si)]
        exact_nV, row_n = exact_1nV[0, position_n], torch.full_like(position_n, image)
        allowed = budget.guided(request.guidance, pyramid.ramp(si), si).logits
        allowed_n = torch.full(position_n.shape, allowed, dtype=torch.float64)
        E_nV = exponentials(noise, pyramid, row_n, position_n)
        sides = [tokens_BL[image, position_n] for tokens_BL in (actual_BL, expected_BL)]
        of_scale = request.at(si)
        margins = [
            margins_of_differing_tokens(exact_nV, E_nV, token_n, of_scale, allowed_n).margin_N for token_n in sides
        ]
        rows = torch.stack(sides, 1).tolist(), torch.stack(margins, 1).tolist()
        for position, *pairs in zip(position_n.tolist(), *rows, strict=True):
            for token, margin in zip(*pairs, strict=True):
                said = f"{where}: image {image}, position {position}: token {token} loses by {margin:.3g}, no tie"
                require(margin <= margin_bound(allowed), said)
