"""Laws of positions: which row of a pass belongs to which position of the pyramid."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.laws.case import Case
from harness.laws.law import FLOAT64, Law, NotOffered, Subject, require, require_same
from harness.laws.oracle import run_over
from harness.reference.sequential import guidance_labels, scale_input


def split(subject: Subject, case: Case) -> bool:
    """Rows tagged with their position are split into the spans of the scales."""
    parts, pyramid = subject.parts(case, "split_logits_by_scale"), case.pyramid
    for first, last in case.windows:
        tags_Bn2 = torch.arange(pyramid.begin(first), pyramid.end(last)).repeat(case.B, 1)[..., None].repeat(1, 1, 2)
        got = parts.split_logits_by_scale(tags_Bn2, pyramid, first, last)
        require(len(got) == last - first + 1, f"window {first}..{last} splits into {len(got)} scales")
        for si, tags_Bl2 in zip(range(first, last + 1), got, strict=True):
            due_B_l2 = torch.arange(pyramid.begin(si), pyramid.end(si)).expand(case.B, -1)[..., None].expand(-1, -1, 2)
            require_same({"rows": tags_Bl2}, {"rows": due_B_l2}, f"window {first}..{last}, scale {si}")
    return pyramid.S > 1


@torch.inference_mode()
def query(subject: Subject, case: Case) -> bool:
    """The combined query of a window is the inputs of its scales, one behind the other."""
    parts, pyramid = subject.parts(case, "build_combined_query"), case.pyramid
    labels_R = guidance_labels(torch.tensor(case.labels), 3)
    for network in (case.models.draft, case.models.target):
        condition = network.condition(labels_R)
        raw_BLC = torch.randn(case.B, pyramid.L, network.config.C, generator=case.generator(), dtype=network.dtype)
        for first, last in case.windows:
            raws = [raw_BLC[:, pyramid.span(si)] if si else None for si in range(first, last + 1)]
            due = torch.cat([scale_input(network, condition, raw, first + k) for k, raw in enumerate(raws)], 1)
            window = slice(pyramid.begin(first), pyramid.end(last))
            x_RnD = parts.build_combined_query(network, condition, raw_BLC[:, window], first, last)
            require_same({"x": x_RnD}, {"x": due}, f"window {first}..{last}", FLOAT64)
    return pyramid.S > 1


@torch.inference_mode()
def rows(subject: Subject, case: Case) -> bool:
    """Every row of a verify pass is the sequential row of the same position and prefix."""
    parts = subject.parts(case, "build_combined_query", "attention_mask", "split_logits_by_scale")
    pyramid, network = case.pyramid, case.models.target
    labels_B = torch.tensor(case.labels)
    condition = network.condition(guidance_labels(labels_B, 3))
    run = run_over(network, case.models.vae, labels_B, case.random_tokens())
    for first, last in case.windows:
        window = slice(pyramid.begin(first), pyramid.end(last))
        x_RnD = parts.build_combined_query(network, condition, run.raw_BLC[:, window], first, last)
        mask = parts.attention_mask(pyramid, first, last, x_RnD.device, x_RnD.dtype)
        hidden_RnD = network.hidden(x_RnD, condition, run.cache(window.start), mask)
        got = parts.split_logits_by_scale(network.logits(hidden_RnD, condition), pyramid, first, last)
        for si, rows_RlV in zip(range(first, last + 1), got, strict=True):
            due = run.rows_RLV[:, pyramid.span(si)]
            require_same({"logits": rows_RlV}, {"logits": due}, f"window {first}..{last}, scale {si}", FLOAT64)
    return pyramid.S > 1


def trace(subject: Subject, case: Case) -> bool:
    """The inputs and rows that a decode was decided by are those of a sequential run over its tokens."""
    decoded = subject.decode(case)
    kept = decoded.intermediates
    if kept is None:
        raise NotOffered("no intermediates")
    run = run_over(case.models.target, case.models.vae, torch.tensor(case.labels), decoded.tokens_BL)
    for si in case.pyramid:
        span = case.pyramid.span(si)
        actual: dict[str, Tensor] = {"x": kept.x_RLD[:, span], "rows": kept.rows_RLV[:, span]}
        expected = {"x": run.x_RLD[:, span], "rows": run.rows_RLV[:, span]}
        require_same(actual, expected, f"scale {si}", FLOAT64)
    return any(turn.finished > 1 for rounds in decoded.rounds for turn in rounds)


LAWS = (
    Law("positions.split", "A window's rows split into exactly the spans of its scales.",
        ("split_logits_by_scale",), split),
    Law("positions.query", "The combined query of scales a..b sits at the positions of a..b, for every window.",
        ("build_combined_query",), query),
    Law("positions.rows", "Every verify row equals the sequential row for the same prefix, for every window.",
        ("build_combined_query", "attention_mask", "split_logits_by_scale"), rows),
    Law("positions.trace", "The inputs and rows behind every token are those of a sequential run over the tokens.",
        ("decode", "build_combined_query", "attention_mask", "cache"), trace),
)  # fmt: skip
