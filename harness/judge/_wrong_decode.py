"""A decode that goes wrong, run again beside the reference: its first wrong value, who gave it, what comes without it.

Promise: the values come in the order in which they are made, and each is compared with the reference along the
decoder's own tokens, so that a wrong one is named once, where it begins. A line up the stack is named only for what was
seen there: a number or a label that is not the request's. What is said of cause or symptom was seen, too: the
reference's value is put where an operation first makes a wrong one, in a decode of its own, and all that the decoder
computes of it is its own; then the first value that is wrong now is replaced, and so on.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.judge import _recorder as recorder
from harness.judge._decode import unverified_scales
from harness.models import ModelPair, Network
from harness.models.mode import product_dtype
from harness.protocol import Request, Trace
from harness.reference.sequential import Progress, walked
from harness.wording import count_of

# Relative to the length of a row: more than rounding moves it in a pass.
CLOSE = {torch.float64: 1e-8, torch.float32: 2e-5}
COARSE = 2e-2  # in fewer bits
SHOWN = {"x_RLD": "the input", "rows_RLV": "the rows", "guided_BLV": "the guided logits"}


@dataclass(frozen=True)
class Wrong:
    """A wrong value of a trace, of one scale and row of the batch."""

    name: str
    scale: int
    actual: Tensor
    expected: Tensor
    batch: Tensor  # the decoder's, all rows
    right: Tensor  # and the reference's

    @property
    def is_tokens(self) -> bool:
        return not self.actual.is_floating_point()

    @property
    def made_of(self) -> int:
        """Last scale of whose tokens it is made."""
        return self.scale - (self.name in SHOWN.values())

    @property
    def wrong_l(self) -> Tensor:
        return (self.actual != self.expected).flatten().cpu()

    @property
    def place(self) -> str:
        return f"{self.name} of scale {self.scale}"

    def __str__(self) -> str:
        if self.is_tokens:
            return f"{count_of(int((self.actual != self.expected).sum()), 'token')} of scale {self.scale}"
        return f"{self.place} by {float((self.actual.double() - self.expected.double()).abs().max()):.3g}"


@dataclass(frozen=True)
class WrongDecode:
    """A decode that goes wrong, and what it is compared with."""

    models: ModelPair  # as the decoder uses them
    request: Request
    greedy: bool
    claims_tokens: bool
    decode: Callable[[], Trace]  # runs it once more

    @property
    def weights(self) -> Collection[Tensor]:
        return self.models.named_weights().values()

    @property
    def close(self) -> float:
        return max(CLOSE.get(product_dtype(each), COARSE) for each in (self.models.draft, self.models.target))

    def reference(self, network: Network, tokens_BL: Tensor | None, scales: int) -> Trace:
        """Return the reference's trace of the first scales along tokens, or along its own."""
        noise = self.models.noise(self.request)
        return walked(Progress(network, self.models.vae, self.request, noise, tokens_BL, self.greedy), scales)

    def is_right_elsewhere(self, wrong: Wrong, expected: Trace) -> bool:
        """Tell whether rows of a wrong value are those of another one in the reference's trace: halves, scales."""
        if wrong.is_tokens or expected.intermediates is None or (rows := recorder.rows_of(wrong.actual)) is None:
            return False
        others = filter(None, map(recorder.rows_of, expected.intermediates.named().values()))
        return bool(recorder.Known(others, self.close).has(rows).any())

    def wrong_values(self, actual: Trace, expected: Trace) -> Iterator[Wrong]:
        """List the wrong values of a trace, in the order in which they are made; `expected` is along its tokens."""
        pyramid, sides, shows = self.models.pyramid, (actual, expected), actual.intermediates is not None
        alone = {si for image in range(self.request.B) for si in unverified_scales(actual, image)}
        for si in (each for each in pyramid if each not in alone):
            draws, values = pyramid.draws.span(si), dict[str, list[Tensor]]()
            for name, words in SHOWN.items() if shows else ():
                span = pyramid.span(si) if name == "x_RLD" else draws
                values[words] = [getattr(side.shown, name)[:, span] for side in sides]
            if self.claims_tokens:
                values["the tokens"] = [side.tokens_BL[:, draws] for side in sides]
            if shows:
                values["f_hat"] = [side.shown.f_hat_SBCPP[si] for side in sides]
            elif si == pyramid.S - 1:
                values["f_hat"] = [side.f_hat_BCPP for side in sides]
            for words, pair in values.items():
                one, other = pair
                for n in islice((n for n in range(len(one)) if not _near(one[n], other[n], self.close)), 1):
                    yield Wrong(words, si, one[n], other[n], one, other)


def _near(one: Tensor, other: Tensor, close: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    far = (one.double() - other.double()).abs().nan_to_num(torch.inf, torch.inf)
    return bool((far <= close * max(1.0, float(other.abs().max()))).all())


NUMBERS = ("cfg", "top_k", "top_p", "seed")
LISTS = ("labels", "image_ids")  # of which a part may be asked for


def numbers_asked(request: Request, ramps: Sequence[float]) -> dict[str, list[float]]:
    """Return the numbers that functions may be given, by the name of a parameter; `ramps` are the scales' shares.

    A filter that is off, and a share of the guidance value, are asked for by steps of their own.
    """
    filters = [request.filter(si) for si in range(len(ramps))]
    return {
        "cfg": [request.cfg, *(request.cfg * ramp for ramp in ramps)],
        "top_k": [0, *(top_k for top_k, _ in filters)],
        "top_p": [0, *(top_p for _, top_p in filters)],
        "seed": [request.seed, *(request.seeds or ())],
    }


def given_otherwise(
    values: Mapping[str, Any], request: Request, asked: Mapping[str, Sequence[float]]
) -> tuple[str, bool]:
    """Return what a function's variables hold otherwise than is asked for, and whether one holds that."""
    words, is_right = "", False
    for name, value in values.items():
        if isinstance(value, Request):
            others = [each for each in (*NUMBERS, "filters") if getattr(value, each) != getattr(request, each)]
            others += [each for each in LISTS if Counter(getattr(value, each)) - Counter(getattr(request, each))]
            others = [each for each in others if each != "seed" or value.seed not in asked[each]]
            said = ", ".join(f"{each}={getattr(value, each)}" for each in others)
        elif name in asked and isinstance(value, int | float):
            is_near = isinstance(value, float) and any(math.isclose(value, each) for each in asked[name])
            said = "" if is_near or value in asked[name] else f"{name}={value}"
        else:
            continue
        words, is_right = words or said, is_right or not said
    return words, is_right


def caller_of(step: recorder.Operation) -> tuple[recorder.Operation, str] | None:
    """Return an operation seen from the line that gave other numbers than are asked for; None where none did."""
    if not (wrong := [at for at, (words, _) in enumerate(step.given) if words]):
        return None
    words, is_right = step.given[wrong[-1]]
    at = wrong[-1] + (not is_right and wrong[-1] + 1 < len(step.stack))
    inner, why = step.stack[0], f", with {words}"
    why += f", computed at {Path(inner.file).name}:{inner.line}" if at else ""
    return step._replace(stack=step.stack[at:]), why


MOST_REPLACED = 3  # values, a decode each


class Replacing(recorder.EveryOperation):
    """Puts other rows in the place of some, wherever an operation makes these; `places` are the lines that did."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.places: list[recorder.Frame] = []

    def add(self, wrong: Wrong) -> None:
        """Replace the rows of a wrong value, of all images, from the next decode on."""
        # of few numbers a row is all that an operation makes of the batch
        for one, other in (*zip(wrong.batch, wrong.right, strict=True), (wrong.batch, wrong.right)):
            rows, right = recorder.in_rows(one), recorder.in_rows(other)
            if rows is not None and right is not None and not torch.equal(one, other):
                hash_N, right_NL = self._rows.get(rows[0], (torch.zeros(0, dtype=torch.int64), right[1][:0]))
                added = torch.cat((hash_N, recorder.hash_of(rows[1]).cpu())), torch.cat((right_NL, right[1]))
                self._rows[rows[0]] = added

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(recorder.computes_itself, types)):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            is_drawn = any(each.is_floating_point() for each in recorder.tensors_in((args, kwargs)))
            written, _ = recorder.written_by(func, args, kwargs or {})
            for made in written or recorder.tensors_in(result):
                is_expanded = any(n > 1 and not step for n, step in zip(made.shape, made.stride(), strict=True))
                if is_expanded or not (made.is_floating_point() or is_drawn):
                    continue  # whole numbers stand anywhere: tokens are drawn
                if self._replace(made):
                    self.places += [each for _, each in recorder.own_frames()[:1]]
        return result

    def _replace(self, made: Tensor) -> bool:
        """Replace rows within a tensor; tell whether there were any."""
        if (rows := recorder.in_rows(made)) is None or rows[0] not in self._rows:
            return False
        (hash_N, right_NL), (_, made_nL) = self._rows[rows[0]], rows
        is_nN = recorder.hash_of(made_nL).cpu()[:, None] == hash_N
        is_n = is_nN.any(1)
        if not bool(is_n.any()):
            return False
        fixed_nL = made_nL.clone()
        fixed_nL[is_n.to(made.device)] = right_NL[is_nN[is_n].int().argmax(1).to(right_NL.device)].to(made)
        made.copy_(fixed_nL.reshape(made.shape))
        return True


def what_was_tried(decode: WrongDecode) -> str:
    """Replace the first wrong values one after another; say where, and what came of it. Raises as the decoder does."""
    replacing, tried = Replacing(), list[Wrong]()
    while True:
        replacing.places.clear()
        trace = recorder.recorded(replacing, decode.decode)
        with torch.inference_mode():
            expected = decode.reference(decode.models.target, trace.tokens_BL, decode.models.pyramid.S)
            left = next(decode.wrong_values(trace, expected), None)
            elsewhere = left is not None and decode.is_right_elsewhere(left, expected)
            if left is None or elsewhere or left.place in {each.place for each in tried} or len(tried) == MOST_REPLACED:
                break
            replacing.add(left)
        tried.append(left)
    if left is not None and elsewhere and not tried:
        return f"not replaced: {left.place}: right for another scale, half or image"
    if not (lines := dict.fromkeys(f"{Path(each.file).name}:{each.line}" for each in replacing.places)):
        return f"not replaced: no operation makes {left} as it is shown"
    by_name: dict[str, list[int]] = {}
    for each in tried:
        by_name.setdefault(each.name, []).append(each.scale)
    names = (f"{name} of scale{'s' * (len(of) > 1)} {_ranged(of)}" for name, of in by_name.items())
    put_right = f"with {' and '.join(names)} put right at {', '.join(lines)}"
    if left is None:
        return f"{put_right}, every value is right"
    what, _, far = str(left).partition(" by ")
    by = f" (by {far})" * bool(far)
    stays = left.place in {each.place for each in tried}
    return f"{put_right}, {what}{by} stays wrong" if stays else f"{put_right}, the first wrong value is {what}{by}"


def _ranged(scales: Sequence[int]) -> str:
    """Return scales in words, those that follow one another as a range."""
    if len(scales) > 1 and [*scales] == [*range(scales[0], scales[0] + len(scales))]:
        return f"{scales[0]} {'to' if len(scales) > 2 else 'and'} {scales[-1]}"
    return ", ".join(map(str, scales))
