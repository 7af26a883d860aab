"""The operations of a decode as a stream, and which of them first made a wrong value of right ones.

Promise: a step is named for what went in and came out of it alone; which lines there are is nobody's concern here.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from harness.judge._recorder import LEAST, TAKEN_IN, Frame, Known, Operation, TensorRows

AHEAD, ALIKE = 40, 8  # operations that may lead to a right value, and others of a line that are looked at
UNSEEN = ", made of what no operation here computed: it was there before, or comes of Python, NumPy or another thread"

# Which rows of what a step makes are asked for, by its number; None: all.
Rows = dict[int, Tensor | None]
IN_ORDER = {"view", "reshape", "flatten", "unflatten", "clone", "contiguous", "to"}


class Stream:
    """The operations of a decode, by the rows that each made first.

    `ends` are the numbers of keys of a right pass, `softened` what a right softmax reads. With `last` rows are those
    of the last step that computed them before they are read: laws of one token are alike.
    """

    def __init__(
        self, steps: list[Operation], known: Sequence[Known], ends: Collection[int], softened: Known, last: bool = False
    ) -> None:
        self.steps, self._known, self.ends, self._softened, self._last = steps, known, ends, softened, last
        self._made: dict[tuple[str, int], list[tuple[int, TensorRows]]] = {}
        for number, step in enumerate(steps):
            for rows in step.outputs:
                self._made.setdefault(rows.kind, []).append((number, rows))
        self._usual: dict[tuple[str, tuple[Frame, ...]], bool] = {}
        self._tables: dict[tuple[str, int], tuple[Tensor, ...]] = {}

    def among(self, known: Sequence[Known], last: bool = False) -> "Stream":
        """Return the stream with other rows that are known."""
        return Stream(self.steps, known, self.ends, self._softened, last)

    def _table(self, kind: tuple[str, int]) -> tuple[Tensor, ...]:
        """Return the rows of one kind: hash, step that made it, its place there, whether it is right."""
        if kind not in self._tables and (of := self._made.get(kind)):
            if kind[0] == "whole":  # few numbers are made anywhere: tokens are drawn
                of = sorted(of, key=lambda each: self.steps[each[0]].drawn is None)
            if self._last:
                of = sorted(of, key=lambda each: not (step := self.steps[each[0]]).moves and "index" not in step.name)
            hash_N = torch.cat([rows.hash_N for _, rows in of])
            step_N = torch.cat([torch.full_like(rows.hash_N, number) for number, rows in of])
            at_N = torch.cat([torch.arange(len(rows.hash_N)) for _, rows in of])
            mark_N4 = torch.cat([rows.mark_N4 for _, rows in of])
            hash_N, order_N = hash_N.sort(stable=True)
            is_first_N, step_N = hash_N.diff(prepend=hash_N[:1] - 1) != 0, step_N[order_N]
            same_N = is_first_N.cumsum(0) - 1
            known_n = self.is_known(TensorRows(kind, hash_N[is_first_N], mark_N4[order_N[is_first_N]]))
            if not self._last:
                is_first_N |= step_N == step_N[is_first_N][same_N]  # all rows of the first step
                hash_N, order_N, step_N, same_N = (of[is_first_N] for of in (hash_N, order_N, step_N, same_N))
            self._tables[kind] = hash_N, step_N, at_N[order_N], known_n[same_N]
        return self._tables.get(kind) or (torch.zeros(0), torch.zeros(0), torch.zeros(0), torch.zeros(0).bool())

    def drawn(self, tokens_l: Tensor, is_l: Tensor, windows: Collection[tuple[int, int]]) -> list[Rows]:
        """List the steps that drew tokens, those of the fewest first, then the last ones; of each the places of some.

        Few tokens stand anywhere by chance: they count where one of `windows` (its tokens, those before) has them.
        """
        found: list[tuple[int, int, int]] = []
        for number, step in enumerate(self.steps):
            if (drawn := step.drawn) is not None:
                row = drawn.shape[-1] if drawn.shape[-1] in self.ends else 0
                n, is_few = drawn.numel(), len(tokens_l) < LEAST
                for place in places_of(drawn.flatten(), tokens_l, row):
                    if not is_few or any(n % count == 0 and place % count == before for count, before in windows):
                        found.append((n, -number, place))
        return [self._written(-number, place + torch.nonzero(is_l).flatten()) for _, number, place in sorted(found)]

    def _written(self, number: int, at_n: Tensor) -> Rows:
        """Return the step that drew some of the numbers that one drew or wrote among, or the write."""
        drawn = [n for n in range(number) if self.steps[n].drawn is not None]
        storage = self.steps[number].outputs[-1].storage
        before = [n for n in drawn if self.steps[n].outputs[-1].storage == storage]
        while before and not self.steps[number].by_row:
            was, now = (of.flatten()[at_n] for n in (before[-1], number) if (of := self.steps[n].drawn) is not None)
            if not torch.equal(was, now):
                read = {rows.storage for rows in self.steps[number].inputs} - {storage}
                sources = (n for n in reversed(drawn) if n < number and self.steps[n].outputs[-1].storage in read)
                return {next(sources, number): None}
            number = before.pop()
        return {number: at_n}

    def makers(self, rows: TensorRows, before: int | None = None) -> Rows:
        """Return the steps before one that first made those of the rows that are not right; of None: all of them."""
        if before is not None and rows.kind[0] == "whole":  # the last one that made them there: others make the same
            made = (number for number, each in reversed(self._made.get(rows.kind, [])) if each.storage == rows.storage)
            latest = next((number for number in made if number < before), None)
            if latest is not None and not bool(self.is_known(rows).all()):
                return {latest: None}
            if rows.kind[1] < LEAST:
                return {}
        hash_N, step_N, at_N, known_N = self._table(rows.kind)
        here_N = torch.isin(hash_N, rows.hash_N.to(hash_N.dtype))
        if before is not None:
            here_N &= ~known_N & (step_N < before)
        step_n, at_n = step_N[here_N], at_N[here_N]
        if self._last and len(step_n):
            is_end_n = hash_N[here_N].diff(append=hash_N[-1:] + 1) != 0
            same_n = is_end_n.cumsum(0) - is_end_n.long()
            is_last_n = step_n == step_n[is_end_n][same_n]
            step_n, at_n = step_n[is_last_n], at_n[is_last_n]
        return {n: at_n[step_n == n] if rows.kind[0] == "real" else None for n in step_n.unique().tolist()}

    def read(self, number: int, at_n: Tensor | None) -> Iterator[tuple[TensorRows, bool]]:
        """List what went into a step, of each the rows that some of what came out were made of; whether all are."""
        step = self.steps[number]
        kind, shape = step.outputs[0].kind[0] if step.outputs else "whole", torch.Size(step.made[0])
        is_split = len(step.made) == 1 or step.by_row or step.attends  # of what came out the first has rows to ask for
        total = len(step.outputs[0].hash_N) if kind == "real" else (shape if kind == "whole" else shape[:-1]).numel()
        for i, rows in enumerate(step.inputs):
            n, keep_N = len(rows.hash_N), None
            if at_n is None or rows.kind[0] in ("mask", "truth") or not is_split:
                pass
            elif step.attends and i in (1, 2):  # keys and values as far as the last of the scales, where they are right
                (*_, own, _), (*_, K, _) = step.read[:2]
                if n * own == total * K and K in self.ends:
                    last = K - own + int((at_n % own).max()) if len(step.read) > 3 else K - 1
                    end = min(end for end in self.ends if end > last)
                    keep_N = torch.isin(torch.arange(n) // K, at_n // own) & (torch.arange(n) % K < end)
            elif (n == total and (step.by_row or step.attends)) or (step.name in IN_ORDER and n % total == 0):
                keep_N = torch.isin(torch.arange(n) * total // n, at_n)
            elif step.name in IN_ORDER and total % n == 0:
                keep_N = torch.isin(torch.arange(n), at_n * n // total)
            yield (rows, True) if keep_N is None else (part_of(rows, keep_N), False)

    def makers_of(self, number: int, at_n: Tensor | None = None) -> Rows:
        """Return the steps that made what is wrong of a step's inputs."""
        step = self.steps[number]
        read = [(rows.kind[0], self.makers(rows, number), is_whole) for rows, is_whole in self.read(number, at_n)]
        if step.by_row and at_n is not None:  # what is true of numbers, and their order, are rows of the same numbers
            read = [(kind, self._alike(number, of, at_n, kind == "real"), is_whole and kind == "real")
                    for kind, of, is_whole in read]  # fmt: skip
        # numbers by position are rows of many: what is asked for alone leads on, where it is wrong, too
        parts = [(kind, of) for kind, of, is_whole in read if of and not is_whole]
        makers = parts if step.by_row and parts else [(kind, of) for kind, of, _ in read]
        if step.attends and step.read[1][-2] not in self.ends:  # of too many keys the mask is wrong for their sake
            return merged(of for kind, of in makers if kind == "real")
        # what a right mask hides need not be right: a wrong one comes before all else
        masks = [of for kind, of in makers if of and (kind == "mask" or (kind == "truth" and step.attends))]
        return merged(masks or [of for _, of in makers])

    def _alike(self, number: int, makers: Rows, at_n: Tensor, is_real: bool) -> Rows:
        """Return the rows of steps that are those of another one, where they make as much: of real ones some are."""
        shape, alike = self.steps[number].made[0], Rows()
        for n, made_n in makers.items():
            is_alike = self.steps[n].by_row and self.steps[n].made[0] == shape
            here_n = at_n if made_n is None or not is_real else made_n[torch.isin(made_n, at_n)]
            alike[n] = here_n if is_alike and len(here_n) else made_n if is_real else None
        return alike

    def unseen(self, number: int) -> str:
        """Say whether a step reads what is not known, and no operation before it computed; empty: it does not."""
        for rows in (each for each in self.steps[number].inputs if each.kind[0] == "real"):
            made = {self.steps[each].name for each in self.makers(rows, number)}
            if made <= {TAKEN_IN} and not bool(self.is_known(rows).all()):
                return UNSEEN
        return ""

    def _softens(self, number: int, at_n: Tensor | None) -> bool:
        """Tell whether a step is a right softmax, though it makes more of what rounding moved."""
        read = [rows for rows, _ in self.read(number, at_n)] if "softmax" in self.steps[number].name else []
        return bool(read) and bool(self._softened.has(read[0]).all())

    def is_known(self, rows: TensorRows) -> Tensor:
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

    def _masks_rightly(self, number: int) -> bool:
        """Tell whether a right mask was made of whole numbers that nothing went into, as levels are: they are right."""
        made = {rows.storage for rows in self.steps[number].outputs if rows.kind[0] == "whole"}
        for step in self.steps[number + 1 :] if made and not self.steps[number].inputs else ():
            if any(rows.storage in made for rows in step.inputs):
                masks = [rows for rows in step.outputs if rows.kind[0] == "mask"]
                if masks:  # the first one decides
                    return all(bool(self.is_known(rows).all()) for rows in masks)
                made |= {rows.storage for rows in step.outputs if rows.kind[0] != "real"}
        return False

    def _leads_to_right(self, number: int) -> bool:
        """Tell whether of values that are not known others were made, soon and one by one, that all are."""
        reached = self._unknown(self.steps[number])
        for step in self.steps[number + 1 : number + 1 + AHEAD] if reached else ():
            if step.attends or "norm" in step.name:  # both make right values of some wrong ones
                continue
            if not any(share(one, other) for one in step.inputs for other in reached):
                continue
            real = [rows for rows in step.outputs if rows.kind[0] == "real" and rows.kind[1] >= LEAST]
            told = [self.is_known(rows) & (rows.mark_N4[:, 3] > 0) for rows in real]
            if told and not step.moves and bool(torch.cat(told).all()):
                return True
            reached += self._unknown(step)
        return False

    def _unknown(self, step: Operation) -> list[TensorRows]:
        """Return the rows of real numbers that a step makes and nobody knows: codes of any tokens are right."""
        every = [part_of(rows, ~self.is_known(rows)) for rows in step.outputs if rows.kind[0] == "real"]
        return [rows for rows in every if len(rows.hash_N)]

    def back(self, pending: Rows) -> dict[int, tuple[Tensor | None, Rows]]:
        """Return the steps that some go back to, of each the rows asked for and what made what is wrong of them."""
        found, waiting = dict[int, tuple[Tensor | None, Rows]](), dict(pending)
        while waiting:
            number = max(waiting)  # what reads it comes after it
            at_n = waiting.pop(number)
            found[number] = at_n, self.makers_of(number, at_n)
            waiting = merged((waiting, found[number][1]))
        return found

    def rows(self, back: dict[int, tuple[Tensor | None, Rows]]) -> list[TensorRows]:
        """Return what steps made, of each the rows asked for."""
        made = ((rows, at_n) for number, (at_n, _) in back.items() for rows in self.steps[number].outputs)
        return [rows if at_n is None else part_of(rows, at_n[at_n < len(rows.hash_N)]) for rows, at_n in made]

    def firsts(self, back: dict[int, tuple[Tensor | None, Rows]], pending: Collection[int]) -> Rows:
        """Return the steps that some go back to, whose own inputs are all right, in the order of time."""
        right, firsts = set[int](), dict[int, Tensor | None]()
        for number, (at_n, made_by) in sorted(back.items()):
            if not made_by.keys() - right:
                step = self.steps[number]
                usual = number not in pending and (self._softens(number, at_n) or self._is_usual(number))
                usual = usual or self._masks_rightly(number)
                compares = all(rows.kind[0] == "truth" for rows in step.outputs)  # of windows no two are alike
                if step.moves or usual or compares:
                    right.add(number)
                elif step.stack:
                    firsts[number] = at_n
        return firsts


def share(one: TensorRows, other: TensorRows) -> bool:
    """Tell whether two tensors have a row in common."""
    return one.kind == other.kind and bool(torch.isin(one.hash_N, other.hash_N).any())


def part_of(rows: TensorRows, keep_N: Tensor) -> TensorRows:
    return rows._replace(hash_N=rows.hash_N[keep_N], mark_N4=rows.mark_N4[keep_N])


def merged(every: Iterable[Rows]) -> Rows:
    """Return all steps and rows that several name."""
    made: Rows = {}
    for number, at_n in (pair for each in every for pair in each.items()):
        before = made.get(number, at_n)
        made[number] = None if at_n is None or before is None else torch.cat((before, at_n)).unique()
    return made


def places_of(whole: Tensor, part: Tensor, alone: int = 0) -> set[int]:
    """Return where tokens stand among whole numbers in one piece; a single one does every `alone` numbers, or alone."""
    if len(part) == 1 and alone:
        return set((torch.nonzero(whole[::alone] == part).flatten() * alone).tolist())
    if len(part) == 1 or len(whole) < len(part):
        return {0} if torch.equal(whole, part) else set()
    return set(torch.nonzero((whole.unfold(0, len(part), 1) == part).all(1)).flatten().tolist())
