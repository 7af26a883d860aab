"""From a wrong value back to the operation that first made it wrong, or put it where it is.

Promise: what is named ran, and led to the wrong value: it had right values going in (the reference computes them, too,
or they are weights and numbers) and a wrong one coming out, or put a right one in another place; or it compared drafted
tokens with the target's, and the wrong ones were taken.

One module: every rule hands the search on to another one, and each is a few lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from harness.judge._recorder import LEAST, Known, Operation, TensorRows, rows_of
from harness.judge._stream import Rows, Stream, merged, part_of, places_of, share
from harness.judge._wrong_decode import Wrong

MOVERS = {  # copy rows, in another order or not
    "cat", "clone", "contiguous", "copy_", "flip", "gather", "index", "index_put_", "index_select", "roll", "stack",
}  # fmt: skip
TURNS = {"mul", "div", "add", "sub", "roll", "flip"}  # hand on what they should have changed, or elsewhere
NEAR = 24  # operations of a function that tell what it works on
ELSEWHERE = ", made of what is right in another place"

Found = tuple[Operation, str]  # an operation, and what there is to say of it


@dataclass(frozen=True)
class Search:
    """Where the line is searched: the decode's operations, and its proposed tokens that are not the target's."""

    along_any: Stream  # what is right along the final tokens or along drafted ones is known
    along_final: Stream  # what is right along the final tokens is known
    right: Stream  # the reference's operations along the final tokens; nothing is known
    weights: list[TensorRows]
    close: float
    rejected: list[tuple[int, Tensor, Tensor]]  # scale, tokens of the draft, the target's
    counts: tuple[int, ...]  # tokens of every scale

    def _windows(self, si: int) -> set[tuple[int, int]]:
        """Return of every window with a scale its tokens, and those before the scale's."""
        counts, S = self.counts, len(self.counts)
        windows = ((counts[first:si], counts[si:end]) for first in range(si + 1) for end in range(si + 1, S + 1))
        return {(sum(before) + sum(others), sum(before)) for before, others in windows}

    def computed(self, wrong: Wrong) -> Found | None:
        """Return the operation that computed a wrong value of right ones."""
        rows, stream = rows_of(wrong.actual), self.along_any
        if rows is None:
            return None
        placed, made = self._placed(wrong), stream.makers(rows, None if wrong.is_tokens else len(stream.steps))
        if wrong.is_tokens:  # few whole numbers may be right anywhere, and stand anywhere: they were drawn
            # the draft draws them, too: the target's draw is that which reads least of what belongs elsewhere
            draws = stream.drawn(wrong.actual.flatten().cpu(), wrong.wrong_l, self._windows(wrong.scale))
            if placed is not None:
                draws.sort(key=lambda draw: sum(map(partial(self._is_elsewhere, placed), self._read_of(draw))))
            made = draws[0] if draws else made if rows.kind[1] >= LEAST else {}
        back = stream.back(made)
        for first, at_n in stream.firsts(back, made).items():
            # the draft's law may be the same, where it leaves one token: what was drawn is of the last one
            before = range(first, max(made)) if wrong.is_tokens else ()
            number = next((n for n in reversed(before) if _is_alike(stream.steps[n], stream.steps[first])), first)
            step = stream.steps[number]
            read = [rows for rows, _ in stream.read(number, at_n)] if step.attends else []
            drafted = [part_of(rows, ~self.along_final.is_known(rows)) for rows in read]
            emptied = [part_of(rows, rows.mark_N4[:, 3] == 0) for rows in read[1:3]]
            found = self._put_back([*stream.rows(back), *drafted], placed) or self._put_back(emptied, placed, number)
            if found:
                return found
            # with keys of final tokens, or for these tokens alone, it would have been right
            alone = wrong.is_tokens and len(step.whole) == 1 and len(step.whole[0]) == wrong.actual.numel()
            found = self._taken(self.along_final.makers_of(number), wrong) if step.attends or alone else None
            if found:
                return found[0], f"{found[1]}, read at line {step.stack[0].line}"
            above = self._masked(number) or self._again(number, wrong)
            if not self._drops_otherwise(back):
                above = above or self._misplaced(number, at_n, placed, wrong)
            above = above or self._unchanged(number, at_n) or self._filtered(number)
            return above or (step, stream.unseen(number))
        return None

    def _is_elsewhere(self, placed: Known, rows: TensorRows) -> bool:
        return bool((self.along_any.is_known(rows) & ~placed.has(rows)).any())

    def _read_of(self, made: Rows) -> Iterator[TensorRows]:
        """List the real numbers that those steps read which first made what is wrong of what some make."""
        for number, at_n in self.along_any.firsts(self.along_any.back(made), made).items():
            for rows, _ in self.along_any.read(number, at_n):
                if rows.kind[0] == "real" and rows.kind[1] >= LEAST:
                    yield rows

    def _placed(self, wrong: Wrong) -> Known | None:
        """Return all that the reference makes a value of, in its place; None where it is not seen to."""
        right = self.right
        if wrong.is_tokens:
            right = right.among([Known((), self.close)], last=True)
            draws = right.drawn(wrong.expected.flatten().cpu(), wrong.wrong_l, self._windows(wrong.scale))
            made = draws[0] if draws else {}
        else:
            rows = rows_of(wrong.expected)
            made = right.makers(rows) if rows else {}
        # of a weight that it looks numbers up in it makes those alone
        looks_up = (step for step in self.right.steps if any(rows.kind[0] == "whole" for rows in step.inputs))
        looked_up = [rows for step in looks_up for rows in step.outputs]
        weights = [each for each in self.weights if not any(share(each, rows) for rows in looked_up)]
        return Known([*right.rows(right.back(made)), *weights], self.close) if made else None

    def _masked(self, number: int) -> Found | None:
        """Return the operation that made a wrong mask, which hides nothing or is no window's."""
        stream, stack = self.along_any, self.along_any.steps[number].stack
        near = (n for n in reversed(range(number + 1)) if stream.steps[n].attends and stream.steps[n].stack == stack)
        if (number := next(near, -1)) < 0:
            return None
        one_scale = [(count, sum(self.counts[: si + 1])) for si, count in enumerate(self.counts)]  # hides nothing
        for rows in stream.steps[number].inputs[3:]:
            if rows.kind[0] == "real" and stream.steps[number].read[3][-2:] in one_scale:
                continue
            if not (bool(rows.mark_N4.any()) if rows.kind[0] == "real" else bool(stream.is_known(rows).all())):
                maker = _maker_of(rows, stream.steps[:number])
                pieces = maker.inputs if maker and maker.moves else []  # put together of a wrong one
                wrong = [each for each in pieces if each.kind[0] == "mask" and not bool(stream.is_known(each).all())]
                makes = (step for step in stream.steps[:number] if step.stack)
                first = next((step for step in makes if any(map(partial(_has, step.outputs), wrong))), maker)
                return first and (first, ", of a wrong mask")
        return None

    def _again(self, number: int, wrong: Wrong) -> Found | None:
        """Return an operation, seen from the function that called for it once more, after it had made what is right."""
        step, rows = self.along_any.steps[number], rows_of(wrong.expected)
        if rows is None or not any(share(each, rows) for each in step.inputs):
            return None
        makers = [self.along_any.steps[n] for n in self.along_any.makers(rows)]
        again = next((maker for maker in makers if maker.stack[:1] == step.stack[:1]), None)
        return again and (_met(step, again), ", which was right before")

    def _misplaced(self, number: int, at_n: Tensor | None, placed: Known | None, wrong: Wrong) -> Found | None:
        """Return the operation that handed on what is right in another place than the wrong value's."""
        step = self.along_any.steps[number]
        if at_n is None or placed is None or (step.attends and step.read[1][-2] not in self.along_any.ends):
            return None  # of all rows, or keys of no right pass, some are of other places
        if step.rounds and all(bool(self.along_any.is_known(rows).all()) for rows in step.inputs):
            return None  # what is right is so no longer in fewer bits, wherever it belongs
        for other in self._of_elsewhere(number, at_n, placed):
            found = self._handed(other, number, placed) or self._moved(other, number, placed)
            return found or self._strictly(number, at_n, placed)
        return None

    def _of_elsewhere(self, number: int, at_n: Tensor | None, placed: Known) -> Iterator[TensorRows]:
        """List the rows that a step read for some of what it made which are right in another place alone."""
        for rows, _ in self.along_any.read(number, at_n):
            other = part_of(rows, self.along_any.is_known(rows) & ~placed.has(rows))
            if rows.kind[0] == "real" and rows.kind[1] >= LEAST and len(other.hash_N):
                yield other

    def _moved(self, rows: TensorRows, number: int, placed: Known) -> Found | None:
        """Return the last operation before one that put rows, or those that they were made of, in another order."""
        steps, waiting, seen = self.along_any.steps, [(number, rows)], set[int]()
        moves = [step.name == "expand" or (step.name in MOVERS and not _is_view(step)) for step in steps]
        movers = [n for n, step in enumerate(steps) if step.stack and moves[n]]
        while waiting:
            before, asked = waiting.pop(0)
            for step in (steps[n] for n in reversed(movers) if n < before):
                if any(share(each, asked) for each in step.outputs) and self._reorders(step):
                    return step, ELSEWHERE
            for n, at_n in self.along_any.makers(asked).items():
                if n < before and (steps[n].by_row or _is_view(steps[n])) and n not in seen:
                    waiting += [(n, each) for each in self._of_elsewhere(n, at_n, placed)]
                    seen.add(n)
        return None

    def _reorders(self, step: Operation) -> bool:
        """Tell whether rows of one tensor come out as many as they were, but in another order, or some for others."""
        steps = self.along_any.steps
        of = (other for rows in step.outputs for n in self.along_any.makers(rows) for other in steps[n].outputs)
        pairs = [(rows.hash_N, other.hash_N) for other in of for rows in step.outputs if rows.kind == other.kind]
        alike = [pair for pair in pairs if len(pair[0]) == len(pair[1]) and not torch.equal(*pair)]
        return any(bool(torch.isin(*pair).all()) for pair in alike)

    def _drops_otherwise(self, back: dict[int, tuple[Tensor | None, Rows]]) -> bool:
        """Tell whether a filter made wrong rows of right ones: it drops other tokens.

        What it compares them with may be made of all rows at once, those of other places among them.
        """
        for number, (at_n, _) in back.items():
            step = self.along_any.steps[number]
            if step.by_row and any(rows.kind[0] == "truth" for rows in step.inputs):
                read = [rows for rows, _ in self.along_any.read(number, at_n) if rows.kind[0] == "real"]
                if read and all(bool(self.along_any.is_known(rows).all()) for rows in read):
                    return True
        return False

    def _strictly(self, number: int, at_n: Tensor | None, placed: Known) -> Found:
        """Return the first operation that made what a step reads of what the reference makes in its place.

        It is the step itself where that is made of drawn tokens: these were right until then.
        """
        stream, pending = self.along_any.among([placed], last=True), Rows({number: at_n})
        back = stream.back(pending)
        firsts = (stream.steps[n] for n in stream.firsts(back, pending))
        # what makes whole numbers of nothing, as levels are, puts nothing anywhere
        first = next((step for step in firsts if step.inputs or _is_real(step)), stream.steps[number])
        is_right = all(bool(self.along_any.is_known(rows).all()) for rows in first.outputs)
        if is_right and any(stream.steps[n].drawn is not None for n in back):
            first = stream.steps[number]
        return first, ELSEWHERE * is_right

    def _unchanged(self, number: int, at_n: Tensor | None) -> Found | None:
        """Return the operation that made a wrong factor, or term, which changed nothing of what a step reads."""
        steps, stream = self.along_any.steps, self.along_any
        for rows, _ in stream.read(number, at_n):
            if rows.kind[0] != "real":
                continue
            for n in (n for n in reversed(range(number)) if _keeps(steps[n], rows)):
                factors = (each for each in steps[n].inputs if not share(rows, each))
                pending = merged(stream.makers(each, n) for each in factors)
                first = next(iter(stream.firsts(stream.back(pending), pending)), None)
                return None if first is None else (steps[first], ", by what changes nothing")
        return None

    def _filtered(self, number: int) -> Found | None:
        """Return the last filter of logits that are right, where the reference filters them further."""
        step = self.along_any.steps[number]
        read = step.inputs[:1] if "softmax" in step.name else ()  # nothing is remembered of a weight
        maker = next((_maker_of(rows, self.along_any.steps[:number]) for rows in read), None)
        if maker is None or not any(rows.kind[0] == "truth" for rows in maker.inputs):
            return None
        own, called = ([each[::2] for each in of.stack] for of in (step, maker))
        return (maker, ", which is filtered no further") if own == called[-len(own) :] else None

    def _put_back(self, wrong: list[TensorRows], placed: Known | None, before: int | None = None) -> Found | None:
        """Return the operation, before one, that wrote wrong rows over newer right ones, or zeros over what is due."""
        hashes, makers, steps = dict[tuple[str, int], list[Tensor]](), self.along_any.makers, self.along_any.steps
        for each in wrong:
            hashes.setdefault(each.kind, []).append(each.hash_N)
        for number, step in enumerate(steps[:before]):
            others = list(product(step.outputs, step.inputs[1:])) if step.name == "where" else []  # it chose the older
            for new, old in [*zip(step.outputs, step.over, strict=False), *others] if step.stack else ():
                if new.kind != old.kind or new.kind not in hashes or len(new.hash_N) != len(old.hash_N):  # resized
                    continue
                is_over = torch.isin(new.hash_N, torch.cat(hashes[new.kind])) & (new.hash_N != old.hash_N)
                is_over &= self.along_final.is_known(old) & (old.mark_N4[:, 3] > 0)
                if not bool(is_over.any()):
                    continue
                is_zero = new.mark_N4[:, 3] == 0
                since = max(makers(part_of(old, is_over & ~is_zero)), default=-1)
                if min(makers(part_of(new, is_over & ~is_zero)), default=since) < since:
                    return step, ", which is older than what was there"
                lost = part_of(old, is_over & is_zero & (placed.has(old) if placed else False))
                later = (each for other in steps[number + 1 : before] for each in other.outputs if share(lost, each))
                again = torch.cat([lost.hash_N[:0], *(each.hash_N for each in later)])  # as after a cache was emptied
                if not bool(torch.isin(lost.hash_N, again).all()):
                    return step, ", zeros over what was right"
        return None

    def _handed(self, rows: TensorRows, number: int, placed: Known) -> Found | None:
        """Return the first operation that handed rows on to a step, that of a new line where there is one."""
        steps, links, storages = self.along_any.steps, list[int](), [rows.storage]
        origin, read = number, set(self.along_any.steps[number].read)
        for n in reversed(range(number)):
            if _is_view(steps[n]) and not set(steps[n].made) & read:
                continue  # of the same memory, but for another reader
            if any(each.storage in storages and share(each, rows) for each in steps[n].outputs):
                sources = [each.storage for each in steps[n].inputs if share(each, rows)]
                if not sources or (steps[n].by_row and len(steps[n].read) > 1 and steps[n].name != "where"):
                    origin = n
                    break
                links.append(n)
                read = set(steps[n].read)
                storages = sources  # of several the last that was made
        links = [n for n in links if steps[n].stack and steps[n].stack != steps[origin].stack]
        for link in (each for each in (*links, origin) if steps[each].stack):
            for index in (each for each in steps[link].inputs if each.kind[0] == "whole"):
                maker = _maker_of(index, steps[:link])  # tokens are right where they were drawn
                return maker if maker and maker.drawn is None else steps[link], ", by an index of another place"
        first = steps[origin]
        over = first.over if first.inputs else []  # numbers drawn into fresh memory are over what lay there by chance
        if links and first.stack and over and all(bool(placed.has(each).all()) for each in over):
            return first, ", over what was right"  # who reads memory that is shared may be right
        if not links and steps[origin].stack and not steps[origin].inputs:
            links = [origin]
        if not links:
            return None
        before = {(step.name, step.stack) for step in steps[:origin]}
        link = next((n for n in reversed(links) if (steps[n].name, steps[n].stack) not in before), links[-1])
        return steps[link], ELSEWHERE

    def taken(self, wrong: Wrong) -> Found | None:
        """Return the operation that compared drafted tokens with the target's, where it was made of the former."""
        rows, stream = rows_of(wrong.actual), self.along_final
        if wrong.is_tokens:
            return self._compared([wrong.actual.flatten().cpu()], wrong)
        return rows and self._taken(stream.makers(rows, len(stream.steps)), wrong)

    def elsewhere(self, wrong: Wrong, is_sure: bool = False) -> Found | None:
        """Return the operation that put a value where it is wrong, which is right in another place.

        `is_sure` asks for one that hands it on after the right one was there, or by arithmetic.
        """
        rows, right = rows_of(wrong.actual), rows_of(wrong.expected)
        if wrong.is_tokens or rows is None or right is None:
            return None
        makes = [(n, step) for n, step in enumerate(self.along_final.steps) if step.stack and _has(step.outputs, rows)]
        if all(_has(step.inputs, rows) for _, step in makes):  # nobody here computed it: another thread, say
            return None
        # what computes it may be right, what hands it on is not: in the place of the right one, if that is there
        hand_on = [(n, step) for n, step in makes if step.name != "to" and _has(step.inputs, rows)]
        due, steps = Known([right], self.close), self.along_final.steps
        since = next((n for n, step in enumerate(steps) if any(map(due.nonzero, step.outputs))), len(steps))
        instead = [
            (step.name not in ("roll", "flip"), not any(map(due.nonzero, step.inputs)), n)
            for n, step in hand_on
            if n > since and not _in_order(step, rows, due)
        ]
        changed = [step for _, step in hand_on if step.name in TURNS]
        others = [] if is_sure else [step for _, step in makes]
        step = next(iter((*(steps[n] for *_, n in sorted(instead)), *changed, *others)), None)
        made = self.along_any.makers(rows)
        if made and others[:1] == [step] and (placed := self._placed(wrong)) is not None:
            return self._strictly(max(made), made[max(made)], placed)
        return step and (step, ELSEWHERE * bool(self.along_any.is_known(rows).all()))

    def _taken(self, pending: Rows, wrong: Wrong) -> Found | None:
        steps = self.along_final.steps
        for number in self.along_final.firsts(self.along_final.back(pending), pending):
            function = steps[number].stack[0].function
            near = [step for step in steps[max(0, number - NEAR) : number + 1] if step.stack]
            whole = [each for step in near if step.stack[0].function == function for each in step.whole]
            if found := self._compared(whole, wrong):
                return found
        return None

    def _drawn(self, tokens_l: Tensor) -> int:
        """Return the number of the operation that first made tokens; a large one where none is seen."""
        rows, steps = rows_of(tokens_l), self.along_final.steps
        return min(self.along_final.makers(rows) if rows else (), default=len(steps))

    def _compared(self, whole: list[Tensor], wrong: Wrong) -> Found | None:
        """Return the operation that met both, where numbers hold a draft's tokens and not the target's."""
        for si, theirs, right in (each for each in self.rejected if each[0] <= wrong.made_of):
            is_held = any(places_of(each, theirs) and not places_of(each, right) for each in whole)
            if not is_held or self._drawn(theirs) > self._drawn(right):  # what the target draws comes after
                continue
            for step in self.along_final.steps:
                places = [set().union(*(places_of(each, one) for each in step.whole)) for one in (theirs, right)]
                if places[0] & places[1] and step.stack and not step.moves:
                    why = f", made of drafted tokens of scale {si} that are not the target's: "
                    chosen = self._chosen(theirs, right)
                    return (chosen, f"{why}chosen by this") if chosen else (step, f"{why}compared here")
        return None

    def _chosen(self, theirs: Tensor, right: Tensor) -> Operation | None:
        """Return the operation that made the mask by which a draft's tokens were taken, not the target's."""
        steps = self.along_final.steps
        for number, step in enumerate(steps):
            mask = next((rows for rows in step.inputs if rows.kind[0] == "truth"), None)
            (came, _), (left, lost) = ([any(places_of(each, one) for each in of) for one in (theirs, right)]
                                       for of in (step.whole[:-1], step.whole[-1:]))  # fmt: skip
            if mask is not None and bool(mask.hash_N.any()) and came and left and not lost:
                return _maker_of(mask, steps[:number])
        return None


def _is_alike(step: Operation, other: Operation) -> bool:
    return (step.name, step.stack[:1], step.made) == (other.name, other.stack[:1], other.made)


def _met(step: Operation, other: Operation) -> Operation:
    """Return an operation seen from the innermost function that called for both."""
    depth = 0
    for one, two in zip(reversed(step.stack), reversed(other.stack), strict=False):
        if one[::2] != two[::2]:
            break
        depth += 1
        if one != two:
            break
    return step._replace(stack=step.stack[len(step.stack) - depth :]) if depth else step


def _maker_of(rows: TensorRows, steps: Sequence[Operation]) -> Operation | None:
    """Return the last operation that wrote what a tensor shows."""
    makes = (each for each in reversed(steps) if rows.storage in [made.storage for made in each.outputs])
    return next((each for each in makes if each.stack and not _is_view(each)), None)


def _keeps(step: Operation, rows: TensorRows) -> bool:
    """Tell whether a step hands rows on that it should have changed."""
    return step.name in TURNS and all(any(share(rows, each) for each in of) for of in (step.inputs, step.outputs))


def _is_real(step: Operation) -> bool:
    return any(rows.kind[0] == "real" for rows in step.outputs)


def _is_view(step: Operation) -> bool:
    storages = {rows.storage for rows in step.inputs}
    return step.moves and all(rows.storage in storages for rows in step.outputs)


def _in_order(step: Operation, rows: TensorRows, due: Known) -> bool:
    """Tell whether a step takes rows and what is due out of one tensor, and hands both on as they stand there."""
    places = [((each.hash_N == rows.hash_N[0]).nonzero().flatten().tolist(), due.nonzero(each))
              for each in (*step.inputs, *step.outputs)]  # fmt: skip
    orders = [at[0] < due_at[0] for at, due_at in places if at and due_at]
    return len(orders) > 1 and len(set(orders)) == 1


def _has(every: list[TensorRows], rows: TensorRows) -> bool:
    """Tell whether one of several tensors has all rows of another, in their order."""
    found = ((each.hash_N == rows.hash_N[:, None]).max(1) for each in every if each.kind == rows.kind)
    return any(bool(is_n.all()) and bool((at_n.diff() >= 0).all()) for is_n, at_n in found)
