"""Laws of the methods that make one pass of a window: its query, its mask, and the split of its logits.

Promise: one function a law; the first wrong scale is named with its positions.
"""

from typing import Any

import torch
from torch import Tensor

from harness.adapters import _probe as probing
from harness.adapters._probe import PartQuestion, Probe, ProbeSide, ProbeWindow
from harness.judge import Broken, require
from harness.reference import block_causal

MOST_ROWS = 10_000  # positions of a tag; more than any pyramid has


def _query(probe: Probe) -> None:
    pyramid, x_RLD = probe.pyramid, probe.target.run.x_RLD
    for window in probe.windows():
        begin = pyramid.begin(window.first)
        expected = x_RLD[:, begin : pyramid.end(window.scales[-1])]
        aligned = None
        with probe.aside():
            actual = probe.sdvar._build_combined_query(probe.drafted(window), probe.state_at(window), probe.request.B)
            require(isinstance(actual, Tensor), f"{window}: a {type(actual).__name__}, not a tensor")
            aligned = _aligned_query(actual, expected)
            if actual.shape != expected.shape:
                rows, n = actual.shape[1] if actual.dim() == 3 else 0, expected.shape[1]
                if aligned is not None and rows == n + 1 and len(actual) == len(expected):
                    how = "a start token stands before the drafted scales, and all sit one position later"
                    raise Broken(f"{window}: {rows} rows for {n} positions: {how}")
                rest = "the rest is compared from its last row on"
                how = "nothing more of it can be compared" if aligned is None else rest
                raise Broken(f"{window}: the query is {tuple(actual.shape)}, not {tuple(expected.shape)}; {how}")
        if aligned is None:
            continue
        error = probe.input_error(expected)
        for si in window.scales:
            rows_l = slice(pyramid.begin(si) - begin, pyramid.end(si) - begin)
            with probe.aside():
                what = f"window from scale {window.first}, scale {si}"
                require_input(probe, aligned[:, rows_l], (probe.target, si), error, what)


def _aligned_query(actual: Tensor, expected: Tensor) -> Tensor | None:
    """Return a query of another shape as far as it can be laid over the right one; None where it cannot."""
    if actual.dim() == 3 and actual.shape[1:] == expected.shape[:0:-1] != expected.shape[1:]:
        actual = actual.mT
    if actual.dim() != 3 or actual.shape[2] != expected.shape[2] or actual.shape[1] < expected.shape[1]:
        return None
    if 2 * len(actual) == len(expected):  # one half alone
        actual = actual.repeat(2, 1, 1)
    return actual[:, -expected.shape[1] :] if len(actual) == len(expected) else None


def require_input(probe: Probe, actual: Tensor, of: tuple[ProbeSide, int], error: float, what: str) -> None:
    """Compare one scale of a query, whose side and scale `of` is, and name what stands there instead."""
    (side, si), B, span = of, probe.request.B, probe.pyramid.span(of[1])
    network, expected = side.network, side.run.x_RLD[:, span]
    own = network.embed(probe.code.models.vqvae.quantizer.codebook_VC[probe.tokens_BL[:, span]])
    position = network.lvl_SD[si] + network.pos_LD[span]
    codes = "the codes of its own tokens stand in place of the resized f_hat"
    why: dict[str, Tensor] = {
        codes: (own + position).repeat(2, 1, 1),
        "the guidance halves are swapped": expected.roll(B, 0),
        "both halves are the conditional one: doubled last": expected[:B].repeat(2, 1, 1),
    }
    levels = torch.tensor(probe.pyramid.levels())
    for step, word in ((-1, "later"), (1, "earlier")):
        moved = network.pos_LD.roll(step, 0)[span] + network.lvl_SD[levels.roll(step)[span]]
        why[f"its position term is 1 position {word}"] = expected - position + moved
        why[f"{codes}, and its position term is 1 position {word}"] = (own + moved).repeat(2, 1, 1)
    require(actual.shape == expected.shape, f"{what}: the input is {tuple(actual.shape)}, not {tuple(expected.shape)}")
    wrong = ((actual - expected).abs() > error).any(-1).any(0) | ~torch.isfinite(actual).all(-1).all(0)
    at = torch.nonzero(wrong).flatten().tolist()
    places = f", positions {span.start + at[0]}..{span.start + at[-1]}" if at else ""
    probing.require_close(actual, expected, error, f"{what}{places}", why)


def _query_arguments(probe: Probe, window: ProbeWindow) -> None:
    state, tokens = probe.state_at(window), probe.drafted(window)
    before, f_hats = [idx.clone() for idx in tokens], [state.draft_f_hat.clone(), state.target_f_hat.clone()]
    probe.sdvar._build_combined_query(tokens, state, probe.request.B)
    require(all(map(torch.equal, tokens, before)), f"{window}: it wrote into the drafted tokens")
    same = torch.equal(state.draft_f_hat, f_hats[0]) and torch.equal(state.target_f_hat, f_hats[1])
    require(same, f"{window}: f_hat is another one after it: drafted scales will be counted twice")


def _tags(probe: Probe, window: ProbeWindow, more: int = 0) -> Tensor:
    """Return logits (2B,n,V) of a window, or `more` positions longer: every number says its row and position."""
    begin, end = probe.pyramid.begin(window.first), probe.pyramid.end(window.scales[-1]) + more
    position = torch.arange(begin, end, device=probe.code.models.device, dtype=torch.float64)
    row = MOST_ROWS * torch.arange(2 * probe.request.B, device=position.device)
    return (row[:, None] + position)[..., None].expand(-1, -1, probe.target.network.config.V).clone()


def _split(probe: Probe, window: ProbeWindow, state: Any, logits_RnV: Tensor) -> list[Tensor]:
    tokens, method = probe.drafted(window), probe.sdvar._split_logits_by_stage
    pieces = probing.call_by_known_names(
        method, target_logits=logits_RnV, draft_tokens=tokens, B=probe.request.B, state=state
    )
    return list(pieces)


def _split_by_scale(probe: Probe) -> None:
    for window in probe.windows():
        tags, pieces, offset = _tags(probe, window), list[Tensor](), probe.pyramid.begin(window.first)
        with probe.aside():
            pieces = _split(probe, window, probe.state_at(window), tags)
            require(len(pieces) == window.count, f"{window}: {len(pieces)} pieces for {window.count} scales")
        for si, piece in zip(window.scales, pieces, strict=False):
            span, what = probe.pyramid.span(si), f"{window}: scale {si}"
            with probe.aside():
                _require_piece(piece, tags[:, span.start - offset : span.stop - offset], what)


def _require_piece(piece: Tensor, expected: Tensor, what: str) -> None:
    """Require the tagged rows of one scale; of another number of rows it says where they begin."""
    begins = ""
    if piece.numel() and int(piece[0, 0, 0]) != int(expected[0, 0, 0]):
        seen, wanted = int(piece[0, 0, 0]), int(expected[0, 0, 0])
        begins = f"begins at position {seen % MOST_ROWS}, not {wanted}: off by {seen - wanted}"
    if piece.shape[:2] != expected.shape[:2]:
        said = f"{what} gets {tuple(piece.shape[:2])} rows, not {tuple(expected.shape[:2])} (2B, l)"
        raise Broken(f"{said}, and {begins}" if begins else said)
    require(not begins, f"{what} {begins}")
    require(torch.equal(piece, expected), f"{what} holds other rows than its own")


def _split_refuses(probe: Probe) -> None:
    window = ProbeWindow(0, min(2, probe.pyramid.S))
    for more in (-1, 1):
        state, tags = probe.state_at(window), _tags(probe, window, more)
        try:
            pieces = _split(probe, window, state, tags)
        except Exception:
            continue
        rows, sizes = tags.shape[1], [piece.shape[1] for piece in pieces]
        raise Broken(f"{rows} rows for {rows - more} tokens are taken, and give pieces of {sizes}")


def _masked(probe: Probe, window: ProbeWindow) -> tuple[Tensor, Tensor]:
    """Return who sees whom, by the code and the reference; of a mask that is too large, its last rows and columns."""
    begin, end = probe.pyramid.begin(window.first), probe.pyramid.end(window.scales[-1])
    probe.state_at(window)
    n = end - begin
    mask = probe.sdvar._get_attention_mask(n, window.first, window.count)
    mask = torch.zeros(1, 1, n, n) if mask is None else mask  # what a block takes for: all visible
    require(isinstance(mask, Tensor), f"{window}: a {type(mask).__name__}, not a mask")
    expected = _block_causal(probe)[:, :, begin:end, :end]
    wide = tuple(mask.shape) == tuple(expected.shape) and begin > 0
    expected = expected if wide else expected[..., begin:]
    if mask.dim() >= 2 and mask.numel() == mask.shape[-2] * mask.shape[-1] and min(mask.shape[-2:]) > n:
        with probe.aside():
            probing.require_tensor(mask, expected.shape, f"{window}: the mask")
        mask = mask.reshape(1, 1, *mask.shape[-2:])[..., -n:, -n:]
    probing.require_tensor(mask, expected.shape, f"{window}: the mask")
    return probing.require_sight(mask[0, 0], f"{window}: the mask"), expected[0, 0]


def _block_causal(probe: Probe) -> Tensor:
    return block_causal(probe.pyramid, torch.device("cpu"), torch.float32) == 0


def _mask(probe: Probe, window: ProbeWindow) -> None:
    allowed, expected = _masked(probe, window)
    wrong = torch.nonzero(allowed != expected).tolist()
    if not wrong:
        return
    n, begin = len(expected), probe.pyramid.begin(window.first)
    token_causal = torch.ones(n, n, dtype=torch.bool).tril()
    why = ": it is the token-causal one" if torch.equal(allowed, token_causal) else ""
    if torch.equal(allowed, _block_causal(probe)[0, 0, :n, :n]):
        why = ": it is the top-left corner of the whole mask"
    row, column = wrong[0]
    sees = "sees" if bool(allowed[row, column]) else "does not see"
    entries = f"{len(wrong)} of {n * n} entries are wrong, first position {begin + row} {sees} {begin + column}"
    raise Broken(f"{window}: {entries}{why}")


def _visible(probe: Probe, window: ProbeWindow) -> None:
    allowed, _ = _masked(probe, window)
    blind = torch.nonzero(~allowed.any(-1)).flatten().tolist()
    require(not blind, f"{window}: rows {blind[:6]} see nothing, and softmax gives NaN")


WINDOW_QUESTIONS = (
    PartQuestion("_build_combined_query", "positions.query",
        "The query of scales a..b is their inputs, conditional half first.", _query),
    PartQuestion("_build_combined_query", "state.arguments",
        "Building it changes neither tokens nor f_hat.", _query_arguments, Probe.windows),
    PartQuestion("_split_logits_by_stage", "positions.split",
        "Every scale gets its own rows of both halves.", _split_by_scale),
    PartQuestion("_split_logits_by_stage", "positions.refusal",
        "Logits of another length are refused.", _split_refuses),
    PartQuestion("_get_attention_mask", "masks.definition",
        "Rows a..b of the block-causal mask, not its top-left corner.", _mask, Probe.windows),
    PartQuestion("_get_attention_mask", "masks.visible", "No row is without a visible column.", _visible,
        Probe.windows),
)  # fmt: skip
