"""A decode leaves nothing behind: no other weights, no request or numbers that changed, no memory."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.speculative._policies import parse_policy
from harness.speculative.parts import PARTS
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, peak_bytes
from tests.helpers import Layout, digits, tiny
from tests.unit.speculative.toys import EVERY, FOUR, decoded, toys


def snapshot(models: ModelPair) -> dict[str, Tensor]:
    sides = {"draft": models.draft, "target": models.target, "vae": models.vae}
    return {f"{side}.{name}": w.clone() for side, network in sides.items() for name, w in network.weights.items()}


@pytest.mark.parametrize("policy", EVERY)
def test_a_decode_changes_neither_networks_nor_request_nor_numbers(policy: str):
    models, request = tiny(Layout((1, 2, 3, 4))), Request((0, 1), 4)
    before, asked, noise = snapshot(models), copy.deepcopy(request), models.noise(request)
    SpeculativeDecoder(models, DecoderOptions(2, policy=parse_policy(policy))).decode(request, noise)
    after, fresh = snapshot(models), models.noise(request)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert request == asked
    for si in FOUR:
        for stream in ("token", "draft", "correct"):
            assert torch.equal(noise.exponential(si, stream, "test"), fresh.exponential(si, stream, "test"))


class PlannedError(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("name", [field.name for field in fields(PARTS)])
def test_an_exception_in_any_part_leaves_the_models_reusable(name: str):
    models, request = tiny(Layout((1, 2, 3, 4))), Request((0, 1), 4)
    before, clean = snapshot(models), decoded("rejection", 2, models, request)
    calls = 0

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > at:
            raise PlannedError
        return getattr(PARTS, name)(*given, **named)

    failures = 0
    for point in range(12):
        calls, at = 0, point
        decoder = SpeculativeDecoder(
            models, DecoderOptions(2, policy=parse_policy("rejection")), replace(PARTS, **{name: failing})
        )
        try:
            decoder.decode(request, models.noise(request))
        except PlannedError:
            failures += 1
        at = sys.maxsize
        again = decoder.decode(request, models.noise(request))
        assert torch.equal(again.tokens_BL, clean.tokens_BL)
    assert failures >= 1
    assert all(torch.equal(before[key], now) for key, now in snapshot(models).items())


class Fragile:
    """A network whose pass `name` fails from its `at`-th call on, in the middle of the decoder's round."""

    def __init__(self, network: Any, name: str, at: int) -> None:
        self.network, self.name, self.left = network, name, at

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            self.left -= 1
            if self.left < 0:
                raise PlannedError
        return getattr(self.network, name)


@pytest.mark.parametrize("side", ["draft", "target"])
@pytest.mark.parametrize("name", ["hidden", "logits"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_exception_in_a_pass_leaves_the_models_reusable(side: str, name: str, at: int):
    models, request = tiny(Layout((1, 2, 3, 4))), Request((0, 1), 4)
    before, clean = snapshot(models), decoded("coupled", 1, models, request)
    broken: Any = {side: Fragile(getattr(models, side), name, at)}
    with pytest.raises(PlannedError):
        decoded("coupled", 1, replace(models, **broken), request)
    assert torch.equal(decoded("coupled", 1, models, request).tokens_BL, clean.tokens_BL)
    assert all(torch.equal(before[key], now) for key, now in snapshot(models).items())


def test_the_peak_of_the_cache_is_the_formula_and_is_given_back():
    models, request = digits(), Request((0, 1, 2), 0)
    trace = SpeculativeDecoder(models, DecoderOptions(5, policy=parse_policy("match:0"))).decode(
        request, models.noise(request)
    )
    for side, network in (("draft", models.draft), ("target", models.target)):
        depth, D, L, B = network.config.depth, network.config.D, network.pyramid.L, 3
        assert trace.cache_bytes[side] == depth * D * L * 2 * B * 2 * 4


def test_two_hundred_decodes_leave_nothing_behind():
    models, request = toys(), Request((0, 1), 5)
    decoder = SpeculativeDecoder(models, DecoderOptions(2, policy=parse_policy("rejection")))

    def held() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for _ in range(3):  # masks and guidance weights are kept on purpose
        decoder.decode(request, models.noise(request))
    before = held()
    for _ in range(200):
        decoder.decode(request, models.noise(request))
    assert held() == before


def test_the_memory_of_a_process_is_its_own_not_that_of_who_started_it():
    held = torch.ones(3 * 2**26)  # 768 MiB, which a fork would count as the child's
    script = "import torch; from harness.speculative.sampler import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert 2**27 < int(done.stdout) < held.numel() * 4
    assert peak_bytes(held.device) > held.numel() * 4
