"""What a wrong decoder is called, in a few decodes of tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from harness.decoders._factory import Factory
from harness.models._pair import ModelPair, close_pair
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import SeededNoise
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny, verify_here

STRANGERS = tiny(Layout((1, 2, 3, 4)), kin=float("inf"))  # hardly a drafted scale is accepted
MODELS = close_pair(tiny(Layout((1, 2, 3, 4))), 0.1)
REQUESTS = [Request((0, 2, 1), seed) for seed in range(2)]


def first(bug: Factory, models: ModelPair = MODELS, draft_len: int = 3) -> tuple[str, str]:
    found = verify_here(models, bug, [Settings(draft_len)], REQUESTS).first_divergence
    assert found is not None
    return found.component, found.detail


def within(context: Callable[[], AbstractContextManager[Any]], change: Callable[[ModelPair], ModelPair]) -> Factory:
    """Return a factory of right decoders that compute otherwise, and show float32."""

    def factory(models: ModelPair, settings: Settings) -> Any:
        inner = build_decoder(change(models), settings)

        def decode(request: Request, noise: SeededNoise) -> Trace:
            with context():
                made = inner.decode(request, noise)
            shown = made.intermediates
            wide = {name: tensor.to(models.target.dtype) for name, tensor in shown.named().items()}
            return replace(made, intermediates=replace(shown, **wide), f_hat_BCPP=made.f_hat_BCPP.float())

        return SimpleNamespace(contract=inner.contract, decode=decode)

    return factory
