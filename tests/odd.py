"""Decoders that look odd: right ones that a careless judge accuses, and wrong ones that look as they do.

`--implementation tests.odd:NAME` names a factory. All claim the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness import Intermediates, ModelPair, Request, Round, SeededNoise, Settings, Trace, build_decoder

After = Callable[["Odd", Trace], Trace]


class Odd:
    """The harness's own decoder, and what is done with its trace."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, after: After) -> None:
        self.models, self.after = models, after
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        return self.after(self, self.inner.decode(request, noise))


class Marked(Tensor):
    """A tensor of somebody's own class, which answers as it likes."""

    def all(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(True)


def _factory(after: After) -> Callable[[ModelPair, Settings], Odd]:
    return lambda models, settings: Odd(models, settings, after)


def _shows(change: Callable[[Trace], Trace]) -> Callable[[ModelPair, Settings], Odd]:
    return _factory(lambda odd, trace: change(trace))


def _all_shown(trace: Trace, change: Callable[[Tensor], Tensor]) -> Trace:
    assert trace.intermediates is not None
    tensors = {name: change(tensor) for name, tensor in trace.intermediates.named().items()}
    return replace(trace, intermediates=Intermediates(**tensors))


def _guided(trace: Trace, change: Callable[[Tensor], Tensor]) -> Trace:
    shown = trace.intermediates
    assert shown is not None
    return replace(trace, intermediates=replace(shown, guided_BLV=change(shown.guided_BLV)))


def _marked(trace: Trace) -> Trace:
    trace = _all_shown(trace, lambda tensor: tensor.as_subclass(Marked))
    return replace(trace, f_hat_BCPP=torch.nn.Parameter(trace.f_hat_BCPP, requires_grad=False))


def _wrong(trace: Trace) -> Trace:
    tokens_BL = trace.tokens_BL.clone()
    tokens_BL[0, -1] = (tokens_BL[0, -1] + 1) % 5
    return replace(trace, tokens_BL=tokens_BL)


def _flags_as_numbers(trace: Trace) -> Trace:
    """Say yes and no by 1 and 0, and one by yes."""
    rounds = [
        [replace(turn, corrected=int(turn.corrected), bonus=int(turn.bonus), kept=False) for turn in turns]
        for turns in trace.rounds
    ]
    return replace(trace, rounds=rounds, target_calls=[True if n == 1 else n for n in trace.target_calls])


def _leaves(change: Callable[[], object]) -> Callable[[ModelPair, Settings], Odd]:
    """Leave the process changed after the decode."""
    return _factory(lambda odd, trace: (trace, change())[0])


def _writes(side: str, name: str) -> Callable[[ModelPair, Settings], Odd]:
    """Write into one weight of the pair once the trace is made."""
    return _factory(lambda odd, trace: (trace, getattr(odd.models, side).weights[name].add_(1e-3))[0])


def _one_call(odd: Odd, trace: Trace) -> Trace:
    """Claim a single round, and a single call of the target."""
    S, L, B = odd.models.pyramid.S, odd.models.pyramid.L, len(trace.tokens_BL)
    turn = Round(0, S, S, False, False, L, 0, 0, L)
    return replace(trace, rounds=[[turn]] * B, target_calls=[1] * B, target_rows=[L] * B)


def no_image(models: ModelPair, settings: Settings) -> Odd:
    """Claim no tokens, and show a latent map of which no image can be made."""
    odd = Odd(models, settings, lambda odd, trace: replace(trace, f_hat_BCPP=torch.full_like(trace.f_hat_BCPP, 1e30)))
    odd.contract = "quality-preserving"
    return odd


class Bare:
    """A decoder that has what a decoder must have, and raises an error of its own for all else."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.contract, self.decode = "token-identical", build_decoder(models, settings).decode

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


bare = Bare
shows_double = _shows(lambda trace: _all_shown(trace, Tensor.double))
shows_guided_double = _shows(lambda trace: _guided(trace, Tensor.double))
counts_int8 = _shows(lambda trace: replace(trace, scale_writes_BS=trace.scale_writes_BS.to(torch.int8)))
counts_uint16 = _shows(lambda trace: replace(trace, scale_writes_BS=trace.scale_writes_BS.to(torch.uint16)))
no_time = _shows(lambda trace: replace(trace, seconds=float("nan"), cache_bytes={"draft": "3 MB", "kv": 7}))
huge_peak = _shows(lambda trace: replace(trace, peak_bytes=2**70, seconds=10**400, cache_bytes={"kv": -1}))
odd_figures = _shows(lambda trace: replace(trace, peak_bytes="much", seconds="soon", cache_bytes=[["draft", 1]]))
flags_as_numbers = _shows(_flags_as_numbers)
shows_marked = _shows(_marked)
moves_generator = _leaves(lambda: torch.nn.Linear(3, 3))
leaves_default = _leaves(lambda: torch.set_default_dtype(torch.float64))
leaves_threads = _leaves(lambda: torch.set_num_threads(3))
one_call = _factory(_one_call)

RIGHT = (
    "bare",
    "shows_double",
    "shows_guided_double",
    "counts_int8",
    "counts_uint16",
    "no_time",
    "huge_peak",
    "odd_figures",
    "flags_as_numbers",
)
REMARKED = {  # right ones, with what is said of them
    "shows_marked": "f_hat_BCPP is a Parameter, and was taken as a plain tensor",
    "moves_generator": "decoding moved PyTorch's global generator",
    "leaves_default": "decoding left the default dtype at torch.float64, not torch.float32",
    "leaves_threads": "decoding left PyTorch with 3 threads, not ",
}

rounds_guided = _shows(lambda trace: _guided(trace, lambda tensor: tensor.bfloat16()))
double_and_wrong = _shows(lambda trace: _all_shown(_guided(trace, lambda tensor: tensor + 1e-4), Tensor.double))
counts_twice = _shows(lambda trace: replace(trace, scale_writes_BS=(2 * trace.scale_writes_BS).to(torch.uint16)))
marked_and_wrong = _shows(lambda trace: _marked(_wrong(trace)))
peak_and_wrong = _shows(lambda trace: replace(_wrong(trace), peak_bytes=2**70))
moves_and_wrong = _factory(lambda odd, trace: (_wrong(trace), torch.rand(3))[0])
writes_target = _writes("target", "head.bias")
writes_codebook = _writes("vae", "quantize.embedding.weight")
writes_pixels = _writes("vae", "decoder.conv_out.bias")

WRONG = {  # with the component of the first defect
    "rounds_guided": "precision",
    "double_and_wrong": "guidance",
    "counts_twice": "scheduling",
    "marked_and_wrong": "draw",
    "peak_and_wrong": "draw",
    "moves_and_wrong": "noise",  # which it moves, too
    "writes_target": "weights",
    "writes_codebook": "weights",
    "writes_pixels": "weights",
    "no_image": "f_hat",
}
