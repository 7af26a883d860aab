"""From the first wrong value of a decode to the line of the decoder's own code that made it.

Promise: the line ran. Its operation had right values going in (the reference computes them, too, or they are weights
and numbers) and a wrong one coming out, of which the wrong value was made; or it compared drafted tokens with the
target's, and the wrong ones were taken. Where nothing of the kind is seen that is said, and no line is guessed.

How: the decode runs once more under a recorder, and so does the reference along the decoder's tokens and along what it
drafted, by both networks. From the wrong value it is followed back, from operation to operation, until all that goes in
is right.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import text_of
from harness.judge._form import unreadable, wrong_shape
from harness.judge._recorder import LEAST, Frame, Known, Operation, OperationRecorder, TensorRows, recorded, rows_of
from harness.judge._replaced import what_was_tried
from harness.judge._wrong_decode import Wrong, WrongDecode
from harness.protocol import Trace
from harness.reference import block_causal

NEAR = 24  # operations of a function that tell what it works on
AHEAD, ALIKE = 40, 8  # operations that may lead to a right value, and others of a line that are looked at
UNSEEN = ", made of what no operation here computed: it was there before, or comes of Python, NumPy or another thread"
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

    def __str__(self) -> str:
        where = f"{Path(self.file).name}:{self.line}, in {self.function}: {self.text}"
        return f"{where} ({self.operation}; wrong: {self.wrong}){f'; {self.tried}' if self.tried else ''}"


Found = tuple[Operation, str]  # an operation, and what there is to say of it


class Stream:
    """The operations of a decode, by the rows that each made first; `ends` are the numbers of keys of a right pass."""

    def __init__(self, steps: list[Operation], known: Sequence[Known], ends: Collection[int]) -> None:
        self.steps, self._known, self._ends = steps, known, ends
        self._made: dict[tuple[str, int], list[tuple[int, TensorRows]]] = {}
        for number, step in enumerate(steps):
            for rows in step.outputs:
                self._made.setdefault(rows.kind, []).append((number, rows))
        self._usual: dict[tuple[str, tuple[Frame, ...]], bool] = {}
        self._tables: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}

    def _table(self, kind: tuple[str, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of one kind: hash, step that made it first, whether it is right."""
        if kind not in self._tables and (of := self._made.get(kind)):
            hash_N = torch.cat([rows.hash_N for _, rows in of])
            step_N = torch.cat([torch.full_like(rows.hash_N, number) for number, rows in of])
            mark_N4 = torch.cat([rows.mark_N4 for _, rows in of])
            hash_N, order_N = hash_N.sort(stable=True)
            first_n = torch.nonzero(hash_N.diff(prepend=hash_N[:1] - 1)).flatten()
            hash_n, order_n = hash_N[first_n], order_N[first_n]
            rows = TensorRows(kind, hash_n, mark_N4[order_n])
            self._tables[kind] = hash_n, step_N[order_n], self._is_known(rows)
        return self._tables.get(kind) or (torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))

    def makers(self, rows: TensorRows, before: int | None = None) -> set[int]:
        """Return the steps before one that first made those of the rows that are not right; of None: all of them."""
        hash_N, step_N, known_N = self._table(rows.kind)
        here_N = torch.isin(hash_N, rows.hash_N.to(hash_N.dtype))
        if before is not None:
            here_N &= ~known_N & (step_N < before)
        return set(step_N[here_N].tolist())

    def makers_of(self, number: int) -> set[int]:
        """Return the steps that made what is wrong of a step's inputs."""
        step = self.steps[number]
        makers = [(rows.kind[0], self.makers(rows, number)) for rows in step.inputs]
        if step.attends and step.read[1][-2] not in self._ends:  # of too many keys the mask is wrong for their sake
            return set().union(*(of for kind, of in makers if kind == "real"))
        # what a right mask hides need not be right: a wrong one comes before all else
        masks = [of for kind, of in makers if of and (kind == "mask" or (kind == "truth" and step.attends))]
        return set().union(*(masks or [of for _, of in makers]))

    def unseen(self, number: int) -> str:
        """Say whether a step reads what is not known, and no operation before it computed; empty: it does not."""
        for rows in (each for each in self.steps[number].inputs if each.kind[0] == "real"):
            made = {self.steps[each].name for each in self.makers(rows, number)}
            if made <= {"lift_fresh"} and not bool(self._is_known(rows).all()):
                return UNSEEN
        return ""

    def _is_known(self, rows: TensorRows) -> Tensor:
        return torch.stack([known.has(rows) for known in self._known]).any(0)

    def _is_usual(self, number: int) -> bool:
        """Tell whether what a step makes led to right values elsewhere: the reference only has no such value between.

        Code of another structure has many: scores of an attention that is written out, sums in another order.
        """
        mine = self.steps[number].name, self.steps[number].stack
        if mine not in self._usual:
            steps = (n for n, step in enumerate(self.steps) if (step.name, step.stack) == mine)
            self._usual[mine] = any(self._leads_to_right(other) for other in islice(steps, ALIKE))
        return self._usual[mine]

    def _leads_to_right(self, number: int) -> bool:
        """Tell whether of values that are not known others were made, soon and one by one, that all are."""
        reached = self._unknown(self.steps[number])
        for step in self.steps[number + 1 : number + 1 + AHEAD] if reached else ():
            if step.attends or "norm" in step.name:  # both make right values of some wrong ones
                continue
            if not any(_share(one, other) for one in step.inputs for other in reached):
                continue
            real = [rows for rows in step.outputs if rows.kind[0] == "real" and rows.kind[1] >= LEAST]
            told = [self._is_known(rows) & (rows.mark_N4[:, 3] > 0) for rows in real]
            if told and not step.moves and bool(torch.cat(told).all()):
                return True
            reached += self._unknown(step)
        return False

    def _unknown(self, step: Operation) -> list[tuple[tuple[str, int], Tensor]]:
        """Return kinds and hashes of the rows that a step makes and nobody knows."""
        every = [(rows.kind, rows.hash_N[~self._is_known(rows)]) for rows in step.outputs]
        return [(kind, hash_n) for kind, hash_n in every if len(hash_n)]

    def firsts(self, pending: set[int]) -> list[int]:
        """Return the steps that some go back to, whose own inputs are all right, in the order of time."""
        wrong, made_by = frozenset(pending), dict[int, set[int]]()
        while pending:
            number = pending.pop()
            made_by[number] = self.makers_of(number)
            pending |= made_by[number] - made_by.keys()
        right, firsts = set[int](), list[int]()
        for number in sorted(made_by):
            if not made_by[number] - right:
                is_right = self.steps[number].moves or (number not in wrong and self._is_usual(number))
                (right.add if is_right else firsts.append)(number)
        return [number for number in firsts if self.steps[number].stack]


@dataclass(frozen=True)
class Search:
    """Where the line is searched: the decode's operations, and its proposed tokens that are not the target's."""

    along_any: Stream  # what is right along the final tokens or along drafted ones is known
    along_final: Stream  # what is right along the final tokens is known
    rejected: list[tuple[int, Tensor, Tensor]]  # scale, tokens of the draft, the target's

    def computed(self, wrong: Wrong) -> Found | None:
        """Return the operation that computed a wrong value of right ones."""
        rows, stream = rows_of(wrong.actual), self.along_any
        if rows is None:
            return None
        made = stream.makers(rows, None if wrong.is_tokens else len(stream.steps))
        if wrong.is_tokens:  # few whole numbers may be right anywhere, and stand anywhere: they were drawn
            made = {number for number in made if any(each.kind[0] == "real" for each in stream.steps[number].inputs)}
        for number in stream.firsts(made):
            step = stream.steps[number]
            # with keys of final tokens, or for these tokens alone, it would have been right
            alone = wrong.is_tokens and len(step.whole) == 1 and len(step.whole[0]) == wrong.actual.numel()
            found = self._taken(self.along_final.makers_of(number)) if step.attends or alone else None
            return (
                (found[0], f"{found[1]}, read at line {step.stack[0].line}") if found else (step, stream.unseen(number))
            )
        return None

    def taken(self, wrong: Wrong) -> Found | None:
        """Return the operation that compared drafted tokens with the target's, where it was made of the former."""
        rows, stream = rows_of(wrong.actual), self.along_final
        if wrong.is_tokens:
            return self._compared([wrong.actual.flatten().cpu()])
        return rows and self._taken(stream.makers(rows, len(stream.steps)))

    def elsewhere(self, wrong: Wrong) -> Found | None:
        """Return the operation that put a value where it is wrong, which is right in another place."""
        rows, why = None if wrong.is_tokens else rows_of(wrong.batch), ", which is right in another place"
        steps = [(step, each) for step in self.along_final.steps if step.stack for each in step.outputs]
        return next(((step, why) for step, each in steps if rows and _in_order(each.hash_N, rows.hash_N)), None)

    def _taken(self, pending: set[int]) -> Found | None:
        steps = self.along_final.steps
        for number in self.along_final.firsts(pending):
            function = steps[number].stack[0].function
            near = [step for step in steps[max(0, number - NEAR) : number + 1] if step.stack]
            whole = [each for step in near if step.stack[0].function == function for each in step.whole]
            if found := self._compared(whole):
                return found
        return None

    def _drawn(self, tokens_l: Tensor) -> int:
        """Return the number of the operation that first made tokens; a large one where none is seen."""
        rows, steps = rows_of(tokens_l), self.along_final.steps
        return min(self.along_final.makers(rows) if rows else (), default=len(steps))

    def _compared(self, whole: list[Tensor]) -> Found | None:
        """Return the operation that met both, where numbers hold a draft's tokens and not the target's."""
        for si, theirs, right in self.rejected:
            is_held = any(_places(each, theirs) and not _places(each, right) for each in whole)
            if not is_held or self._drawn(theirs) > self._drawn(right):  # what the target draws comes after
                continue
            for step in self.along_final.steps:
                places = [set().union(*(_places(each, one) for each in step.whole)) for one in (theirs, right)]
                if places[0] & places[1] and step.stack and not step.moves:
                    return step, f", made of drafted tokens of scale {si} that are not the target's: compared here"
        return None


class LineSearch:
    """The search for the line of one decode that goes wrong."""

    def __init__(self, decode: WrongDecode) -> None:
        self._decode, self._pyramid = decode, decode.models.pyramid

    def line(self) -> CodeLine | str:
        """Return the line that made the first wrong value, or why none is named; empty where no value is wrong."""
        with torch.inference_mode():  # what networks compute once they compute before the decode
            _, once = self._right(None, 1)
        recorder = OperationRecorder(self._decode.weights)
        trace = recorded(recorder, self._decode.decode)
        for ask in (unreadable, wrong_shape):
            if (wrong_form := ask(self._decode.models, self._decode.request, trace)) is not None:
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
        expected, final = self._right(trace.tokens_BL, pyramid.S)
        wrong = list(self._decode.wrong_values(trace, expected))
        if not wrong:
            return ""
        final += [*once, *self._masks(), *filter(None, map(rows_of, self._decode.weights))]
        rejected, proposed = list[tuple[int, Tensor, Tensor]](), dict[tuple[int, ...], tuple[Tensor, int]]()
        for scales, tokens_BL in self._proposed(steps, trace.tokens_BL, wrong[0].scale):
            proposed[tuple(tokens_BL.flatten().tolist())] = tokens_BL, scales[-1] + 1
            for si in scales:
                span = pyramid.draws.span(si)
                pairs = zip(tokens_BL[:, span].cpu(), expected.tokens_BL[:, span].cpu(), strict=True)
                rejected += [(si, *pair) for pair in pairs if not torch.equal(*pair)]
        otherwise = [rows for asked in list(proposed.values())[-MOST_PROPOSED:] for rows in self._right(*asked)[1]]
        known = [Known(rows, self._decode.close) for rows in (final, otherwise)]
        ends = {pyramid.end(si) for si in pyramid}
        along_any, along_final = (Stream(steps, of, ends) for of in (known, known[:1]))
        search = Search(along_any, along_final, rejected)
        same = [each for each in wrong if each.name == wrong[0].name]
        for value in same:
            finds = (search.taken, search.computed) if value.is_tokens else (search.computed, search.taken)
            if found := finds[0](value) or finds[1](value):
                return _line_of(*found, value)
        found = search.elsewhere(wrong[0])
        return _line_of(*found, wrong[0]) if found else NOT_SEEN.format(wrong[0])

    def _right(self, tokens_BL: Tensor | None, scales: int) -> tuple[Trace, list[TensorRows]]:
        """Return the target's trace of the first scales along tokens, and what is right there by either network."""
        recorder = OperationRecorder(self._decode.weights)
        with recorder:
            self._decode.reference(self._decode.models.draft, tokens_BL, scales)
            run = self._decode.reference(self._decode.models.target, tokens_BL, scales)
        return run, [rows for step in recorder.steps for rows in step.outputs]

    def _masks(self) -> Iterator[TensorRows]:
        """List the right masks of every window."""
        pyramid = self._pyramid
        mask_LL = block_causal(pyramid, self._decode.models.device, torch.float32)[0, 0]
        for first in pyramid:
            for last in range(first, pyramid.S):
                window = mask_LL[pyramid.begin(first) : pyramid.end(last), : pyramid.end(last)]
                yield from filter(None, map(rows_of, (window, window == 0, window != 0)))

    def _proposed(self, steps: list[Operation], tokens_BL: Tensor, last_scale: int) -> list[tuple[list[int], Tensor]]:
        """List what was drawn scale after scale, with the scales, in the place of final tokens."""
        counts, proposed, last = self._pyramid.draws.counts, list[tuple[list[int], Tensor]](), -2
        for step in steps:
            drawn = step.whole[0] if len(step.whole) == 1 and step.read else torch.zeros(0)
            sizes = {count * rows: si for rows in {1, len(tokens_BL)} for si, count in enumerate(counts)}
            si = sizes.get(len(drawn), -1)
            is_drawn = si >= 0 and int(drawn.min()) >= 0 and int(drawn.max()) < self._decode.models.target.config.V
            if not is_drawn or not any(rows.kind[0] == "real" for rows in step.inputs):
                continue
            if si != last + 1:
                proposed.append(([], tokens_BL.clone()))
            last = si
            span = self._pyramid.draws.span(si)
            proposed[-1][0].append(si)
            proposed[-1][1][:, span] = drawn.to(tokens_BL).reshape(-1, counts[si])
        return [each for each in proposed if each[0][0] <= last_scale]  # what comes later explains nothing


def _line_of(step: Operation, why: str, wrong: Wrong) -> CodeLine:
    own, *_ = step.stack
    return CodeLine(*own, own.text, str(step), f"{wrong}{why}", stack=tuple(map(str, step.stack)))


def _in_order(whole_N: Tensor, part_n: Tensor) -> bool:
    """Tell whether rows are among others, in their order."""
    is_n, at_n = (whole_N == part_n[:, None]).max(1)
    return bool(is_n.all()) and bool((at_n.diff() >= 0).all())


def _share(one: TensorRows, other: tuple[tuple[str, int], Tensor]) -> bool:
    return one.kind == other[0] and bool(torch.isin(one.hash_N, other[1]).any())


def _places(whole: Tensor, part: Tensor) -> set[int]:
    """Return where tokens stand among whole numbers in one piece; a single one does only alone."""
    if len(part) == 1 or len(whole) < len(part):
        return {0} if torch.equal(whole, part) else set()
    return set(torch.nonzero((whole.unfold(0, len(part), 1) == part).all(1)).flatten().tolist())
