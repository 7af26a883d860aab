"""Laws of the methods that make one pass of a window: its query, its mask, and the split of its logits.

Promise: one function a law; the first wrong scale is named with its positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.adapters.parts_state import flexible, state_at, window
from harness.adapters.probe import MOST_ROWS, Probe, require_close, require_sight, require_tensor
from harness.judge.part_law import Broken, require
from harness.reference.steps import block_causal


def query(probe: Probe, sdvar: Any) -> None:
    """Require that the query of a window is the inputs of its scales."""
    side = probe.target
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        got = sdvar._build_combined_query(tokens, state, probe.request.B)
        begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1)
        due = side.run.x_RLD[:, begin:end]
        require(isinstance(got, Tensor), f"{window(first, count)}: a {type(got).__name__}, not a tensor")
        error = probe.input_error(due)
        if (
            got.shape[0] == len(due)
            and got.shape[1] == due.shape[1] + 1
            and bool(((got[:, 1:] - due).abs() <= error).all())
        ):
            found = f"{window(first, count)}: {got.shape[1]} rows for {due.shape[1]} positions"
            raise Broken(f"{found}: a start token stands before the drafted scales, and all sit one position later")
        require_tensor(got, due.shape, f"{window(first, count)}: the query")
        for k in range(count):
            _query_scale(probe, got, due, (first, k), error)


def _query_scale(probe: Probe, got: Tensor, due: Tensor, where: tuple[int, int], error: float) -> None:
    """Compare one scale of a query, and name what stands there instead."""
    first, si = where[0], sum(where)
    B, network = probe.request.B, probe.target.network
    span = probe.pyramid.span(si)
    rows = slice(span.start - probe.pyramid.begin(first), span.stop - probe.pyramid.begin(first))
    actual, expected = got[:, rows], due[:, rows]
    own = network.embed(probe.code.models.vae.quantizer.codebook_VC[probe.tokens_BL[:, span]])
    position = network.lvl_SD[si] + network.pos_LD[span]
    why: dict[str, Tensor] = {
        "the codes of its own tokens stand in place of the resized f_hat": (own + position).repeat(2, 1, 1),
        "the guidance halves are swapped": expected.roll(B, 0),
        "both halves are the conditional one: doubled last": expected[:B].repeat(2, 1, 1),
    }
    for step in (-1, 1):
        moved = (
            network.pos_LD.roll(step, 0)[span] + network.lvl_SD[torch.tensor(probe.pyramid.levels()).roll(step)[span]]
        )
        why[f"its position term is {abs(step)} position {'later' if step < 0 else 'earlier'}"] = (
            expected - position + moved
        )
    wrong = ((actual - expected).abs() > error).any(-1).any(0) | ~torch.isfinite(actual).all(-1).all(0)
    at = torch.nonzero(wrong).flatten().tolist()
    places = f", positions {span.start + at[0]}..{span.start + at[-1]}" if at else ""
    require_close(actual, expected, error, f"window from scale {first}, scale {si}{places}", why)


def query_arguments(probe: Probe, sdvar: Any) -> None:
    """Require that building a query changes nothing."""
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        before, f_hats = [idx.clone() for idx in tokens], [state.draft_f_hat.clone(), state.target_f_hat.clone()]
        sdvar._build_combined_query(tokens, state, probe.request.B)
        require(all(map(torch.equal, tokens, before)), f"{window(first, count)}: it wrote into the drafted tokens")
        same = torch.equal(state.draft_f_hat, f_hats[0]) and torch.equal(state.target_f_hat, f_hats[1])
        require(same, f"{window(first, count)}: f_hat is another one after it: drafted scales will be counted twice")


def _tags(probe: Probe, first: int, count: int, more: int = 0) -> Tensor:
    """Return (2B,n,V) logits: every number says its row and position."""
    begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1) + more
    position = torch.arange(begin, end, device=probe.code.models.device, dtype=torch.float64)
    row = MOST_ROWS * torch.arange(2 * probe.request.B, device=position.device)
    V = probe.target.network.config.V
    return (row[:, None] + position)[..., None].expand(-1, -1, V).clone()


def split(probe: Probe, sdvar: Any) -> None:
    """Require that every scale gets its own rows."""
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        tags, B = _tags(probe, first, count), probe.request.B
        given = {"target_logits": tags, "draft_tokens": tokens, "B": B, "state": state}
        got = flexible(sdvar._split_logits_by_stage, **given)
        require(len(got) == count, f"{window(first, count)}: {len(got)} pieces for {count} scales")
        for k, piece in enumerate(got):
            span = probe.pyramid.span(first + k)
            offset = probe.pyramid.begin(first)
            due = tags[:, span.start - offset : span.stop - offset]
            what = f"{window(first, count)}: scale {first + k}"
            if piece.shape[0] != len(due) or piece.shape[1] != due.shape[1]:
                raise Broken(f"{what} gets {tuple(piece.shape[:2])} rows, not {tuple(due.shape[:2])} (2B, l)")
            if not torch.equal(piece, due):
                seen, wanted = float(piece[0, 0, 0]), float(due[0, 0, 0])
                raise Broken(
                    f"{what} begins at position {int(seen) % MOST_ROWS}, not {int(wanted)}: off by {int(seen - wanted)}"
                )


def split_refusal(probe: Probe, sdvar: Any) -> None:
    """Require that logits of another length are refused."""
    first, count = 0, min(2, probe.pyramid.S)
    for more in (-1, 1):
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        tags = _tags(probe, first, count, more)
        given = {"target_logits": tags, "draft_tokens": tokens, "B": probe.request.B, "state": state}
        try:
            got = flexible(sdvar._split_logits_by_stage, **given)
        except Exception:
            continue
        sizes = [piece.shape[1] for piece in got]
        raise Broken(f"{tags.shape[1]} rows for {tags.shape[1] - more} tokens are taken, and give pieces of {sizes}")


def _masked(probe: Probe, sdvar: Any, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return who may see whom, as the code and as the reference have it, over the window's own columns."""
    begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1)
    state_at(probe, sdvar, first, count)
    n = end - begin
    mask = sdvar._get_attention_mask(n, first, count)
    mask = torch.zeros(1, 1, n, n) if mask is None else mask  # what a block takes for: all visible
    require(isinstance(mask, Tensor), f"{window(first, count)}: a {type(mask).__name__}, not a mask")
    due = block_causal(probe.pyramid, torch.device("cpu"), torch.float32)[:, :, begin:end, :end] == 0
    wide = tuple(mask.shape) == tuple(due.shape) and begin > 0
    due = due if wide else due[..., begin:]
    require_tensor(mask, due.shape, f"{window(first, count)}: the mask")
    return require_sight(mask[0, 0], f"{window(first, count)}: the mask"), due[0, 0]


def mask(probe: Probe, sdvar: Any) -> None:
    """Require that the mask of a window is that of its own rows and columns."""
    whole = block_causal(probe.pyramid, torch.device("cpu"), torch.float32)[0, 0] == 0
    for first, count in probe.windows():
        allowed, due = _masked(probe, sdvar, first, count)
        wrong = torch.nonzero(allowed != due).tolist()
        if not wrong:
            continue
        n, begin = len(due), probe.pyramid.begin(first)
        corner, causal = whole[:n, :n], torch.ones(n, n, dtype=torch.bool).tril()
        why = "top-left corner of the whole mask" if torch.equal(allowed, corner) else ""
        why = why or ("token-causal" if torch.equal(allowed, causal) else "")
        row, column = wrong[0]
        sees = "sees" if bool(allowed[row, column]) else "does not see"
        found = f"{len(wrong)} of {n * n} entries are wrong, first position {begin + row} {sees} {begin + column}"
        raise Broken(f"{window(first, count)}: {found}{': it is the ' + why + ' one' if why else ''}")


def visible(probe: Probe, sdvar: Any) -> None:
    """Require that no row of a mask is blind."""
    for first, count in probe.windows():
        allowed, _ = _masked(probe, sdvar, first, count)
        blind = torch.nonzero(~allowed.any(-1)).flatten().tolist()
        require(not blind, f"{window(first, count)}: rows {blind[:6]} see nothing, and softmax gives NaN")
