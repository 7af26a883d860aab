"""From the first wrong value of a decode to the line of the decoder's own code that made it.

Promise: the line ran. Its operation had right values going in (the reference computes them, too, or they are weights
and numbers) and a wrong one coming out, of which the wrong value was made; or it compared drafted tokens with the
target's, and the wrong ones were taken. Where nothing of the kind is seen that is said, and no line is guessed.

How: the decode runs once more under a recorder, and so does the reference along the decoder's tokens and along what it
drafted, by both networks. From the wrong value it is followed back, from operation to operation, until all that goes in
is right (`_search.py`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import text_of
from harness.judge._form import no_token, unreadable, wrong_shape
from harness.judge._recorder import Frame, Known, Operation, OperationRecorder, TensorRows, recorded, rows_of
from harness.judge._search import Search
from harness.judge._stream import Stream, share
from harness.judge._wrong_decode import Wrong, WrongDecode, caller_of, given_otherwise, numbers_asked, what_was_tried
from harness.protocol import Trace
from harness.reference import block_causal

MOST_PROPOSED = 16  # runs of the reference along drafted tokens
NOT_SEEN = "no operation of the decoder was seen to make {}; those of other threads are not"


@dataclass(frozen=True)
class CodeLine:
    """The line of a decoder that made the first wrong value."""

    file: str
    line: int
    function: str
    text: str  # the line itself
    operation: str  # PyTorch's name of what it did, with the shapes that went in and came out
    wrong: str  # what came of it, and by how much
    tried: str = ""  # what came of the reference's values in the place of the wrong ones
    stack: tuple[str, ...] = ()  # the decoder's own frames, the innermost first
    caller: str = ""  # the lines above it that lead to a function which the decode calls at other lines, too

    def __str__(self) -> str:
        called = self.caller and f" (reached from {self.caller})"
        where = f"{Path(self.file).name}:{self.line}, in {self.function}{called}: {self.text}"
        return f"{where} ({self.operation}; wrong: {self.wrong}){self.tried and f'; {self.tried}'}"


class LineSearch:
    def __init__(self, decode: WrongDecode) -> None:
        self._decode, self._pyramid = decode, decode.models.pyramid

    def line(self) -> CodeLine | str:
        """Return the line that made the first wrong value, or why none is named; empty where no value is wrong."""
        with torch.inference_mode():  # what networks compute once they compute before the decode
            once = _made_by(*self._right(None, 1)[1:])
        request, ramps = self._decode.request, [self._pyramid.ramp(si) for si in self._pyramid]
        look = partial(given_otherwise, request=request, asked=numbers_asked(request, ramps))
        recorder = OperationRecorder(self._decode.weights, look)
        trace = recorded(recorder, self._decode.decode)
        for ask in (unreadable, wrong_shape, no_token):
            if (wrong_form := ask(self._decode.models, request, trace)) is not None:
                return f"not searched: {wrong_form.detail}"
        try:
            with torch.inference_mode():
                found = self._searched(trace, recorder.steps, once)
        except Exception as error:  # ours: nothing of the decoder runs here
            return f"not found: the search itself ended with {type(error).__name__}: {text_of(error)}"
        return replace(found, tried=what_was_tried(self._decode)) if isinstance(found, CodeLine) else found

    def _searched(self, trace: Trace, steps: list[Operation], once: list[TensorRows]) -> CodeLine | str:
        """Return what `line` does, of a recorded decode."""
        pyramid = self._pyramid
        expected, *right = self._right(trace.tokens_BL, pyramid.S)
        wrong = list(self._decode.wrong_values(trace, expected))
        if not wrong:
            return ""
        weights = list(filter(None, map(rows_of, self._decode.weights)))
        final = [*_made_by(*right), *once, *self._masks(), *weights]
        rejected, proposed = list[tuple[int, Tensor, Tensor]](), dict[tuple[int, ...], tuple[Tensor, int]]()
        for scales, tokens_BL in self._proposed(steps, trace.tokens_BL, wrong[0].scale):
            proposed[tuple(tokens_BL.flatten().tolist())] = tokens_BL, scales[-1] + 1
            for si in scales:
                span = pyramid.draws.span(si)
                pairs = zip(tokens_BL[:, span].cpu(), expected.tokens_BL[:, span].cpu(), strict=True)
                rejected += [(si, *pair) for pair in pairs if not torch.equal(*pair)]
        drafted = list(proposed.values())[-MOST_PROPOSED:]
        runs = [*right, *(steps for asked in drafted for steps in self._right(*asked)[1:])]
        otherwise = _made_by(*runs[2:])
        softened = [rows for steps in runs for step in steps if "softmax" in step.name for rows in step.inputs[:1]]
        known = [Known(rows, self._decode.close) for rows in (final, otherwise, softened, ())]
        along_any = Stream(steps, known[:2], {pyramid.end(si) for si in pyramid}, known[2])
        of_reference = Stream(right[0], known[3:], along_any.ends, known[3])
        streams = along_any, along_any.among(known[:1]), of_reference
        search = Search(*streams, weights, self._decode.close, rejected, pyramid.draws.counts)
        for value in [each for each in wrong if each.name == wrong[0].name]:
            finds = (search.taken, search.computed) if value.is_tokens else (search.computed, search.taken)
            if found := finds[0](value) or finds[1](value) or search.elsewhere(value, is_sure=True):
                return _line_of(*found, value, steps)
        found = search.elsewhere(wrong[0])
        return _line_of(*found, wrong[0], steps) if found else NOT_SEEN.format(wrong[0])

    def _right(self, tokens_BL: Tensor | None, scales: int) -> tuple[Trace, list[Operation], list[Operation]]:
        """Return the target's trace of the first scales along tokens, and the operations there of it and the draft."""
        recorders = [OperationRecorder(self._decode.weights) for _ in range(2)]
        models, runs = self._decode.models, list[Trace]()
        for network, recorder in zip((models.target, models.draft), recorders, strict=True):
            with recorder:
                runs.append(self._decode.reference(network, tokens_BL, scales))
        return runs[0], recorders[0].steps, recorders[1].steps

    def _masks(self) -> Iterator[TensorRows]:
        """List the right masks of every window."""
        pyramid = self._pyramid
        mask_LL = block_causal(pyramid, self._decode.models.device, torch.float32)[0, 0]
        for first in pyramid:
            for last in range(first, pyramid.S):
                for seen in (0, pyramid.begin(first)):  # scales before the window are seen, or its own alone
                    window = mask_LL[pyramid.begin(first) : pyramid.end(last), seen : pyramid.end(last)]
                    yield from filter(None, map(rows_of, (window, window == 0, window != 0)))

    def _proposed(self, steps: list[Operation], tokens_BL: Tensor, last_scale: int) -> list[tuple[list[int], Tensor]]:
        """List what was drawn scale after scale, with the scales, in the place of final tokens.

        Four numbers are scale 0 of four images, or scale 1 of one: that of which more draws go on with the next scale.
        """
        _, proposed = max((self._drawn(steps, tokens_BL, R) for R in (len(tokens_BL), 1)), key=lambda drawn: drawn[0])
        return [each for each in proposed if each[0][0] <= last_scale]  # what comes later explains nothing

    def _drawn(self, steps: list[Operation], tokens_BL: Tensor, R: int) -> tuple[int, list[tuple[list[int], Tensor]]]:
        """Return what is drawn if R images draw together, after how many of the draws goes on with the next scale."""
        counts, proposed, last = self._pyramid.draws.counts, list[tuple[list[int], Tensor]](), -2
        V, S, goes_on = self._decode.models.target.config.V, self._pyramid.S, 0
        sizes = {sum(counts[si : si + n]) * R: si if n == 1 else S  # after several scales a new round begins
                 for n in range(S, 0, -1) for si in range(S + 1 - n)}  # fmt: skip
        for step in steps:
            if (drawn := step.drawn) is None or (si := sizes.get(drawn.numel())) is None:
                continue
            if si == S or not 0 <= int(drawn.min()) <= int(drawn.max()) < V:
                last = -2 if si == S else last
                continue
            is_written = si == last and not any(rows.kind[0] == "real" for rows in step.inputs)
            goes_on += si == last + 1
            if not is_written and si != last + 1:
                proposed.append(([], tokens_BL.clone()))
            last = si
            span = self._pyramid.draws.span(si)
            proposed[-1][0].extend([si] * (not is_written))
            proposed[-1][1][:, span] = drawn.to(tokens_BL).reshape(-1, counts[si])
        return goes_on, proposed


def _made_by(*runs: list[Operation]) -> list[TensorRows]:
    return [rows for steps in runs for step in steps for rows in step.outputs]


def _line_of(step: Operation, why: str, wrong: Wrong, steps: Sequence[Operation]) -> CodeLine:
    seen, why = caller_of(step) or (step, why)
    own, outer = seen.stack[0], len(step.stack) - len(seen.stack)
    # draft and target may make the same value of the same line: whose it is nobody can tell
    alike = [each for each in steps if each.stack[: outer + 1] == step.stack[: outer + 1] and _share(each, step)]
    callers = _callers([each.stack[outer:] for each in alike], steps)
    return CodeLine(
        *own, own.text, str(seen), f"{wrong}{why}", stack=tuple(map(str, seen.stack)), caller=" or ".join(callers)
    )


def _share(one: Operation, other: Operation) -> bool:
    return any(share(made, each) for made in one.outputs for each in other.outputs)


def _callers(stacks: Sequence[Sequence[Frame]], steps: Sequence[Operation]) -> list[str]:
    """List of every stack the innermost line, if any, that calls a function which other lines call, too."""
    calls = {(own[::2], above) for each in {step.stack for step in steps} for own, above in pairwise(each)}
    counts = Counter(own for own, _ in calls)
    met = ([above for own, above in pairwise(stack) if counts[own[::2]] > 1 and own.function[:1] != "<"]
           for stack in stacks)  # fmt: skip
    return list(dict.fromkeys(f"{Path(a.file).name}:{a.line}, in {a.function}" for above in met for a in above[:1]))
