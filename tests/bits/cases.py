"""What the fields of a law's case mean in the toy family."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from harness.laws import Case
from harness.laws._case import CaseFamily
from harness.models import ModelPair
from harness.protocol import Request
from harness.protocol.pyramid import ScalePyramid
from tests.bits.network import BitsCodec, BitsConfig, BitsNetwork, N, bits_network
from tests.bits.plain import TEXTS, guidance_of

CHANGE = {"close": 0.03, "near": 0.15, "single": 0.03}


def layout(patch_nums: tuple[int, ...]) -> ScalePyramid:
    """Return rectangles, lying and standing in turns."""
    sides = [(1, 1), *((pn, pn - 1) if k % 2 else (pn - 1, pn) for k, pn in enumerate(patch_nums[1:], 1))]
    return ScalePyramid(sides=tuple(sides), channels=N)


def bits_pair(pyramid: ScalePyramid, seed: int = 0, draft: str = "near", rounds: bool = False) -> ModelPair:
    """Return target, draft of one of the laws' qualities, and codec; float32."""
    target = bits_network(BitsConfig(pyramid, rounds=rounds), 1000 * seed)
    return ModelPair(_draft_of(target, draft, seed), target, BitsCodec({"size": torch.tensor(N**-0.5)}), "bits")


def _draft_of(target: BitsNetwork, quality: str, seed: int) -> BitsNetwork:
    if quality == "identical":
        return target
    if quality == "adversarial":
        negated = {name: -w if name.startswith("head.") else w for name, w in target.weights.items()}
        return replace(target, weights=negated)
    other, share = bits_network(target.config, 1000 * seed + 1).weights, CHANGE.get(quality, 1.0)
    mixed = {name: w * math.sqrt(1 - share * share) + share * other[name] for name, w in target.weights.items()}
    return replace(target, weights=mixed)


def request_of(case: Case) -> Request:
    pyramid, top_k = layout(case.patch_nums), min(case.top_k, 2)
    filters = tuple((top_k, case.top_p if si % 2 else 0.0) for si in pyramid) if case.top_p else ()
    return Request(
        case.labels, case.seed, top_k=top_k, top_p=case.top_p, order=case.order, texts=TEXTS,
        scale_guidance=guidance_of(case.cfg, pyramid), filters=filters,
    )  # fmt: skip


CASES = CaseFamily(
    lambda case: layout(case.patch_nums),
    lambda case: bits_pair(layout(case.patch_nums), case.weights, case.draft),
    request_of,
    lambda case, cfg, pyramid: guidance_of(cfg, pyramid),
)
