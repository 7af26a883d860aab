"""The rounds of SDVAR's parallel decode: what was seen of each, and which tensors stand behind its scales.

Promise: pure functions of what was recorded; an attempt of which nothing was kept counts for the round after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, SupportsInt

import torch
from torch import Tensor

from harness.adapters.recorder import SeenPass, SeenWrite
from harness.protocol.trace import Round


@dataclass
class Turn:
    """One attempt: drafted tokens, the passes that checked them, what was accepted and made final."""

    first: int
    drafted: list[Tensor]
    draft_rows: int = 0
    made_by: list[SeenPass] = field(default_factory=list)
    pieces: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    target_rows: int = 0
    accepted: int = 0
    final: list[Tensor] = field(default_factory=list)
    f_hats: dict[int, Tensor] = field(default_factory=dict)


def f_hats_of(writes: list[SeenWrite], state: Any, first: int, count: int) -> dict[int, Tensor]:
    """Return the target's f_hat after every scale of an update: by its memory where it is known, else the last."""
    f_hat, found = getattr(state, "target_f_hat", None), {}
    place = f_hat.data_ptr() if isinstance(f_hat, Tensor) else -1
    for si in range(first, first + count):
        mine = [write for write in writes if write.scale == si]
        kept = [write for write in mine if write.place == place] or mine
        if kept:
            found[si] = kept[-1].f_hat_BCPP
    if count and isinstance(f_hat, Tensor):
        found[first + count - 1] = f_hat.detach().clone()
    return found


def inputs_of(turn: Turn, k: int) -> Tensor | None:
    """Return the inputs behind the k-th scale's rows: where the logits that were kept for it stand in a pass."""
    if not turn.made_by or k >= len(turn.drafted):
        return None
    sizes = [idx.shape[1] for idx in turn.drafted]
    begin, l = sum(sizes[:k]), sizes[k]
    whole = [each for each in turn.made_by if each.n == sum(sizes)]
    if k < len(turn.pieces):
        found = [(each, at) for each in turn.made_by for at in _places(each, turn.pieces[k])]
        own = [(each, at) for each, at in found if at == begin and each in whole]
        if found:
            made_by, at = (own or found)[-1] if own else found[0]
            return made_by.x_RnD[:, at : at + l]
    x_RnD = torch.cat([each.x_RnD for each in whole[-1:] or turn.made_by], 1)  # of one pass, or of all in their order
    return x_RnD[:, begin : begin + l] if x_RnD.shape[1] == sum(sizes) else None


def rows_of(turn: Turn, k: int) -> Tensor | None:
    """Return the k-th scale's rows of the passes that checked it, where the code splits them elsewhere."""
    known = [each.rows_RnV for each in turn.made_by if each.rows_RnV is not None]
    if not known or k >= len(turn.drafted):
        return None
    sizes = [idx.shape[1] for idx in turn.drafted]
    begin, total = sum(sizes[:k]), sum(sizes)
    rows_RnV = known[-1] if known[-1].shape[1] == total else torch.cat(known, 1)
    return rows_RnV[:, begin : begin + sizes[k]] if rows_RnV.shape[1] == total else None


def scales_of(made: object) -> int | None:
    """Return how many scales a rule accepts: alone or first of what it returns; None where it says nothing."""
    made = made[0] if isinstance(made, tuple) and made else made
    return int(made) if isinstance(made, SupportsInt) else None


def _places(made_by: SeenPass, piece: Tensor) -> list[int]:
    """Return where in a pass rows stand."""
    rows_RnV, l = made_by.rows_RnV, piece.shape[1]
    if rows_RnV is None or len(rows_RnV) != len(piece) or rows_RnV.shape[1] != made_by.n:
        return []
    return [at for at in range(made_by.n - l + 1) if torch.equal(rows_RnV[:, at : at + l], piece)]


def rounds_of(turns: list[Turn]) -> Iterator[Round]:
    """Yield the rounds that made something final, the passes of attempts before them included."""
    spare_target = spare_draft = 0
    for turn in turns:
        spare_target, spare_draft = spare_target + turn.target_rows, spare_draft + turn.draft_rows
        if not turn.final:
            continue
        sizes = [idx.shape[1] for idx in turn.final]
        accepted = min(turn.accepted, len(turn.final), len(turn.drafted))
        corrected = len(turn.final) > accepted
        yield Round(
            first=turn.first,
            drafted=len(turn.drafted),
            accepted=accepted,
            corrected=corrected,
            bonus=False,
            accepted_tokens=sum(sizes[:accepted]),
            corrected_tokens=sum(sizes[accepted:]),
            bonus_tokens=0,
            target_rows=spare_target,
            draft_rows=spare_draft,
        )
        spare_target = spare_draft = 0
