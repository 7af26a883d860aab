"""Laws of positions: which row of a pass belongs to which position of the pyramid."""

from dataclasses import replace

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import CLASSES, NINE, Case
from harness.laws._law import (
    FLOAT64,
    KEEPS_AN_EQUAL,
    Subject,
    law,
    require_equal,
    require_same,
    require_shown_rounds,
    shown_tensors,
)
from harness.laws._numbers import rounded
from harness.laws._oracle import Scripted, allowed, decided_whole, decode_drafted, needs_exact, run_over, several
from harness.models import product_dtype
from harness.protocol import Contract


def _tags(case: Case, begin: int, end: int, trailing: tuple[int, ...]) -> Tensor:
    """Return (B,n,…): every row holds its number."""
    position_n = torch.arange(begin, end, device=case.at)
    return position_n.view(-1, *(1 for _ in trailing)).expand(case.B, -1, *trailing)


@law("positions.split", "split_logits_by_scale")
def split(subject: Subject, case: Case) -> bool:
    """A window's rows split into exactly the spans of its scales."""
    parts = subject.parts(case, "split_logits_by_scale")
    for pyramid, first, last in case.every_window:
        draws = pyramid.draws
        for trailing in ((2,), (2, 3)):
            tags = _tags(case, draws.begin(first), draws.end(last), trailing)
            actual = parts.split_logits_by_scale(tags, pyramid, first, last)
            require(len(actual) == last - first + 1, f"window {first}..{last} splits into {len(actual)} scales")
            for si, rows in zip(range(first, last + 1), actual, strict=True):
                expected = _tags(case, draws.begin(si), draws.end(si), trailing)
                require_equal("rows", rows, expected, f"window {first}..{last}, scale {si}, trailing {trailing}")
    return case.pyramid.S > 1


@law("positions.query", "build_combined_query")
@torch.inference_mode()
def query(subject: Subject, case: Case) -> bool:
    """The combined query of scales a..b sits at the positions of a..b, for every window."""
    parts = subject.parts(case, "build_combined_query")
    of_long = case.long.models.target, case.long.long_windows
    for network, windows in ((case.models.draft, case.windows), (case.models.target, case.windows), of_long):
        condition, pyramid = case.condition(network), network.pyramid
        raw_BLC = case.normal(case.B, pyramid.L, network.config.raw)
        for first, last in windows:
            raws = [raw_BLC[:, pyramid.span(si)] if si else None for si in range(first, last + 1)]
            given = enumerate(raws, first)
            expected = torch.cat([case.steps.input(network, condition, raw, si) for si, raw in given], 1)
            window = slice(pyramid.begin(first), pyramid.end(last))
            given_BnC = raw_BLC[:, window].clone()
            x_RnD = parts.build_combined_query(network, condition, given_BnC, first, last)
            require_equal("x", x_RnD, expected, f"window {first}..{last}", rounded(expected, product_dtype(network)))
            require_equal("argument", given_BnC, raw_BLC[:, window], f"window {first}..{last}")
            places = case.steps.positions(network, first, last)
            if places is not None and hasattr(parts, "positions"):
                actual = {"positions": parts.positions(network, first, last)}
                require_same(actual, {"positions": places}, f"window {first}..{last}", part="positions")
    return case.pyramid.S > 1


@law("positions.rows", "build_combined_query", "attention_mask", "split_logits_by_scale")
@torch.inference_mode()
def rows(subject: Subject, case: Case) -> bool:
    """Every verify row equals the sequential row for the same prefix, for every window."""
    parts = subject.parts(case, "build_combined_query", "attention_mask", "split_logits_by_scale")
    pyramid, network = case.pyramid, case.models.target
    condition = case.condition(network)
    run = run_over(network, case.models.vae, case, case.random_tokens())
    for first, last in case.windows:
        window = slice(pyramid.begin(first), pyramid.end(last))
        x_RnD = parts.build_combined_query(network, condition, run.raw_BLC[:, window], first, last)
        mask = parts.attention_mask(pyramid, first, last, x_RnD.device, x_RnD.dtype)
        positions = case.steps.positions(network, first, last)
        before = run.cache.cut(slice(None), window.start)
        hidden_RnD = network.hidden(x_RnD, condition, before, mask, positions)
        actual = parts.split_logits_by_scale(network.logits(hidden_RnD, condition), pyramid, first, last)
        for si, rows_RlV in zip(range(first, last + 1), actual, strict=True):
            expected = run.rows_RLV[:, pyramid.draws.span(si)]
            require_equal("logits", rows_RlV, expected, f"window {first}..{last}, scale {si}", allowed(case).rows)
    return pyramid.S > 1


@law("positions.trace", "decode", "build_combined_query", "attention_mask", "cache")
def trace(subject: Subject, case: Case) -> bool:
    """The inputs and rows of every token are those of a sequential run over the tokens."""
    decoded = subject.decode(case)
    shown = shown_tensors(decoded)
    run, looked = run_over(case.models.target, case.models.vae, case, decoded.tokens_BL), 0
    for si in case.pyramid:
        span, draws, images = case.pyramid.span(si), case.pyramid.draws.span(si), decided_whole(decoded, case.B, si)
        rows = case.request.rows_of(*images)
        actual: dict[str, Tensor] = {"x": shown.x_RLD[rows, span], "rows": shown.rows_RLV[rows, draws]}
        expected = {"x": run.x_RLD[rows, span], "rows": run.rows_RLV[rows, draws]}
        if images:
            looked += 1
            require_same(actual, expected, f"scale {si}", vars(allowed(case)))
    return looked > 0 and several(decoded, case.pyramid.S)


@law(
    "positions.long", "decode", "build_combined_query", "attention_mask", "cache",
    contract=Contract.LAW, policies=KEEPS_AN_EQUAL,
)  # fmt: skip
def long(subject: Subject, case: Case) -> bool:
    """A window of eight scales that begins after scale 0 is that of eight passes."""
    # the draft is the target but for scale 0: all that follows is drafted at once, and accepted
    needs_exact(case, "rounding decides whether a draft = target is accepted whole")
    case = replace(case.long, draft_len=NINE[-1], bonus=False, labels=(case.labels[0] % CLASSES,), order="image")
    decoded = decode_drafted(subject, case, Scripted.of(case, ((case.labels[0], 0),)))
    require_shown_rounds(decoded)
    wanted = max((turn.drafted for turn in decoded.rounds[0] if turn.first), default=0)
    for turn in decoded.rounds[0][1:]:
        where = f"draft = target from scale 1 on, {case.pyramid.S} scales in all, as this law makes them"
        said = f"{where}: kept {turn.accepted} of {turn.drafted} scales from scale {turn.first}"
        require(turn.accepted == turn.drafted, said)
    run = run_over(case.models.target, case.models.vae, case, decoded.tokens_BL)
    if decoded.intermediates is not None and all(turn.target_rows for turn in decoded.rounds[0]):
        shown = decoded.intermediates
        expected = {"x": run.x_RLD, "rows": run.rows_RLV}
        require_same({"x": shown.x_RLD, "rows": shown.rows_RLV}, expected, "all scales", FLOAT64)
    return wanted > 6
