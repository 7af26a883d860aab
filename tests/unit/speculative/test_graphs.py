"""Recorded decodes without a GPU: a workspace whose "graphs" run the first closure again, at the first addresses.

What CUDA does to recorded work is done here by hand: outputs have fixed tensors, those of all other work are spoiled
before every replay unless they are lasting, and the Python of the work runs while recording only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError, NonFiniteError
from harness.protocol._request import Request
from harness.protocol._trace import Intermediates
from harness.protocol.pyramid import ScalePyramid
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from harness.speculative.tools._graphs import Workspace
from tests.toy import toy_pair

MODELS = toy_pair(ScalePyramid((1, 2, 3, 4)), 12, seed=1, apart=0.4)
REQUESTS = [
    Request((0,), 0), Request((0, 1, 0), 1), Request((1,), 2, order="batch"), Request((1, 0, 1), 3, cfg=4.0, top_k=5),
    Request((0, 1, 1), 4, top_p=0.9), Request((1, 1, 0), 5), Request((0,), 6, cfg=4.0), Request((1,), 7),
]  # fmt: skip


def tensors(made: Any) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    if is_dataclass(made):
        return [tensor for field in fields(made) for tensor in tensors(getattr(made, field.name))]
    return [tensor for item in made for tensor in tensors(item)] if isinstance(made, list | tuple) else []


@dataclass
class Replay:
    """The first closure once more, into the first outputs."""

    workspace: Emulated
    compute: Callable[[], Any]
    outputs: Any
    lasting: bool

    def replay(self) -> None:
        for other in self.workspace.made:
            if other is not self and not other.lasting:
                for tensor in tensors(other.outputs):
                    tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        for fixed, fresh in zip(tensors(self.outputs), tensors(self.compute()), strict=True):
            fixed.copy_(fresh)


class Emulated(Workspace):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.made: list[Replay] = []

    def _record(self, once: Callable[[], None], compute: Callable[[], Any], lasting: bool) -> Any:
        for _ in range(3):
            once()  # the third in place of the recording, which computes nothing
        outputs = _copied(compute())
        self.made.append(Replay(self, compute, outputs, lasting))
        return self.made[-1], outputs

    def _recorded(self, compute: Callable[[], Any], lasting: bool) -> Any:
        kept = [*vars(self.buffers).values(), *(cache.kv for cache in self.caches.values())]
        before = [tensor.clone() for tensor in kept]
        recorded = super()._recorded(compute, lasting)
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(old)
        return recorded


def _copied(made: Any) -> Any:
    """Return the structure with tensors of its own, which may be spoiled."""
    if isinstance(made, Tensor):
        return made.clone()
    if is_dataclass(made) and not isinstance(made, type):
        return replace(made, **{field.name: _copied(getattr(made, field.name)) for field in fields(made)})
    return type(made)(_copied(item) for item in made) if isinstance(made, list | tuple) else made


class Graphed(SpeculativeDecoder):
    def _workspace(self, B: int, halves: int) -> Workspace:
        if (B, halves) not in self.workspaces:
            self.workspaces[B, halves] = Emulated(self.models, B, self.parts.new_cache, halves)
        return self.workspaces[B, halves]


def graphed(options: DecoderOptions) -> Graphed:
    decoder = Graphed(MODELS, options)  # refused on a CPU with graphs=True
    decoder.options = replace(options, graphs=True)
    return decoder


@pytest.mark.parametrize("draft_len", [1, 3, "dynamic", "1/3/2/1"])
@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize(
    "policy",
    ["coupled", "greedy", "rejection", "match:0.3+partial", "kl:0.5", "handoff:2", "collaborative:3", "code:2"],
)
def test_recorded_decodes_are_the_launched_ones(policy: str, bonus: bool, draft_len: int | str) -> None:
    options = DecoderOptions(draft_len, bonus, parse_policy(policy))
    eager, recorded = SpeculativeDecoder(MODELS, options), graphed(options)
    expected = [eager.decode(request, MODELS.noise(request)) for request in REQUESTS]
    actual = [recorded.decode(request, MODELS.noise(request)) for request in REQUESTS]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.tokens_BL, b.tokens_BL)
        assert torch.equal(a.f_hat_BCPP, b.f_hat_BCPP)
        assert a.rounds == b.rounds
        assert a.intermediates is not None
        assert b.intermediates is not None
        for name, tensor in a.intermediates.named().items():
            assert torch.equal(tensor.nan_to_num(7.0), b.intermediates.named()[name].nan_to_num(7.0)), name


def test_an_output_that_is_not_said_to_last_does_not() -> None:
    """The emulation spoils what a graph pool would: without its own pool the condition is lost."""

    class Forgetful(Emulated):
        def run(self, key: Any, compute: Any, lasting: bool = False) -> Any:
            return super().run(key, compute)

    decoder = graphed(DecoderOptions(2))
    decoder.workspaces[1, 2] = Forgetful(MODELS, 1, decoder.parts.new_cache)
    request = Request((0,), 0)
    with pytest.raises(NonFiniteError):
        decoder.decode(request, MODELS.noise(request))


def test_recorded_work_keeps_no_intermediates_and_reads_what_it_read() -> None:
    def alive() -> set[int]:
        gc.collect()
        return {id(thing) for thing in gc.get_objects() if type(thing) is Intermediates}

    before = alive()  # other tests have some
    decoder = graphed(DecoderOptions(2, policy=parse_policy("match:0.3")))
    for seed in range(6):
        request = Request((0, 1), seed)
        decoder.decode(request, MODELS.noise(request))
    assert alive() <= before
    for key, recorded in decoder.workspaces[2, 2].recorded.items():
        drawn = {stream for _, _, stream, _ in recorded.read}
        assert drawn == ({"token"} if key[0] in ("draft", "target") else set()), key


@pytest.mark.parametrize(("device", "said"), [("cpu", "need a CUDA device"), ("cuda:1", "on the first CUDA device")])
def test_graphs_are_refused_where_they_cannot_be_recorded(
    device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(MODELS), "device", property(lambda models: torch.device(device)))
    with pytest.raises(InputError, match=f"graphs=True: .*{said}"):
        SpeculativeDecoder(MODELS, DecoderOptions(2, graphs=True))
