"""Toy networks, every policy, and a decode of one request."""

from __future__ import annotations

from functools import lru_cache

from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.pyramid import ScalePyramid
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.toy import toy_pair

FOUR = ScalePyramid((1, 2, 3, 4))
REQUEST = Request((0, 1, 1, 0), 5)
EVERY = [
    "coupled", "greedy", "rejection", "match:0.5", "match:0.3+partial", "coupled-match:0.5", "topk-match:3:0.5",
    "kl:0.2", "kl:0.2+partial", "handoff:2", "collaborative:2", "code:2", "middle:1:3",
]  # fmt: skip


@lru_cache(maxsize=8)
def toys(apart: float = 0.5) -> ModelPair:
    return toy_pair(FOUR, 7, seed=2, apart=apart)


def decoded(
    policy: str, draft_len: int | str = 2, models: ModelPair | None = None, request: Request = REQUEST
) -> Trace:
    models = models or toys()
    decoder = SpeculativeDecoder(models, DecoderOptions(draft_len, policy=parse_policy(policy)))
    return decoder.decode(request, models.noise(request))
