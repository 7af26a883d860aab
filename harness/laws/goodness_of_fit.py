"""Whether images follow the target's law: an exact law on the smallest pyramids, and chi-square tests against it.

Promise: `p_value` is below x with probability at most about x when the images follow the law, whatever the law; it is
Bonferroni's over tests of the joint law and of its marginals, because a small bias shows in one token or one pair of
tokens long before it shows among all sequences. tests/meta/test_goodness_of_fit.py measures false alarms and power.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from harness.laws.case import Case
from harness.reference.enumerate import joint_law

LEAST = 5.0  # expected count of a cell, below which cells are pooled: the usual bound for chi-square


def sequences(V: int, L: int) -> Tensor:
    """Return tokens_NL of all N = V^L images, in lexicographic order."""
    return torch.tensor(list(itertools.product(range(V), repeat=L)))


def target_law(case: Case) -> Tensor:
    """Return law_N of `sequences`: the target's exact law of the first image of a case."""
    alone = replace(case, labels=case.labels[:1], order="image", device="cpu")  # few numbers, and float64: on the host
    law = joint_law(alone.models, alone.request)
    return torch.tensor(
        [law.get(tuple(tokens), 0.0) for tokens in sequences(case.V, case.pyramid.L).tolist()], dtype=torch.float64
    )


def p_value(tokens_BL: Tensor, law_N: Tensor, V: int) -> float:
    """Return the p-value of images under a law of their token sequences; 0 if one lies outside its support.

    Tests: the joint law, every token's own law, and every token's law together with the first token.
    """
    tokens_BL, L = tokens_BL.cpu(), tokens_BL.shape[1]
    tokens_NL = sequences(V, L)
    powers_L = V ** torch.arange(L - 1, -1, -1)
    counts_N = torch.bincount((tokens_BL * powers_L).sum(1), minlength=len(law_N)).double()
    if bool((counts_N[law_N == 0] > 0).any()):
        return 0.0
    groups = [[position] for position in range(L)] + [[0, position] for position in range(1, L)] + [list(range(L))]
    smallest = 1.0
    for group in groups:
        cell_N = (tokens_NL[:, group] * V ** torch.arange(len(group))).sum(1)
        counts, law = (
            torch.zeros(V ** len(group), dtype=torch.float64).index_add(0, cell_N, x) for x in (counts_N, law_N)
        )
        smallest = min(smallest, chi_square(counts, law))
    return min(1.0, len(groups) * smallest)


def chi_square(counts_N: Tensor, law_N: Tensor) -> float:
    """Return the p-value of observed counts under a law; cells below an expected count of `LEAST` are pooled."""
    expected_N, order = (law_N * counts_N.sum()).sort(descending=True)
    observed_N = counts_N[order].double()
    kept = int((expected_N >= LEAST).sum())
    while kept and 0 < float(expected_N[kept:].sum()) < LEAST:  # the pool itself is small: one more cell joins it
        kept -= 1
    expected = torch.cat((expected_N[:kept], expected_N[kept:].sum()[None]))
    observed = torch.cat((observed_N[:kept], observed_N[kept:].sum()[None]))
    expected, observed = expected[expected > 0], observed[expected > 0]
    if len(expected) < 2:
        return 1.0
    statistic = ((observed - expected).square() / expected).sum()
    half = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))
