"""Laws of drafting and of the update with what was accepted.

Promise: one function a law; the update is asked with nothing, something and everything accepted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.adapters import _probe as probing
from harness.adapters._probe import PartNoted, PartQuestion, Probe, ProbeWindow
from harness.adapters._recorder import Recorder
from harness.judge import Broken, require
from harness.protocol.noise import TOKEN
from harness.reference import draw, filter_logits, guide, next_input

CLOSE_RACE = 1e-3  # in log: float32 logits of these sizes move by less, so that closer races are rounding's to decide


def _draft_tokens(probe: Probe, window: ProbeWindow) -> None:
    tokens, recorder = probe.draft_from(probe.state_at(window))
    require(len(tokens) == window.count, f"{window}: {len(tokens)} scales are drafted")
    for k, (idx, (expected, gap)) in enumerate(zip(tokens, _draft_oracle(probe, window, tokens), strict=True)):
        si = window.first + k
        probing.require_tensor(idx, expected.shape, f"{window}: the tokens of scale {si}")
        wrong = torch.nonzero((idx != expected) & (gap > CLOSE_RACE)).tolist()
        if wrong:
            seen, K = (recorder.passes[k].cached if k < len(recorder.passes) else 0), probe.pyramid.begin(si)
            cache = f"; its pass saw {seen} cached positions, not {K}" if seen != K else ""
            share = f"{len(wrong)} of {expected.numel()} tokens of scale {si} are not the draft's there"
            raise Broken(f"{window}: {share}, first at (image, token) {tuple(wrong[0])}{cache}")


def _draft_oracle(probe: Probe, window: ProbeWindow, drafted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the draft's draws of a window along the code's own tokens, and by how much each race was won (log)."""
    side, pyramid, draws = probe.draft, probe.pyramid, []
    noise = probe.code.models.noise(probe.request)
    side.fill_cache(window.first)
    for si, f_hat in zip(window.scales, probe.f_hats_along(window.first, drafted)[:-1], strict=True):
        rows = side.forward(side.input(next_input(f_hat, si, pyramid) if si else None, si))
        logits = filter_logits(guide(rows, probe.request.cfg, si, pyramid.S), 0, 0.0)
        E_BlV = noise.exponential(si, TOKEN, "judge")
        best_two = (logits.log_softmax(-1) - E_BlV.log()).topk(2, -1).values
        draws.append((draw(logits, E_BlV), best_two[..., 0] - best_two[..., 1]))
    return draws


def _draft_state(probe: Probe) -> None:
    scratch, error = _is_unread(probe, "draft_f_hat"), 2 * probe.budget.f_hat
    for window in probe.windows():
        with probe.aside():
            state = probe.state_at(window)
            tokens, _ = probe.draft_from(state)
            probing.require_close(state.target_f_hat, probe.f_hat(window.first), error, f"{window}: the target's f_hat")
            along = probe.f_hats_along(window.first, tokens)
            if scratch or bool(((state.draft_f_hat - along[0]).abs() <= error).all()):
                continue
            less = {f"it holds {k} of {window.count} drafted scales": f_hat for k, f_hat in enumerate(along[1:-1], 1)}
            try:
                probing.require_close(state.draft_f_hat, along[-1], error, f"{window}: the draft's f_hat", less)
            except Broken:
                try:  # where every update puts it right, what drafting leaves there does no harm
                    scratch = not probe.finds(_update_sync)
                except PartNoted:
                    scratch = False
                if not scratch:
                    raise


def _is_unread(probe: Probe, name: str) -> bool:
    """Tell whether drafting, checking and updating at scale 1 come out the same with NaN in a field of the state."""
    if probe.pyramid.S < 2:
        return False
    try:
        right, spoilt = (_one_round(probe, name, spoil) for spoil in (False, True))
    except Exception:  # those methods have laws of their own
        return False
    return len(right) == len(spoilt) and all(map(torch.equal, right, spoilt))


def _one_round(probe: Probe, name: str, spoil: bool) -> list[Tensor]:
    """Return the tokens, guided logits and f_hat of one round at scale 1, of which the first scale is accepted."""
    B, sdvar, state = probe.request.B, probe.sdvar, probe.state_at(ProbeWindow(1, min(2, probe.pyramid.S - 1)))
    if spoil:
        setattr(state, name, torch.full_like(getattr(state, name), torch.nan))
    with probe.running(Recorder(probe.pyramid)):
        tokens = list(probing.call_by_known_names(sdvar.draft_generate_batch, state=state, B=B, verbose=False))
        verified = sdvar.target_verify_batch(tokens, state, B)
        sdvar.update_state_with_accepted_tokens(tokens, 1, state, B)
    guided = verified[0] if isinstance(verified, tuple) else verified
    return [*tokens, *guided, state.target_f_hat]


@dataclass(frozen=True)
class _Update:
    """A window of which the code accepted some scales; its text is how messages call it."""

    window: ProbeWindow
    accepted: int
    state: Any
    tokens: list[Tensor]

    def __str__(self) -> str:
        return f"{self.window}, {self.accepted} accepted"

    @property
    def done(self) -> int:
        """Scales that are final after it."""
        return self.window.first + self.accepted


def _updates(probe: Probe, most_done: int | None = None) -> Iterator[_Update]:
    """Yield every window with nothing, something and everything accepted; `most_done` leaves out what finishes more."""
    for window in probe.windows():
        for accepted in sorted({0, 1, window.count}):
            if most_done is not None and window.first + accepted > most_done:
                continue
            done = None
            with probe.aside(), probe.code.checkout.active():
                state, tokens = _drafted_or_given(probe, window)
                probe.sdvar.update_state_with_accepted_tokens(tokens, accepted, state, probe.request.B)
                done = _Update(window, accepted, state, tokens)
            if done is not None:
                yield done


def _drafted_or_given(probe: Probe, window: ProbeWindow) -> tuple[Any, list[Tensor]]:
    """Return a state and tokens of a window that the code drafted, where that works; else those that are given."""
    try:
        state = probe.state_at(window)
        tokens, _ = probe.draft_from(state)
        if list(map(Tensor.size, tokens)) == list(map(Tensor.size, probe.drafted(window))):
            return state, tokens
    except Exception:  # drafting has laws of its own
        pass
    return probe.state_at(window), probe.drafted(window)


def _require_f_hat(probe: Probe, update: _Update, side: str, expected: Tensor, why: dict[str, Tensor]) -> None:
    what = f"{update}: the {side}'s f_hat"
    actual = probing.require_tensor(getattr(update.state, f"{side}_f_hat"), expected.shape, what)
    probing.require_close(actual, expected, 2 * probe.budget.f_hat, what, why)


def _update_f_hat(probe: Probe, update: _Update) -> None:
    k, along = update.accepted, probe.f_hats_along(update.window.first, update.tokens)
    why = {f"{more} drafted scales are in it": f_hat for more, f_hat in enumerate(along) if more != k}
    if k:
        why["the accepted scales are in it twice"] = 2 * along[k] - along[0]
        why["the last accepted scale is in it twice"] = 2 * along[k] - along[k - 1]
    _require_f_hat(probe, update, "target", along[k], why)


def _update_sync(probe: Probe) -> None:
    if _is_unread(probe, "draft_f_hat"):
        raise PartNoted("nothing reads draft_f_hat: a round comes out the same with NaN in it")
    for update in _updates(probe):
        with probe.aside():
            k, along = update.accepted, probe.f_hats_along(update.window.first, update.tokens)
            why = {f"it holds {more} drafted scales": f_hat for more, f_hat in enumerate(along) if more != k}
            _require_f_hat(probe, update, "draft", along[k], why)


def _update_maps(probe: Probe) -> None:
    sides = (("draft", probe.draft), ("target", probe.target))
    sides_read = [each for each in sides if not _is_unread(probe, f"{each[0]}_next_token_map")]
    for update in _updates(probe, most_done=probe.pyramid.S - 1):
        with probe.aside():
            si, first = update.done, update.window.first
            f_hat = probe.f_hats_along(first, update.tokens)[update.accepted]
            raw = next_input(f_hat, si, probe.pyramid) if si else None
            for name, side in sides_read:
                expected, what = side.input(raw, si), f"{update}: {name}_next_token_map"
                stale = side.run.x_RLD[:, probe.pyramid.span(first)]
                actual = getattr(update.state, f"{name}_next_token_map")
                if isinstance(actual, Tensor) and actual.shape == stale.shape != expected.shape:
                    shape = tuple(actual.shape)
                    raise Broken(f"{what} is {shape}, that of scale {first}: it was never advanced to scale {si}")
                actual, error = probing.require_tensor(actual, expected.shape, what), probe.input_error(expected)
                probing.require_close(actual, expected, error, what, {"it was never advanced": stale})


def _tensors(tokens: object) -> Iterator[Tensor]:
    """Yield the tokens (B,l) of a list, or of lists in it: a round a list, say."""
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        yield tokens
    elif isinstance(tokens, list | tuple):
        for each in tokens:
            yield from _tensors(each)


def _update_tokens(probe: Probe, update: _Update) -> None:
    nothing = probe.tokens_BL[:, :0]
    accepted = [*probe.drafted(ProbeWindow(0, update.window.first)), *update.tokens[: update.accepted]]
    held = list(_tensors(update.state.accepted_tokens))
    expected, actual = (torch.cat(each, 1) if each else nothing for each in (accepted, held))
    n, wanted = actual.shape[1], expected.shape[1]
    require(n == wanted, f"{update}: accepted_tokens holds {n} tokens, not {wanted}")
    same = n == 0 or torch.equal(actual, expected)
    require(same, f"{update}: accepted_tokens holds {n} tokens, others than were accepted")


def _update_stage(probe: Probe, update: _Update) -> None:
    stage = int(update.state.current_stage)
    require(stage in (update.window.first, update.done), f"{update}: current_stage is {stage}, not {update.done}")


_DRAFT, _UPDATE = "draft_generate_batch", "update_state_with_accepted_tokens"
UPDATE_QUESTIONS = (
    PartQuestion(_DRAFT, "draft.tokens",
        "The tokens are the draft's own draws on the committed prefix.", _draft_tokens, Probe.windows),
    PartQuestion(_DRAFT, "draft.state",
        "Drafting leaves the target's f_hat alone; the draft's holds all or none.", _draft_state),
    PartQuestion(_UPDATE, "state.f_hat",
        "The target's f_hat holds every accepted scale once, and no rejected one.", _update_f_hat, _updates),
    PartQuestion(_UPDATE, "state.sync", "The draft's f_hat is the target's, where anything reads it.", _update_sync),
    PartQuestion(_UPDATE, "state.next-input",
        "Both next inputs are those of the scale after the accepted ones.", _update_maps),
    PartQuestion(_UPDATE, "state.tokens", "accepted_tokens holds the accepted scales.", _update_tokens,
        _updates),
    PartQuestion(_UPDATE, "state.stage",
        "current_stage moves by the accepted scales, or is left to the loop.", _update_stage, _updates),
)  # fmt: skip
