"""Laws of streams: that the numbers have the law that they claim, and that nobody bends them on the way."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import Case
from harness.laws._enumeration import chi_square
from harness.laws._law import NotOffered, Subject, law
from harness.laws._oracle import noting
from harness.protocol import ORDERS, Contract, NoiseOrder, Request
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN, SeededNoise
from harness.protocol.pyramid import ScalePyramid

_STREAMS = (TOKEN, DRAFT, ACCEPT, CORRECT)
_SIDES, _WIDE_V, _ALARM = ScalePyramid((1, 2, 3, 4, 5, 6)), 16, 1e-6
# |correlation| of N independent pairs exceeds 6/√N with a chance of 2e-9 (normal approximation, N >= 90 here).
_SIGMAS = 6.0
# Edges of probability: twenty in the middle, and tails down to one in ten thousand.
_EDGES = (1e-4, 1e-3, 1e-2, *(k / 20 for k in range(1, 20)), 0.99, 0.999, 0.9999)


def _noise(case: Case, order: NoiseOrder, seed: int, V: int = _WIDE_V, pyramid: ScalePyramid = _SIDES) -> SeededNoise:
    return SeededNoise(Request((0, 1), seed, order=order), pyramid, V, case.at)


def _read(noise: SeededNoise, si: int, stream: str) -> Tensor:
    """Return numbers of [0, 1), (B, some), of one scale and stream."""
    if stream == ACCEPT:
        return noise.uniform(si, stream, "law").double().flatten(1)
    return -torch.expm1(-noise.exponential(si, stream, "law").double()).flatten(1)


def _related(one: Tensor, other: Tensor) -> bool:
    n = min(len(one), len(other))
    one, other = one[:n], other[:n]
    if n < 90:
        return n > 1 and bool((one == other).all())
    r = torch.corrcoef(torch.stack((one, other)))[0, 1]
    return not abs(float(r)) < _SIGMAS / n**0.5


def _far_seeds(seed: int, order: NoiseOrder, stream: str) -> list[tuple[int, int]]:
    """Return pairs of seeds that a narrower number takes for one: 32 bits, signed or not, and what a float64 holds."""
    if order == "batch" and stream == TOKEN:
        # the published order seeds PyTorch's generator with the seed itself, and that on CPU takes its low 32 bits
        return [(seed, seed + 2**31)]
    return [(seed, seed + 2**31), (seed, seed + 2**32), (seed, seed + 2**62), (2**63 - 1 - seed, 2**63 - 2 - seed)]


@law("streams.independent", "noise")
def independent(subject: Subject, case: Case) -> bool:
    """Streams, images, scales and seeds share no numbers, in either order; an image alone has its own."""
    alone = SeededNoise(Request((0,), case.seed, images=(1,)), _SIDES, _WIDE_V, case.at)
    for stream in _STREAMS:
        one_N, batch_BN = (_read(noise, 5, stream) for noise in (alone, _noise(case, "image", case.seed)))
        require(torch.equal(one_N[0], batch_BN[1]), f"{stream}: image 1 alone has other numbers than in a batch")
    for order in ORDERS:
        for stream in _STREAMS:
            for pair in _far_seeds(case.seed, order, stream):
                one, two = (torch.cat([_read(_noise(case, order, s), si, stream)[0] for si in _SIDES]) for s in pair)
                said = f"{order} order: {stream} of seeds {pair[0]} and {pair[1]} holds the same numbers"
                require(not _related(one, two), said)
        noise, other = _noise(case, order, case.seed), _noise(case, order, case.seed + 1)
        named, of_scales = dict[str, Tensor](), dict[str, Tensor]()
        for stream in _STREAMS:
            # one vector an image: what stands at equal places of two streams would be read for one another
            numbers_BN = torch.cat([_read(noise, si, stream) for si in _SIDES], 1)
            named |= {f"{stream} of image {image}": numbers_BN[image] for image in range(2)}
            named[f"{stream} of seed + 1"] = torch.cat([_read(other, si, stream)[0] for si in _SIDES])
            of_scales |= {f"{stream} of scale {si}": _read(noise, si, stream)[0] for si in (4, 5)}
        for (a, one), (b, two) in (*combinations(named.items(), 2), *combinations(of_scales.items(), 2)):
            require(not _related(one, two), f"{order} order: {a} and {b} hold the same numbers")
    return True


@law("streams.law", "noise")
def _distributions(subject: Subject, case: Case) -> bool:
    """Exponentials are Exp(1) and acceptance numbers uniform, tails included."""
    order: NoiseOrder = case.order
    for stream in _STREAMS:
        V = 1024 if stream != ACCEPT else 2
        sources = [_noise(case, order, 50 * case.seed + k, V) for k in range(1 if stream != ACCEPT else 60)]
        numbers_N = torch.cat([_read(noise, si, stream).flatten() for noise in sources for si in _SIDES])
        require(bool(((numbers_N >= 0) & (numbers_N <= 1)).all()), f"{stream}: a number outside [0, 1]")
        edges = torch.tensor(_EDGES, dtype=torch.float64, device=case.at)
        counts = torch.bincount(torch.bucketize(numbers_N, edges), minlength=len(_EDGES) + 1).double().cpu()
        law_N = torch.tensor([b - a for a, b in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True)], dtype=torch.float64)
        p = chi_square(counts, law_N)
        require(p >= _ALARM, f"{stream}, {order} order: {len(numbers_N)} numbers have another law: p = {p:.2g}")
        # none of N numbers below 20/N: a chance of e^-20
        least = 20 / len(numbers_N)
        low, high = float(numbers_N.min()), float(numbers_N.max())
        require(low < least and high > 1 - least, f"{stream}, {order} order: numbers end at {low:.2g} and {high:.8g}")
    return True


@law("streams.used", "decode", "noise")
def used(subject: Subject, case: Case) -> bool:
    """What draws and acceptance tests are given is what the noise holds, number by number."""
    noise = case.noise()
    raced, tested = list[Tensor](), list[Tensor]()
    decoder = subject.spied(case, draw=noting(raced, 1), keep_drafted=noting(tested, 0))
    decoder.decode(case.request, noise)
    rows = set()
    for stream in (TOKEN, DRAFT, CORRECT):
        for si in case.pyramid:
            rows |= {row.tobytes() for row in noise.exponential(si, stream, "law").flatten(0, 1).cpu().numpy()}
    for E_BnV in raced:
        for row_V in E_BnV.flatten(0, 1).float().cpu().numpy():
            require(row_V.tobytes() in rows, f"a draw was given {row_V.tolist()[:4]}, which the noise does not hold")
    if tested:
        uniform = {float(u) for si in case.pyramid for u in noise.uniform(si, ACCEPT, "law").flatten().tolist()}
        for u_Bn in tested:
            foreign = [u for u in u_Bn.flatten().tolist() if u not in uniform]
            require(not foreign, f"an acceptance test was given {foreign[:4]}, which the noise does not hold")
    return bool(raced)


@law("streams.once", "noise", policies=("rejection",))
def once(subject: Subject, case: Case) -> bool:
    """Under contract B no number decides twice: where a token was rejected, the draw in its place takes fresh ones."""
    # with a draft length of 1, so that no scale is drafted twice
    raced, case = list[Tensor](), replace(case, draft_len=1, bonus=False)
    decoder: Any = subject.spied(case, draw=noting(raced, 1))
    if decoder.contract != Contract.LAW:
        raise NotOffered("tokens follow the numbers")
    decoder.decode(case.request, case.noise())
    rows = [row_V.tobytes() for E_BnV in raced for row_V in E_BnV.flatten(0, 1).float().cpu().numpy()]
    twice = len(rows) - len(set(rows))
    require(not twice, f"{twice} of {len(rows)} draws take numbers that another one took")
    return len(raced) > case.pyramid.S


@law("streams.starts", "noise")
def starts(subject: Subject, case: Case) -> bool:
    """Over many seeds the first numbers of two streams are unrelated.

    No two generators start from one seed.
    """
    small = ScalePyramid((1,))
    for order in ORDERS:
        sources = [_noise(case, order, 1000 * case.seed + k, 2, small) for k in range(120)]
        firsts = {s: torch.stack([_read(noise, 0, s)[0, 0] for noise in sources]) for s in _STREAMS}
        for (a, one), (b, two) in combinations(firsts.items(), 2):
            require(not _related(one, two), f"{order} order: the first numbers of {a} and {b} go together")
    return True
