"""Laws of drafting, of acceptance, and of the update with what was accepted.

Promise: one function a law; the update is asked with nothing, something and everything accepted. Acceptance is asked
by its own statement, the share of top-1 hits of a scale over the whole batch; what it keeps of contract A, B or C is
told apart from whether it does what it says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters.parallel import scales_of
from harness.adapters.parts_network import fill, forward
from harness.adapters.parts_state import f_hats_along, flexible, labels_of, state_at, unread, window
from harness.adapters.probe import Probe, Told, require_close, require_tensor
from harness.adapters.recorder import Recorder
from harness.judge.part_law import Broken, require
from harness.protocol.noise import TOKEN
from harness.reference.steps import accumulate, draw, filter_logits, guide, next_input, scale_input


def _draft(probe: Probe, sdvar: Any, first: int, count: int) -> tuple[Any, list[Tensor], Recorder]:
    """Let the code draft from a right state, under the harness's numbers."""
    state = state_at(probe, sdvar, first, count)
    recorder = Recorder(probe.pyramid)
    with probe.code.running(recorder, probe.request, probe.code.models.noise(probe.request)):
        got = flexible(sdvar.draft_generate_batch, state=state, B=probe.request.B, verbose=False)
    return state, list(got), recorder


def draft_tokens(probe: Probe, sdvar: Any) -> None:
    """Require that drafted tokens are the draft's own draws."""
    for first, count in probe.windows():
        _, got, recorder = _draft(probe, sdvar, first, count)
        require(len(got) == count, f"{window(first, count)}: {len(got)} scales are drafted")
        due = draft_oracle(probe, first, got)
        for k, (idx, (tokens, gap)) in enumerate(zip(got, due, strict=True)):
            require_tensor(idx, tokens.shape, f"{window(first, count)}: the tokens of scale {first + k}")
            wrong = torch.nonzero((idx != tokens) & (gap > 1e-3)).tolist()
            if wrong:
                seen = recorder.passes[k].cached if k < len(recorder.passes) else 0
                due_cached = probe.pyramid.begin(first + k)
                cache = f"; its pass saw {seen} cached positions, not {due_cached}" if seen != due_cached else ""
                found = f"{len(wrong)} of {tokens.numel()} tokens of scale {first + k} are not the draft's there"
                where = f"first at (image, token) {tuple(wrong[0])}"
                raise Broken(f"{window(first, count)}: {found}, {where}{cache}")


def draft_oracle(probe: Probe, first: int, drafted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the draft's draws of a window along the code's own tokens, and by how much each race was won (log).

    A race closer than 0.001 is rounding's to decide: float32 logits of these sizes move by less than that.
    """
    side, made = probe.draft, []
    models, pyramid, request = probe.code.models, probe.pyramid, probe.request
    noise = models.noise(request)
    f_hat, raw = probe.f_hat(first), None
    fill(probe, side, first)
    condition = side.network.condition(labels_of(probe))
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


def draft_state(probe: Probe, sdvar: Any) -> None:
    """Require that drafting leaves what is final alone."""
    scratch = unread(probe, sdvar, "draft_f_hat")
    for first, count in probe.windows():
        state, got, _ = _draft(probe, sdvar, first, count)
        error = 2 * probe.budget.f_hat
        require_close(state.target_f_hat, probe.f_hat(first), error, f"{window(first, count)}: the target's f_hat")
        along = f_hats_along(probe, first, got)
        if scratch or bool(((state.draft_f_hat - along[0]).abs() <= error).all()):
            continue
        less = {f"it holds {k} of {count} drafted scales": f_hat for k, f_hat in enumerate(along[1:-1], 1)}
        try:
            require_close(state.draft_f_hat, along[-1], error, f"{window(first, count)}: the draft's f_hat", less)
        except Broken:
            scratch = _restored(probe, sdvar)
            if not scratch:
                raise


def _restored(probe: Probe, sdvar: Any) -> bool:
    """Tell whether every update puts the draft's f_hat right: then it does no harm what drafting leaves there."""
    try:
        update_sync(probe, sdvar)
    except Exception:  # that method has laws of its own
        return False
    return True


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


def update_f_hat(probe: Probe, sdvar: Any) -> None:
    """Require that the target's f_hat holds the accepted scales once."""
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        along = f_hats_along(probe, first, tokens)
        why = {f"{more} drafted scales are in it": along[more] for more in range(count + 1) if more != k}
        if k:
            why["the accepted scales are in it twice"] = 2 * along[k] - along[0]
            why["the last accepted scale is in it twice"] = 2 * along[k] - along[k - 1]
        what = f"{window(first, count)}, {k} accepted: the target's f_hat"
        require_close(
            require_tensor(state.target_f_hat, along[k].shape, what), along[k], 2 * probe.budget.f_hat, what, why
        )


def update_sync(probe: Probe, sdvar: Any) -> None:
    """Require that the draft's f_hat is the target's, where anything reads it."""
    if unread(probe, sdvar, "draft_f_hat"):
        raise Told("nothing reads draft_f_hat: a round comes out the same with NaN in it")
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        along = f_hats_along(probe, first, tokens)
        why = {f"it holds {more} drafted scales": along[more] for more in range(count + 1) if more != k}
        what = f"{window(first, count)}, {k} accepted: the draft's f_hat"
        require_close(
            require_tensor(state.draft_f_hat, along[k].shape, what), along[k], 2 * probe.budget.f_hat, what, why
        )


def update_maps(probe: Probe, sdvar: Any) -> None:
    """Require that both next inputs are those of the next scale, where anything reads them."""
    sides = (("draft", probe.draft), ("target", probe.target))
    sides_read = [each for each in sides if not unread(probe, sdvar, f"{each[0]}_next_token_map")]
    for first, count, k in _cases(probe):
        if first + k == probe.pyramid.S:
            continue
        state, tokens = _updated(probe, sdvar, first, count, k)
        si = first + k
        raw = next_input(f_hats_along(probe, first, tokens)[k], si, probe.pyramid) if si else None
        for name, side in sides_read:
            due = scale_input(side.network, side.network.condition(labels_of(probe)), raw, si)
            what = f"{window(first, count)}, {k} accepted: {name}_next_token_map"
            stale = {"it was never advanced": side.run.x_RLD[:, probe.pyramid.span(first)]}
            got = getattr(state, f"{name}_next_token_map")
            if isinstance(got, Tensor) and got.shape == stale["it was never advanced"].shape != due.shape:
                raise Broken(
                    f"{what} is {tuple(got.shape)}, that of scale {first}: it was never advanced to scale {si}"
                )
            require_close(require_tensor(got, due.shape, what), due, probe.input_error(due), what, stale)


def _tensors(kept: Any) -> Iterator[Tensor]:
    """Yield the tokens (B,l) of a list, or of lists in it: a round a list, say."""
    if isinstance(kept, Tensor) and kept.dim() == 2:
        yield kept
    elif isinstance(kept, list | tuple):
        for each in kept:
            yield from _tensors(each)


def update_tokens(probe: Probe, sdvar: Any) -> None:
    """Require that `accepted_tokens` holds what was accepted."""
    for first, count, k in _cases(probe):
        state, tokens = _updated(probe, sdvar, first, count, k)
        due = torch.cat([*probe.drafted(0, first), *tokens[:k]], 1) if first + k else None
        kept = list(_tensors(state.accepted_tokens))
        held = torch.cat(kept, 1) if kept else None
        n = 0 if held is None else held.shape[1]
        wanted = 0 if due is None else due.shape[1]
        said = f"{window(first, count)}, {k} accepted: accepted_tokens holds {n} tokens, not {wanted}"
        require(n == wanted, said)
        require(held is None or due is None or torch.equal(held, due), f"{said[:-1]}: others than were accepted")


def update_stage(probe: Probe, sdvar: Any) -> None:
    """Require that `current_stage` moves by what was accepted, or not at all."""
    for first, count, k in _cases(probe):
        state, _ = _updated(probe, sdvar, first, count, k)
        stage = int(state.current_stage)
        said = f"{window(first, count)}, {k} accepted: current_stage is {stage}, not {first + k}"
        require(stage in (first, first + k), said)


THRESHOLD = 0.5
NAMES = ("basic_token_matching", "advanced_token_matching")


def examine_matching(probe: Probe, sdvar: Any) -> None:
    """Ask the laws of both rules. Effects: on `probe.rows`."""
    for name in NAMES:
        if not callable(getattr(sdvar, name, None)):
            probe.absent(name)
            continue
        probe.law(name, "accept.extremes", "All hits keep every scale, no hit keeps none, and a miss ends the run.",
            partial(_extremes, probe, sdvar, name))  # fmt: skip
        if name != NAMES[0]:
            continue
        probe.law(name, "accept.share", "A scale is kept iff the batch's share of top-1 hits reaches the threshold.",
            partial(_share, probe, sdvar, name))  # fmt: skip
        probe.law(name, "accept.contract", "Which contract does the rule keep?",
            partial(_contract, probe, sdvar, name))  # fmt: skip


def _logits(probe: Probe, tokens: Tensor, hits: Tensor) -> Tensor:
    """Return logits (B,l,V) whose best token is the drafted one exactly where `hits` says so, by a wide margin."""
    V = probe.target.network.config.V
    best = torch.where(hits, tokens, (tokens + 1) % V)
    return 12.0 * torch.nn.functional.one_hot(best, V).float()


def _ask(probe: Probe, sdvar: Any, name: str, hits: list[Tensor], first: int = 0) -> int:
    count = len(hits)
    tokens = probe.drafted(first, count)
    logits = [_logits(probe, idx, hit) for idx, hit in zip(tokens, hits, strict=True)]
    given: dict[str, Any] = {
        "draft_tokens": tokens,
        "target_logits": logits,
        "state": state_at(probe, sdvar, first, count),
        "B": probe.request.B,
        "similarity_threshold": THRESHOLD,
        "verbose": False,
    }
    made = flexible(getattr(sdvar, name), **given)
    kept = scales_of(made)
    if kept is None:
        raise Broken(f"it returns a {type(made).__name__}, not a number of scales")
    return kept


def _hits(probe: Probe, si: int, share: float) -> Tensor:
    """Return hits (B,l), `share` of them, spread over images and positions."""
    shape = (probe.request.B, probe.pyramid.tokens(si))
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(si))
    flat[order[: round(share * len(flat))]] = True
    return flat.view(shape).to(probe.code.models.device)


def _extremes(probe: Probe, sdvar: Any, name: str) -> None:
    count = min(3, probe.pyramid.S)
    for shares, due in (([1.0] * count, count), ([0.0] * count, 0), ([1.0] + [0.0] * (count - 1), 1)):
        got = _ask(probe, sdvar, name, [_hits(probe, si, share) for si, share in enumerate(shares)])
        require(got == due, f"shares of hits {shares}: {got} scales accepted, not {due}")
    got = _ask(probe, sdvar, name, [_hits(probe, si, share) for si, share in enumerate([0.0] + [1.0] * (count - 1))])
    require(got == 0, f"a scale without a hit before scales full of hits: {got} scales accepted, not 0")


def _threshold(probe: Probe, sdvar: Any, name: str) -> float | None:
    """Return the threshold that it is given, or that the object was built with; None where nobody can know it."""
    parameters = inspect.signature(getattr(sdvar, name)).parameters
    if "similarity_threshold" in parameters:
        return THRESHOLD
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None  # it may have a threshold of its own
    if probe.threshold is not None:
        return probe.threshold
    built = inspect.signature(type(sdvar)).parameters.get("similarity_thresh")
    known = built is not None and isinstance(built.default, int | float)
    return float(built.default) if known and built is not None else None


def _share(probe: Probe, sdvar: Any, name: str) -> None:
    si, due = probe.pyramid.S - 1, _threshold(probe, sdvar, name)
    lowest = None
    for step in range(21):
        share = step / 20
        hits = _hits(probe, si, share)
        exact = float(hits.float().mean())
        kept = _ask(probe, sdvar, name, [hits], si) == 1
        if kept and lowest is None:
            lowest = exact
        require(kept or lowest is None, f"a share of {exact:.2f} is kept no longer where {lowest} is")
        if due is not None and abs(exact - due) > 1e-6 and kept != (exact > due):
            found = "kept" if kept else "not kept"
            raise Broken(f"a share of {exact:.2f} of the batch's tokens is {found}, with a threshold of {due:g}")
    _uneven(probe, sdvar, name, due)


def _uneven(probe: Probe, sdvar: Any, name: str, due: float | None) -> None:
    """Require that hits in some images only count as a share of the whole batch."""
    si = probe.pyramid.S - 1
    uneven = torch.zeros_like(_hits(probe, si, 0.0))
    uneven[: max(1, probe.request.B // 2)] = True
    share = float(uneven.float().mean())
    even = _ask(probe, sdvar, name, [_hits(probe, si, share)], si) == 1  # as many hits, in every image
    for hits in (uneven, uneven.flip(0)):
        kept = _ask(probe, sdvar, name, [hits], si) == 1
        right = even if due is None else share > due
        if kept != right and (due is None or abs(share - due) > 1e-6):
            raise Broken(f"hits in some images only ({share:.2f} of the batch): {'kept' if kept else 'not kept'}")


def _contract(probe: Probe, sdvar: Any, name: str) -> None:
    """Tell what the rule keeps: what it does to misses and to neighbours, and that it reads no number."""
    si, B = probe.pyramid.S - 1, probe.request.B
    due = _threshold(probe, sdvar, name)
    share = 0.95 if due is None else min(0.95, due + 0.05)
    hits = _hits(probe, si, share)
    wrong = int((~hits).sum())
    found = []
    if wrong and _ask(probe, sdvar, name, [hits], si) == 1:
        found.append(f"it keeps {wrong} of {hits.numel()} tokens to which the target gives hardly a chance")
    if B > 1:
        one, other = torch.ones_like(hits), torch.ones_like(hits)
        other[1:] = False
        if _ask(probe, sdvar, name, [one], si) != _ask(probe, sdvar, name, [other], si):
            found.append("image 0, the same in both, is kept or not as its neighbours are")
    if found:
        raise Told(f"contract C alone, neither A nor B: {'; '.join(found)}")
    raise Told("no token was kept that the target would not draw: A or B is not ruled out by this")
