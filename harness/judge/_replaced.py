"""Cause or symptom: the reference's values in the place of a decode's wrong ones, and whether it is right then.

Promise: what is said was seen. A wrong value is replaced where an operation first makes it, in a decode of its own, and
all that the decoder computes of it is its own; then the first value that is wrong now is, and so on.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.judge._recorder import (
    Frame,
    computes_itself,
    hash_of,
    in_rows,
    own_frames,
    recorded,
    tensors_in,
    written_by,
)
from harness.judge._wrong_decode import Wrong, WrongDecode

MOST_REPLACED = 3  # values, a decode each


class Replacing(TorchDispatchMode):
    """Puts other rows in the place of some, wherever an operation makes these; `places` are the lines that did."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its import takes seconds, and nothing is compiled here

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.places: list[Frame] = []

    def add(self, wrong: Wrong) -> None:
        """Replace the rows of a wrong value, of all images, from the next decode on."""
        for one, other in zip(wrong.batch, wrong.right, strict=True):
            rows, right = in_rows(one), in_rows(other)
            if rows is not None and right is not None and not torch.equal(one, other):
                hash_N, right_NL = self._rows.get(rows[0], (torch.zeros(0, dtype=torch.int64), right[1][:0]))
                added = torch.cat((hash_N, hash_of(rows[1]).cpu())), torch.cat((right_NL, right[1]))
                self._rows[rows[0]] = added

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(computes_itself, types)):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            is_drawn = any(each.is_floating_point() for each in tensors_in((args, kwargs)))
            written, _ = written_by(func, args, kwargs or {})
            for made in written or tensors_in(result):
                is_expanded = any(n > 1 and not step for n, step in zip(made.shape, made.stride(), strict=True))
                if is_expanded or not (made.is_floating_point() or is_drawn):
                    continue  # whole numbers stand anywhere: tokens are drawn
                if self._replace(made):
                    self.places += own_frames()[:1]
        return result

    def _replace(self, made: Tensor) -> bool:
        """Replace rows within a tensor; tell whether there were any."""
        if (rows := in_rows(made)) is None or rows[0] not in self._rows:
            return False
        (hash_N, right_NL), (_, made_nL) = self._rows[rows[0]], rows
        is_nN = hash_of(made_nL).cpu()[:, None] == hash_N
        is_n = is_nN.any(1)
        if not bool(is_n.any()):
            return False
        fixed_nL = made_nL.clone()
        fixed_nL[is_n.to(made.device)] = right_NL[is_nN[is_n].int().argmax(1).to(right_NL.device)].to(made)
        made.copy_(fixed_nL.reshape(made.shape))
        return True


def what_was_tried(decode: WrongDecode) -> str:
    """Replace the first wrong values one after another; say where, and what came of it. Raises as the decoder does."""
    replacing, names = Replacing(), list[str]()
    while True:
        replacing.places.clear()
        trace = recorded(replacing, decode.decode)
        with torch.inference_mode():
            expected = decode.reference(decode.models.target, trace.tokens_BL, decode.models.pyramid.S)
            left = next(decode.wrong_values(trace, expected), None)
            elsewhere = left is not None and decode.is_right_elsewhere(left, expected)
            if left is None or elsewhere or left.place in names or len(names) == MOST_REPLACED:
                break
            replacing.add(left)
        names.append(left.place)
    if left is not None and elsewhere and not names:
        return f"not replaced: {left.place} is right in another place"
    lines = dict.fromkeys(f"{Path(each.file).name}:{each.line}" for each in replacing.places)
    if not lines:
        return f"not replaced: no operation makes {left} as it is shown"
    then = "every value of the case is right then" if left is None else f"the next wrong one is {left}"
    then = f"{left} stays wrong" if left is not None and left.place in names else then
    return f"replaced by the reference's at {', '.join(lines)}: {', '.join(names)}: {then}"
