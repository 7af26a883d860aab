"""Laws of the methods of an SDVAR object, by the names of the report, with their own signatures and state.

Promise: each method is asked alone, in a state that is right, so that one that crashes hides no other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.adapters.parts_matching import examine_matching
from harness.adapters.parts_network import fill, forward
from harness.adapters.probe import MOST_ROWS, Probe, Wrong, require, require_close, require_tensor
from harness.adapters.recorder import Recorder
from harness.protocol.noise import TOKEN
from harness.reference.draw import draw, filter_logits
from harness.reference.guidance import guide
from harness.reference.latent import accumulate, next_input
from harness.reference.masks import block_causal
from harness.reference.sequential import scale_input

HIDDEN = -1e4  # an additive mask may hold any large negative number for -inf


def examine_sdvar(probe: Probe, sdvar: Any) -> None:
    """Ask every law of an SDVAR object's methods, in the order of the report. Effects: on `probe.rows`."""
    asked: dict[str, list[tuple[str, str, Callable[[Probe, Any], None]]]] = {
        "_build_combined_query": [
            ("positions.query", "The query of scales a..b is their inputs, conditional half first.", _query),
            ("state.arguments", "Building it changes neither tokens nor f_hat.", _query_arguments),
        ],
        "_split_logits_by_stage": [
            ("positions.split", "Every scale gets its own rows of both halves.", _split),
            ("positions.refusal", "Logits of another length are refused.", _split_refusal),
        ],
        "_get_attention_mask": [
            ("masks.definition", "Rows a..b of the block-causal mask, not its top-left corner.", _mask),
            ("masks.visible", "No row is without a visible column.", _visible),
        ],
        "draft_generate_batch": [
            ("draft.tokens", "The tokens are the draft's own draws on the committed prefix.", _draft_tokens),
            ("draft.state", "Drafting leaves the target's f_hat alone; the draft's holds all or none.", _draft_state),
        ],
        "update_state_with_accepted_tokens": [
            ("state.f_hat", "The target's f_hat holds every accepted scale once, and no rejected one.", _update_f_hat),
            ("state.sync", "The draft's f_hat is the target's.", _update_sync),
            ("state.next-input", "Both next inputs are those of the scale behind the accepted ones.", _update_maps),
            ("state.tokens", "accepted_tokens holds the accepted scales.", _update_tokens),
            ("state.stage", "current_stage moves by the accepted scales, or is left to the loop.", _update_stage),
        ],
        "target_verify_batch": [
            ("positions.rows", "The guided logits of a window are those of sequential decoding.", _verify),
        ],
        "_initialize_inference_state": [
            ("state.start", "Conditions, positions and first inputs are those of the labels; f_hat is zero.", _start),
            ("state.alias", "Draft and target have an f_hat of their own.", _alias),
        ],
    }  # fmt: skip
    for part, laws in asked.items():
        if not callable(getattr(sdvar, part, None)):
            probe.absent(part)
            continue
        for law, statement, test in laws:
            probe.law(part, law, statement, partial(test, probe, sdvar))
    examine_matching(probe, sdvar)


def state_at(probe: Probe, sdvar: Any, first: int, count: int) -> Any:
    """Return the object's own state, made right at scale `first`; a plain one where it builds none."""
    request, S = probe.request, probe.pyramid.S
    label_B = torch.tensor(request.labels, device=probe.code.models.device)
    try:
        state = sdvar._initialize_inference_state(request.B, label_B, request.seed, request.cfg, count)
    except Exception:  # that method has laws of its own
        state = SimpleNamespace()
    values: dict[str, Any] = {
        "current_stage": first,
        "gamma": count,
        "total_stages": S,
        "patch_nums": probe.pyramid.patch_nums,
        "accept_count": 0,
        "reject_count": 0,
        "target_calls": 0,
        "cfg": request.cfg,
        "top_k": 0,
        "top_p": 0.0,
        "more_smooth": False,
        "accepted_tokens": probe.drafted(0, first),
        "current_tokens_length": probe.pyramid.begin(first),
    }
    generator = torch.Generator(device=probe.code.models.device).manual_seed(request.seed)
    values["rng"] = getattr(state, "rng", None) or generator
    for name, side in (("draft", probe.draft), ("target", probe.target)):
        lvl = torch.tensor(probe.pyramid.levels(), device=probe.code.models.device)
        values |= {
            f"{name}_f_hat": probe.f_hat(first),
            f"{name}_next_token_map": side.run.x_RLD[:, probe.pyramid.span(first)].clone(),
            f"{name}_cond_BD": side.cond_RD.clone(),
            f"{name}_lvl_pos": (side.network.lvl_SD[lvl] + side.network.pos_LD)[None].clone(),
        }
        fill(probe, side, first)
    for name, value in values.items():
        setattr(state, name, value)
    return state


def flexible(method: Any, **given: Any) -> Any:
    """Call a method by the names that it knows."""
    parameters = inspect.signature(method).parameters
    return method(**{name: value for name, value in given.items() if name in parameters})


def _window(first: int, count: int) -> str:
    return f"scales {first}..{first + count - 1}"


def _query(probe: Probe, sdvar: Any) -> None:
    side = probe.target
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        got = sdvar._build_combined_query(tokens, state, probe.request.B)
        begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1)
        due = side.run.x_RLD[:, begin:end]
        require(isinstance(got, Tensor), f"{_window(first, count)}: a {type(got).__name__}, not a tensor")
        error = probe.input_error(due)
        if (
            got.shape[0] == len(due)
            and got.shape[1] == due.shape[1] + 1
            and bool(((got[:, 1:] - due).abs() <= error).all())
        ):
            found = f"{_window(first, count)}: {got.shape[1]} rows for {due.shape[1]} positions"
            raise Wrong(f"{found}: a start token stands before the drafted scales, and all sit one position later")
        require_tensor(got, due.shape, f"{_window(first, count)}: the query")
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


def _query_arguments(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        before, f_hats = [idx.clone() for idx in tokens], [state.draft_f_hat.clone(), state.target_f_hat.clone()]
        sdvar._build_combined_query(tokens, state, probe.request.B)
        require(all(map(torch.equal, tokens, before)), f"{_window(first, count)}: it wrote into the drafted tokens")
        same = torch.equal(state.draft_f_hat, f_hats[0]) and torch.equal(state.target_f_hat, f_hats[1])
        require(same, f"{_window(first, count)}: f_hat is another one after it: drafted scales will be counted twice")


def _tags(probe: Probe, first: int, count: int, more: int = 0) -> Tensor:
    """Return (2B,n,V) logits: every number says its row and position."""
    begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1) + more
    position = torch.arange(begin, end, device=probe.code.models.device, dtype=torch.float64)
    row = MOST_ROWS * torch.arange(2 * probe.request.B, device=position.device)
    V = probe.target.network.config.V
    return (row[:, None] + position)[..., None].expand(-1, -1, V).clone()


def _split(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        tags, B = _tags(probe, first, count), probe.request.B
        given = {"target_logits": tags, "draft_tokens": tokens, "B": B, "state": state}
        got = flexible(sdvar._split_logits_by_stage, **given)
        require(len(got) == count, f"{_window(first, count)}: {len(got)} pieces for {count} scales")
        for k, piece in enumerate(got):
            span = probe.pyramid.span(first + k)
            offset = probe.pyramid.begin(first)
            due = tags[:, span.start - offset : span.stop - offset]
            what = f"{_window(first, count)}: scale {first + k}"
            if piece.shape[0] != len(due) or piece.shape[1] != due.shape[1]:
                raise Wrong(f"{what} gets {tuple(piece.shape[:2])} rows, not {tuple(due.shape[:2])} (2B, l)")
            if not torch.equal(piece, due):
                seen, wanted = float(piece[0, 0, 0]), float(due[0, 0, 0])
                raise Wrong(
                    f"{what} begins at position {int(seen) % MOST_ROWS}, not {int(wanted)}: off by {int(seen - wanted)}"
                )


def _split_refusal(probe: Probe, sdvar: Any) -> None:
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
        raise Wrong(f"{tags.shape[1]} rows for {tags.shape[1] - more} tokens are taken, and give pieces of {sizes}")


def _masked(probe: Probe, sdvar: Any, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return who may see whom, as the code and as the reference have it, over the window's own columns."""
    begin, end = probe.pyramid.begin(first), probe.pyramid.end(first + count - 1)
    state_at(probe, sdvar, first, count)
    n = end - begin
    mask = sdvar._get_attention_mask(n, first, count)
    require(isinstance(mask, Tensor), f"{_window(first, count)}: a {type(mask).__name__}, not a mask")
    due = block_causal(probe.pyramid, torch.device("cpu"), torch.float32)[:, :, begin:end, :end] == 0
    wide = tuple(mask.shape) == tuple(due.shape) and begin > 0
    due = due if wide else due[..., begin:]
    require_tensor(mask, due.shape, f"{_window(first, count)}: the mask")
    allowed = mask if mask.dtype is torch.bool else mask > HIDDEN
    return allowed[0, 0].cpu(), due[0, 0]


def _mask(probe: Probe, sdvar: Any) -> None:
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
        raise Wrong(f"{_window(first, count)}: {found}{': it is the ' + why + ' one' if why else ''}")


def _visible(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        allowed, _ = _masked(probe, sdvar, first, count)
        blind = torch.nonzero(~allowed.any(-1)).flatten().tolist()
        require(not blind, f"{_window(first, count)}: rows {blind[:6]} see nothing, and softmax gives NaN")


def _draft(probe: Probe, sdvar: Any, first: int, count: int) -> tuple[Any, list[Tensor], Recorder]:
    """Let the code draft from a right state, under the harness's numbers."""
    state = state_at(probe, sdvar, first, count)
    recorder = Recorder(probe.pyramid)
    with probe.code.running(recorder, probe.request, probe.code.models.noise(probe.request)):
        got = flexible(sdvar.draft_generate_batch, state=state, B=probe.request.B, verbose=False)
    return state, list(got), recorder


def _draft_tokens(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        _, got, recorder = _draft(probe, sdvar, first, count)
        require(len(got) == count, f"{_window(first, count)}: {len(got)} scales are drafted")
        due = draft_oracle(probe, first, got)
        for k, (idx, (tokens, gap)) in enumerate(zip(got, due, strict=True)):
            require_tensor(idx, tokens.shape, f"{_window(first, count)}: the tokens of scale {first + k}")
            wrong = torch.nonzero((idx != tokens) & (gap > 1e-3)).tolist()
            if wrong:
                seen = recorder.passes[k].cached if k < len(recorder.passes) else 0
                due_cached = probe.pyramid.begin(first + k)
                cache = f"; its pass saw {seen} cached positions, not {due_cached}" if seen != due_cached else ""
                found = f"{len(wrong)} of {tokens.numel()} tokens of scale {first + k} are not the draft's there"
                where = f"first at (image, token) {tuple(wrong[0])}"
                raise Wrong(f"{_window(first, count)}: {found}, {where}{cache}")


def draft_oracle(probe: Probe, first: int, drafted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the draft's draws of a window along the code's own tokens, and by how much each race was won (log).

    A race closer than 0.001 is rounding's to decide: float32 logits of these sizes move by less than that.
    """
    side, made = probe.draft, []
    models, pyramid, request = probe.code.models, probe.pyramid, probe.request
    noise = models.noise(request)
    f_hat, raw = probe.f_hat(first), None
    fill(probe, side, first)
    condition = side.network.condition(_labels(probe))
    for k, idx in enumerate(drafted):
        si = first + k
        raw = next_input(f_hat, si, pyramid) if si else None
        rows = forward(side, scale_input(side.network, condition, raw, si))
        logits = filter_logits(guide(rows, request.cfg, si, pyramid.S), 0, 0.0)
        E_BlV = noise.exponential(si, TOKEN, "judge")
        two = (logits.log_softmax(-1) - E_BlV.log()).topk(2, -1).values
        made.append((draw(logits, E_BlV), two[..., 0] - two[..., 1]))
        codes = models.vae.quantizer.codes(idx, pyramid.patch_nums[si])
        f_hat = accumulate(f_hat, codes, si, models.vae.quantizer, pyramid)
    return made


def _labels(probe: Probe) -> Tensor:
    classes = probe.target.network.config.classes
    label_B = torch.tensor(probe.request.labels, device=probe.code.models.device)
    return torch.cat((label_B, torch.full_like(label_B, classes)))


def _along(probe: Probe, first: int, tokens: list[Tensor]) -> list[Tensor]:
    """Return f_hat before and after every scale of a window."""
    models, made = probe.code.models, [probe.f_hat(first)]
    for k, idx in enumerate(tokens):
        codes = models.vae.quantizer.codes(idx, probe.pyramid.patch_nums[first + k])
        made.append(accumulate(made[-1], codes, first + k, models.vae.quantizer, probe.pyramid))
    return made


def _draft_state(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        state, got, _ = _draft(probe, sdvar, first, count)
        error = 2 * probe.budget.f_hat
        require_close(state.target_f_hat, probe.f_hat(first), error, f"{_window(first, count)}: the target's f_hat")
        along = _along(probe, first, got)
        if bool(((state.draft_f_hat - along[0]).abs() <= error).all()):
            continue
        less = {f"it holds {k} of {count} drafted scales": f_hat for k, f_hat in enumerate(along[1:-1], 1)}
        require_close(state.draft_f_hat, along[-1], error, f"{_window(first, count)}: the draft's f_hat", less)


def _updated(probe: Probe, sdvar: Any, first: int, count: int, accepted: int) -> tuple[Any, list[Tensor]]:
    """Draft, where that works, and let the code accept some of what was drafted; return its state and the tokens."""
    try:
        state, tokens, _ = _draft(probe, sdvar, first, count)
        due = [(probe.request.B, probe.pyramid.tokens(first + k)) for k in range(count)]
        whole = [tuple(idx.shape) for idx in tokens] == due
    except Exception:
        whole = False
    if not whole:
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
    with probe.code.checkout.active():
        sdvar.update_state_with_accepted_tokens(tokens, accepted, state, probe.request.B)
    return state, tokens


def _cases(probe: Probe) -> list[tuple[int, int, int]]:
    """Every window with nothing, something and everything accepted."""
    return [(first, count, k) for first, count in probe.windows() for k in sorted({0, 1, count})]


def _update_f_hat(probe: Probe, sdvar: Any) -> None:
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        along = _along(probe, first, tokens)
        why = {f"{more} drafted scales are in it": along[more] for more in range(count + 1) if more != k}
        if k:
            why["the accepted scales are in it twice"] = 2 * along[k] - along[0]
            why["the last accepted scale is in it twice"] = 2 * along[k] - along[k - 1]
        what = f"{_window(first, count)}, {k} accepted: the target's f_hat"
        require_close(
            require_tensor(state.target_f_hat, along[k].shape, what), along[k], 2 * probe.budget.f_hat, what, why
        )


def _update_sync(probe: Probe, sdvar: Any) -> None:
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        along = _along(probe, first, tokens)
        why = {f"it holds {more} drafted scales": along[more] for more in range(count + 1) if more != k}
        what = f"{_window(first, count)}, {k} accepted: the draft's f_hat"
        require_close(
            require_tensor(state.draft_f_hat, along[k].shape, what), along[k], 2 * probe.budget.f_hat, what, why
        )


def _update_maps(probe: Probe, sdvar: Any) -> None:
    for first, count, k in _cases(probe):
        if first + k == probe.pyramid.S:
            continue
        state, tokens = _updated(probe, sdvar, first, count, k)
        si = first + k
        raw = next_input(_along(probe, first, tokens)[k], si, probe.pyramid) if si else None
        for name, side in (("draft", probe.draft), ("target", probe.target)):
            due = scale_input(side.network, side.network.condition(_labels(probe)), raw, si)
            what = f"{_window(first, count)}, {k} accepted: {name}_next_token_map"
            stale = {"it was never advanced": side.run.x_RLD[:, probe.pyramid.span(first)]}
            got = getattr(state, f"{name}_next_token_map")
            if isinstance(got, Tensor) and got.shape == stale["it was never advanced"].shape != due.shape:
                raise Wrong(f"{what} is {tuple(got.shape)}, that of scale {first}: it was never advanced to scale {si}")
            require_close(require_tensor(got, due.shape, what), due, probe.input_error(due), what, stale)


def _update_tokens(probe: Probe, sdvar: Any) -> None:
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        due = torch.cat([*probe.drafted(0, first), *tokens[:k]], 1) if first + k else None
        kept = [idx for idx in state.accepted_tokens if isinstance(idx, Tensor) and idx.dim() == 2]
        held = torch.cat(kept, 1) if kept else None
        n = 0 if held is None else held.shape[1]
        wanted = 0 if due is None else due.shape[1]
        said = f"{_window(first, count)}, {k} accepted: accepted_tokens holds {n} tokens, not {wanted}"
        require(n == wanted, said)
        require(held is None or due is None or torch.equal(held, due), f"{said[:-1]}: others than were accepted")


def _update_stage(probe: Probe, sdvar: Any) -> None:
    for first, count, k in _cases(probe):
        state, _ = _updated(probe, sdvar, first, count, k)
        stage = int(state.current_stage)
        said = f"{_window(first, count)}, {k} accepted: current_stage is {stage}, not {first + k}"
        require(stage in (first, first + k), said)


def _verify(probe: Probe, sdvar: Any) -> None:
    for first, count in probe.windows():
        state, tokens = state_at(probe, sdvar, first, count), probe.drafted(first, count)
        recorder = Recorder(probe.pyramid)
        with recorder.watching({"target": probe.code.target}, probe.code.vae, probe.code.checkout.module):
            got = sdvar.target_verify_batch(tokens, state, probe.request.B)
        guided = got[0] if isinstance(got, tuple) else got
        require(len(guided) == count, f"{_window(first, count)}: logits of {len(guided)} scales")
        seen = recorder.passes[-1].cached if recorder.passes else -1
        K = probe.pyramid.begin(first)
        cache = f"; the pass saw {seen} cached positions, not {K}" if seen != K else ""
        for k, logits in enumerate(guided):
            _guided(probe, logits, first + k, f"{_window(first, count)}: guided logits of scale {first + k}", cache)


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
    except Wrong as wrong:
        raise Wrong(f"{wrong}{cache}") from None


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
    state = _begin(probe, sdvar)
    shared = state.draft_f_hat.untyped_storage().data_ptr() == state.target_f_hat.untyped_storage().data_ptr()
    require(
        not shared, "draft_f_hat and target_f_hat are one tensor: what is drafted is accepted already, or counted twice"
    )
