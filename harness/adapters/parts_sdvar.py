"""The parts of a checkout, one by one: which laws the methods of an SDVAR object keep, by the names of the report.

Promise: each method is asked alone, with its own signature, in a state that is right; one that crashes is one row and
hides no other. The whole decode is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters.parts_network import examine_masks, examine_network
from harness.adapters.parts_state import f_hats_along, flexible, state_at, window
from harness.adapters.parts_update import (
    draft_state,
    draft_tokens,
    examine_matching,
    update_f_hat,
    update_maps,
    update_stage,
    update_sync,
    update_tokens,
)
from harness.adapters.parts_window import mask, query, query_arguments, split, split_refusal, visible
from harness.adapters.probe import Probe, require_close, require_tensor
from harness.adapters.published import Published
from harness.adapters.recorder import Recorder
from harness.judge.part_law import Broken, PartLaw, require
from harness.protocol.request import Request
from harness.reference.steps import guide
from harness.rounding.budget import Budget


def examine_sdvar(probe: Probe, sdvar: Any) -> None:
    """Ask every law of an SDVAR object's methods, in the order of the report. Effects: on `probe.rows`."""
    asked: dict[str, list[tuple[str, str, Callable[[Probe, Any], None]]]] = {
        "_build_combined_query": [
            ("positions.query", "The query of scales a..b is their inputs, conditional half first.", query),
            ("state.arguments", "Building it changes neither tokens nor f_hat.", query_arguments),
        ],
        "_split_logits_by_stage": [
            ("positions.split", "Every scale gets its own rows of both halves.", split),
            ("positions.refusal", "Logits of another length are refused.", split_refusal),
        ],
        "_get_attention_mask": [
            ("masks.definition", "Rows a..b of the block-causal mask, not its top-left corner.", mask),
            ("masks.visible", "No row is without a visible column.", visible),
        ],
        "draft_generate_batch": [
            ("draft.tokens", "The tokens are the draft's own draws on the committed prefix.", draft_tokens),
            ("draft.state", "Drafting leaves the target's f_hat alone; the draft's holds all or none.", draft_state),
        ],
        "update_state_with_accepted_tokens": [
            ("state.f_hat", "The target's f_hat holds every accepted scale once, and no rejected one.", update_f_hat),
            ("state.sync", "The draft's f_hat is the target's, where anything reads it.", update_sync),
            ("state.next-input", "Both next inputs are those of the scale behind the accepted ones.", update_maps),
            ("state.tokens", "accepted_tokens holds the accepted scales.", update_tokens),
            ("state.stage", "current_stage moves by the accepted scales, or is left to the loop.", update_stage),
        ],
        "target_verify_batch": [
            ("positions.rows", "The guided logits of a window are those of sequential decoding.", _verify),
        ],
        "_initialize_inference_state": [
            ("state.start", "Conditions, positions and first inputs are those of the labels; f_hat is zero.", _start),
            ("state.alias", "Draft and target have an f_hat of their own, or sharing one does no harm.", _alias),
        ],
    }  # fmt: skip
    for part, laws in asked.items():
        if not callable(getattr(sdvar, part, None)):
            probe.absent(part)
            continue
        for law, statement, test in laws:
            probe.law(part, law, statement, partial(test, probe, sdvar))
    examine_matching(probe, sdvar)


def _verify(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        recorder = Recorder(probe.pyramid)
        with recorder.watching({"target": probe.code.target}, probe.code.vae, probe.code.checkout.module):
            got = sdvar.target_verify_batch(tokens, state, probe.request.B)
        guided = got[0] if isinstance(got, tuple) else got
        require(len(guided) == count, f"{window(first, count)}: logits of {len(guided)} scales")
        seen = recorder.passes[-1].cached if recorder.passes else -1
        K = probe.pyramid.begin(first)
        cache = f"; the pass saw {seen} cached positions, not {K}" if seen != K else ""
        for k, logits in enumerate(guided):
            _guided(probe, logits, first + k, f"{window(first, count)}: guided logits of scale {first + k}", cache)


def _guided(probe: Probe, logits: Tensor, si: int, what: str, cache: str) -> None:
    side, request, pyramid, B = probe.target, probe.request, probe.pyramid, probe.request.B
    rows = side.run.rows_RLV[:, pyramid.span(si)]
    due = guide(rows, request.cfg, si, pyramid.S)
    error = 2 * probe.budget.guided(request.cfg, pyramid.ramp(si)).logits
    swapped = guide(rows.roll(B, 0), request.cfg, si, pyramid.S)
    why = {"it is not guided": rows[:B], "the halves are swapped": swapped}
    if si + 1 < pyramid.S:
        why["its guidance weight is that of the next scale"] = guide(rows, request.cfg, si + 1, pyramid.S)
    try:
        require_close(require_tensor(logits, due.shape, what), due, error, what, why)
    except Broken as wrong:
        raise Broken(f"{wrong}{cache}") from None


def _begin(probe: Probe, sdvar: Any) -> Any:
    label_B = torch.tensor(probe.request.labels, device=probe.code.models.device)
    return sdvar._initialize_inference_state(probe.request.B, label_B, probe.request.seed, probe.request.cfg, 2)


def _start(probe: Probe, sdvar: Any) -> None:
    state = _begin(probe, sdvar)
    require(int(state.current_stage) == 0, f"current_stage begins at {state.current_stage}")
    require(int(state.total_stages) == probe.pyramid.S, f"total_stages is {state.total_stages}, not {probe.pyramid.S}")
    lvl = torch.tensor(probe.pyramid.levels(), device=probe.code.models.device)
    for name, side in (("draft", probe.draft), ("target", probe.target)):
        f_hat = require_tensor(getattr(state, f"{name}_f_hat"), probe.f_hat(0).shape, f"{name}_f_hat")
        require(not bool(f_hat.any()), f"{name}_f_hat does not begin at zero")
        due: dict[str, Tensor] = {
            "cond_BD": side.cond_RD,
            "lvl_pos": (side.network.lvl_SD[lvl] + side.network.pos_LD)[None],
            "next_token_map": side.run.x_RLD[:, probe.pyramid.span(0)],
        }
        for word, tensor in due.items():
            got = require_tensor(getattr(state, f"{name}_{word}"), tensor.shape, f"{name}_{word}")
            halves = {"its halves are swapped": tensor.roll(probe.request.B, 0)} if len(tensor) > 1 else {}
            require_close(got, tensor, probe.input_error(tensor), f"{name}_{word}", halves)


def _alias(probe: Probe, sdvar: Any) -> None:
    """Require that an f_hat which both sides share does no harm: a round must leave every scale in it once."""
    state = _begin(probe, sdvar)
    if state.draft_f_hat.untyped_storage().data_ptr() != state.target_f_hat.untyped_storage().data_ptr():
        return
    found = "draft_f_hat and target_f_hat are one tensor: what is drafted is accepted already, or counted twice"
    B, error = probe.request.B, 2 * probe.budget.f_hat
    try:
        with probe.code.running(Recorder(probe.pyramid), probe.request, probe.code.models.noise(probe.request)):
            tokens = list(flexible(sdvar.draft_generate_batch, state=state, B=B, verbose=False))
            drafted = state.target_f_hat.clone()
            sdvar.update_state_with_accepted_tokens(tokens, 1, state, B)
    except Exception:  # nobody can tell what the shared tensor would do
        raise Broken(found) from None
    due = f_hats_along(probe, 0, tokens[:1])
    for actual, expected in zip((drafted, state.target_f_hat), due, strict=True):
        require(actual.shape == expected.shape and bool(((actual - expected).abs() <= error).all()), found)


def examine(
    code: Published, sdvar: Any, request: Request, budget: Budget, loop: bool = True, threshold: float | None = None
) -> list[PartLaw]:
    """Ask every law of every part.

    Args:
        code: the checkout's modules.
        sdvar: its SDVAR object; None where it has none.
        request: labels and guidance of what the parts are asked.
        budget: how far rounding may move a number, measured before the code was built.
        loop: ask the methods of the parallel decode, too.
        threshold: `similarity_thresh` that the object was built with; None: its own default.

    Returns:
        A row a law, in the order of the report.
    """
    probe = Probe.of(code, request, budget)
    probe.threshold = threshold
    if sdvar is not None:
        if loop:
            examine_sdvar(probe, sdvar)
        examine_masks(probe, sdvar)
    examine_network(probe)
    return probe.rows
