"""The operations of a decode as a stream, and which of them first made a wrong value of right ones.

Promise: a step is named for what went in and came out of it alone; which lines there are is nobody's concern here.
"""

from collections.abc import Collection, Sequence
from itertools import islice

import torch
from torch import Tensor

from harness.judge._recorder import LEAST, Frame, Known, Operation, TensorRows

AHEAD, ALIKE = 40, 8  # operations that may lead to a right value, and others of a line that are looked at
UNSEEN = ", made of what no operation here computed: it was there before, or comes of Python, NumPy or another thread"


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
            if kind[0] == "whole":  # few numbers are made anywhere: tokens are drawn
                of = sorted(of, key=lambda each: not self.draws(each[0]))
            hash_N = torch.cat([rows.hash_N for _, rows in of])
            step_N = torch.cat([torch.full_like(rows.hash_N, number) for number, rows in of])
            mark_N4 = torch.cat([rows.mark_N4 for _, rows in of])
            hash_N, order_N = hash_N.sort(stable=True)
            first_n = torch.nonzero(hash_N.diff(prepend=hash_N[:1] - 1)).flatten()
            hash_n, order_n = hash_N[first_n], order_N[first_n]
            rows = TensorRows(kind, hash_n, mark_N4[order_n])
            self._tables[kind] = hash_n, step_N[order_n], self._is_known(rows)
        return self._tables.get(kind) or (torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))

    def draws(self, number: int) -> bool:
        """Tell whether a step reads real numbers."""
        return any(rows.kind[0] == "real" for rows in self.steps[number].inputs)

    def makers(self, rows: TensorRows, before: int | None = None) -> set[int]:
        """Return the steps before one that first made those of the rows that are not right; of None: all of them."""
        if before is not None and rows.kind[0] == "whole" and rows.kind[1] < LEAST:
            return self._latest(rows, before)
        hash_N, step_N, known_N = self._table(rows.kind)
        here_N = torch.isin(hash_N, rows.hash_N.to(hash_N.dtype))
        if before is not None:
            here_N &= ~known_N & (step_N < before)
        return set(step_N[here_N].tolist())

    def _latest(self, rows: TensorRows, before: int) -> set[int]:
        """Return the last step before one that made few whole numbers there: others make the same."""
        made = reversed(self._made.get(rows.kind, []))
        here = (number for number, each in made if number < before and each.storage == rows.storage)
        number = next(here, None) if not bool(self._is_known(rows).all()) else None
        return set() if number is None else {number}

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
            if not any(share(one, other) for one in step.inputs for other in reached):
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
                step = self.steps[number]
                # a softmax of right logits is right, though it makes more of what rounding moved
                is_right = step.moves or (number not in wrong and ("softmax" in step.name or self._is_usual(number)))
                (right.add if is_right else firsts.append)(number)
        return [number for number in firsts if self.steps[number].stack]


def share(one: TensorRows, other: tuple[tuple[str, int], Tensor]) -> bool:
    """Tell whether rows of a tensor are among others, which are given by kind and hashes."""
    return one.kind == other[0] and bool(torch.isin(one.hash_N, other[1]).any())
