"""Two samples of tokens: do a decoder and sequential decoding under other seeds follow one law, scale by scale?

Bets on the tokens' law see more with fewer images (docs/evidence.md, whose table this is for).

Promise: images are the units, since tokens of one image hang together; under one law a p-value below x comes with
probability x about, and `Tokens.p` is Bonferroni's over all `tests` of a decoder
(tests/scripts/test_two_samples.py measures false alarms and power).

How: image k of both samples has one label and independent numbers, so that under one law swapping the two changes
nothing. The statistic is the chi-square of two samples, over cells of (position, token) and over cells of tokens alone;
its law under random swaps has a mean that is known and a variance that is measured, and Welch and Satterthwaite's
scaled chi-square has the same two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from harness.protocol.pyramid import ScalePyramid

SWAPS = 200  # the variance is then known to a tenth
SMALL = 1e-5  # a decoder whose p is below it has another law; the scaled chi-square is no good guide much farther out
CHUNK = 2**24  # numbers in hand at once


@dataclass(frozen=True)
class Tokens:
    """What the tests of a decoder came to."""

    p_S: list[float]  # smallest p-value of every scale, of its two tests
    p: float  # of the decoder: the smallest of all, times their number
    scale: int  # where it is met
    tests: int  # how many there were

    def __str__(self) -> str:
        return f"p = {self.p:.2g} (smallest of {self.tests} tests, times {self.tests}; scale {self.scale})"


def compare_samples(
    actual_NL: Tensor, expected_NL: Tensor, pyramid: ScalePyramid, V: int, generator: torch.Generator
) -> Tokens:
    """Return the two-sample tests of every scale; images of one label each, the swaps' generator on the CPU."""
    sign_WN = torch.randint(0, 2, (SWAPS, len(actual_NL)), generator=generator).float() * 2 - 1
    sign_WN = sign_WN.to(actual_NL.device)
    p_S = []
    for si in pyramid:
        a_Nl, b_Nl = (tokens_NL[:, pyramid.draws.span(si)].long() for tokens_NL in (actual_NL, expected_NL))
        place_l = torch.arange(a_Nl.shape[1], device=a_Nl.device) * V
        p_values = [p_value(a_Nl + place_l, b_Nl + place_l, sign_WN)]
        if si:  # one position has no other cells
            p_values.append(p_value(a_Nl, b_Nl, sign_WN))
        p_S.append(min(p_values))
    tests = 2 * pyramid.S - 1
    scale = min(range(len(p_S)), key=lambda si: p_S[si])
    return Tokens(p_S, min(1.0, tests * p_S[scale]), scale, tests)


def p_value(a_Nl: Tensor, b_Nl: Tensor, sign_WN: Tensor) -> float:
    """Return the p-value of two samples of cells (int64), image by image; a swap's sign is -1 where sides change."""
    cells, which = torch.unique(torch.cat((a_Nl, b_Nl)), return_inverse=True)
    count_K = torch.bincount(which.flatten(), minlength=len(cells))
    weight_K, bags = 1 / count_K.double(), _bags(which[: len(a_Nl)], which[len(a_Nl) :], count_K)
    observed = float(_statistic(bags, torch.ones_like(sign_WN[:1]), weight_K)[0])
    few = max(1, CHUNK // len(cells))  # swaps at a time
    swapped_W = torch.cat([_statistic(bags, swaps_WN, weight_K) for swaps_WN in sign_WN.split(few)])
    mean, variance = float(swapped_W.mean()), float(swapped_W.var())
    if mean == 0 or variance <= 1e-12 * mean**2:  # the two samples are one, or no swap changes anything
        return 1.0
    scale = variance / mean
    shape = torch.tensor(mean / scale, dtype=torch.float64)
    return float(torch.special.gammaincc(shape, torch.tensor(observed / scale, dtype=torch.float64)))


def _bags(a_Nl: Tensor, b_Nl: Tensor, count_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images that fill every cell, cell by cell, where each begins, and +1 or -1 by their sample."""
    N, l = a_Nl.shape
    image_M = torch.arange(N, device=a_Nl.device).repeat_interleave(l).repeat(2)
    order_M = torch.cat((a_Nl.flatten(), b_Nl.flatten())).argsort()  # (2·N·l,)
    side_M = torch.where(order_M < N * l, 1.0, -1.0)
    return image_M[order_M], count_K.cumsum(0) - count_K, side_M


def _statistic(bags: tuple[Tensor, Tensor, Tensor], sign_WN: Tensor, weight_K: Tensor) -> Tensor:
    """Return the chi-square of two samples after each swap; counts are exact in float32 below 2^24."""
    image_M, begin_K, side_M = bags
    fuller_KW = embedding_bag(image_M, sign_WN.T.contiguous(), begin_K, mode="sum", per_sample_weights=side_M)
    return weight_K @ fuller_KW.double().square()
