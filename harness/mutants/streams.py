"""Planted bugs of streams: generators that share a seed, numbers of another law, numbers bent on their way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.mutants._mutant import Alone, Mutant, arguments_of, patched, result_of
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN, SeededNoise, _Chain
from harness.speculative import Window

_NOISE = "harness.protocol.noise:"


def _numbers(change: Callable[[Tensor, str], Tensor]) -> dict[str, object]:

    def changed(numbers: Tensor, chain: Any, index: int, count: int) -> Tensor:
        return change(numbers, chain.addresses[index][1])

    return result_of(_NOISE + "_Chain._next", changed)


def _seeds(change: Callable[[int, int, str], tuple[int, int, str]]) -> dict[str, object]:
    """Plant a change of the address (seed, image, stream) that the seed of a generator is derived from."""
    return arguments_of(_NOISE + "derive_seed", change)


def _batch_seed(source: SeededNoise, stream: str) -> Any:
    key = (source.request.seed, -1, stream)
    if key not in source._chains:
        source._chains[key] = _Chain(source, source.request.seed, (stream,))
    return source._chains[key]


# fmt: off
ONE_SEED = Mutant("streams.one-seed", "all streams of an image share a seed", "a key that lacks the stream",
    shared=_seeds(lambda seed, image, stream: (seed, image, "")))
BATCH_SEED = Mutant("streams.batch-seed", "in batch order all streams start from the request's seed",
    "manual_seed in every branch", shared={_NOISE + "SeededNoise._batch_chain": _batch_seed})
PAIRS = Mutant("streams.pairs", "images 2k and 2k+1 share numbers", "an address counted in guidance rows",
    shared=_seeds(lambda seed, image, stream: (seed, image // 2, stream)))
NEXT_SEED = Mutant("streams.next-seed", "image 1 of a seed has the numbers of image 0 of the next",
    "seed + image for an address", shared=_seeds(lambda seed, image, stream: (seed + image, 0, stream)))
SECOND_IMAGE = Mutant("streams.second-image", "image 1 is given image 0's numbers", "an expanded row",
    shared=result_of(_NOISE + "SeededNoise._draw", lambda drawn, *address: torch.cat(
        (drawn[:1], drawn[:1], drawn[2:]))[: len(drawn)]))
FLOOR = Alone("streams.floor", "acceptance numbers never fall below 0.02", "a clamp against zero that is too high",
    shared=_numbers(lambda x, stream: x.clamp_min(0.02) if stream == ACCEPT else x))
NARROW_SEED = Alone("streams.narrow-seed", "seeds 2^32 apart are one", "a seed through 32 bits",
    shared=_seeds(lambda seed, image, stream: (seed % 2**32, image, stream)))
FLOAT_SEED = Alone("streams.float-seed", "seeds beyond 2^53 are rounded", "a seed through a float",
    shared=_seeds(lambda seed, image, stream: (int(float(seed)), image, stream)))
SIGNED_SEED = Alone("streams.signed-seed", "seeds 2^31 apart are one", "a seed that loses its sign bit",
    shared=_seeds(lambda seed, image, stream: (seed & 0x7FFFFFFF, image, stream)))
TINY = Mutant("streams.tiny", "exponentials below 0.0005 are clamped", "an epsilon against division by zero",
    shared=_numbers(lambda x, kind: x if kind == ACCEPT else x.clamp_min(5e-4)))
TAIL = Alone("streams.tail", "exponentials end at 5", "a clamp against overflow",
    shared=_numbers(lambda x, stream: x if stream in (ACCEPT, TOKEN) else x.clamp_max(5.0)))
RATE = Alone("streams.rate", "the draft's exponentials have mean 1.05", "a rate taken for a scale",
    shared=_numbers(lambda x, stream: x * 1.05 if stream == "draft" else x))
BENT = Mutant("streams.bent", "a window's exponentials are clamped at 0.05", "an epsilon in the decoder",
    patched(result_of("harness.speculative._accept:Window.exponential", lambda E_bnV, *at: E_bnV.clamp_min(0.05))),
    component="draw")
BENT_ACCEPT = Mutant("streams.bent-accept", "acceptance numbers are rounded to hundredths in the decoder",
    "numbers through a log file", patched(result_of("harness.speculative._accept:Window.uniform",
    lambda u_bn, *at: (u_bn * 100).floor() / 100)))
_EXPONENTIAL = Window.exponential
AGAIN = Mutant("streams.again", "a rejected token is drawn again with the draft's own numbers",
    "the same generator for both draws", patched({"harness.speculative._accept:Window.exponential":
    lambda window, stream: _EXPONENTIAL(window.read_as("draft"), DRAFT) if stream == CORRECT
    else _EXPONENTIAL(window, stream)}))
SHARED_REDRAW = Mutant("streams.shared-redraw", "every second draw after a rejection has its neighbour's numbers",
    "an index halved", patched(result_of("harness.speculative._accept:Window.exponential",
    lambda E_bnV, window, stream: E_bnV[:, torch.arange(E_bnV.shape[1]) // 2 * 2] if stream == CORRECT else E_bnV)))
