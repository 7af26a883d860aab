"""The rounds of SDVAR's parallel decode, seen by the methods that its loop calls.

Promise: what a round drafted, verified, accepted and made final is what the object's own methods returned and left in
its state; an attempt that made nothing final counts for the round after it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any, SupportsInt

import torch
from torch import Tensor

from harness.adapters._recorder import Recorder, SeenPass, SeenWrite, replaced
from harness.adapters._traces import blank, count_calls, put
from harness.models import ModelPair
from harness.protocol import Round, Trace

METHODS = (
    "_initialize_inference_state", "draft_generate_batch", "target_verify_batch", "_split_logits_by_stage",
    "update_state_with_accepted_tokens",
)  # fmt: skip


@dataclass
class Turn:
    """One attempt: drafted tokens, the passes that checked them, what was accepted and made final."""

    first: int
    drafted: list[Tensor]
    draft_rows: int = 0
    passes: list[SeenPass] = field(default_factory=list)
    pieces: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    target_rows: int = 0
    accepted: int = 0
    final: list[Tensor] = field(default_factory=list)
    f_hats: dict[int, Tensor] = field(default_factory=dict)
    draws: int = 0  # that the decode had made when the rule had spoken; -1 where more followed before the update

    @property
    def kept(self) -> int:
        """Scales that the rule rejected, and that are final with the drafted tokens: nothing was drawn anew."""
        if self.draws < 0:
            return 0
        rest = zip(self.final[self.accepted :], self.drafted[self.accepted :], strict=False)
        return len(list(takewhile(lambda pair: torch.equal(*pair), rest)))

    def of_scale(self, whole: Tensor, k: int) -> Tensor | None:
        """Return the k-th drafted scale's positions of a tensor over all drafted ones; None where it is none."""
        sizes = [idx.shape[1] for idx in self.drafted]
        begin = sum(sizes[:k])
        return whole[:, begin : begin + sizes[k]] if whole.shape[1] == sum(sizes) else None

    def rows(self, k: int) -> Tensor | None:
        """Return the k-th scale's logits: as the code split them, else of the passes that checked it."""
        if k < len(self.pieces):
            return self.pieces[k]
        known = [each.rows_RnV for each in self.passes if each.rows_RnV is not None]
        if not known or k >= len(self.drafted):
            return None
        last = self.of_scale(known[-1], k)
        return last if last is not None else self.of_scale(torch.cat(known, 1), k)

    def inputs(self, k: int) -> Tensor | None:
        """Return the inputs of the k-th scale's rows: where its logits, as the code split them, stand in a pass."""
        if not self.passes or k >= len(self.drafted):
            return None
        sizes = [idx.shape[1] for idx in self.drafted]
        begin, whole = sum(sizes[:k]), [each for each in self.passes if each.n == sum(sizes)]
        if k < len(self.pieces):
            places = [(each, at) for each in self.passes for at in _places(each, self.pieces[k])]
            own = [(each, at) for each, at in places if at == begin and each in whole]
            if places:
                seen, at = own[-1] if own else places[0]
                return seen.x_RnD[:, at : at + sizes[k]]
        # of one pass, or of all in their order
        return self.of_scale(torch.cat([each.x_RnD for each in whole[-1:] or self.passes], 1), k)


def _places(seen: SeenPass, piece: Tensor) -> list[int]:
    rows_RnV, l = seen.rows_RnV, piece.shape[1]
    if rows_RnV is None or len(rows_RnV) != len(piece) or rows_RnV.shape[1] != seen.n:
        return []
    return [at for at in range(seen.n - l + 1) if torch.equal(rows_RnV[:, at : at + l], piece)]


class ParallelLoop:
    """What was seen of the loop of one SDVAR object, decode after decode."""

    def __init__(self, sdvar: Any, models: ModelPair) -> None:
        self.sdvar, self.models = sdvar, models
        self._begin(Recorder(models.pyramid))

    def _begin(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._inside = self._seen = 0  # methods under way; writes that were looked at
        self._turns: list[Turn] = []
        self._state: Any = None

    @contextlib.contextmanager
    def watching(self, recorder: Recorder) -> Iterator[None]:
        self._begin(recorder)
        watchers: dict[str, Callable[..., Any]] = {
            "_initialize_inference_state": self._initialized,
            "draft_generate_batch": self._drafted,
            "target_verify_batch": self._verified,
            "_split_logits_by_stage": self._split,
            "update_state_with_accepted_tokens": self._updated,
            "basic_token_matching": self._matched,
            "advanced_token_matching": self._matched,
        }
        with contextlib.ExitStack() as stack:
            for name, watcher in watchers.items():
                if hasattr(self.sdvar, name):
                    stack.enter_context(replaced(self.sdvar, name, partial(self._watched, watcher)))
            yield

    @property
    def kept(self) -> int:
        """Scales of the last decode that were rejected and stayed."""
        return sum(turn.kept for turn in self._turns)

    def trace(self, B: int) -> Trace:
        """Return the trace of the last decode, whole or not, of B images."""
        self._finish_alone()
        trace, pyramid = blank(self.models, B), self.models.pyramid
        shown = trace.shown
        for turn in self._turns:
            for k, idx_Bl in enumerate(turn.final):
                si = turn.first + k
                if si in pyramid:
                    trace.scale_writes_BS[:, si] += 1
                    span = (slice(None), pyramid.span(si))
                    put(trace.tokens_BL, span, idx_Bl)
                    put(shown.guided_BLV, span, turn.guided[k] if k < len(turn.guided) else None)
                    put(shown.rows_RLV, span, turn.rows(k))
                    put(shown.x_RLD, span, turn.inputs(k))
                    put(shown.f_hat_SBCPP, si, turn.f_hats.get(si))
        f_hat = self._recorder.image_f_hat(B)
        last = f_hat if f_hat is not None else getattr(self._state, "target_f_hat", None)
        if isinstance(last, Tensor) and last.shape == trace.f_hat_BCPP.shape:
            trace.f_hat_BCPP = last.detach().clone()
        trace.rounds = [list(rounds_of_turns(self._turns)) for _ in range(B)]
        count_calls(trace, self._recorder, B)
        return trace

    def _watched(self, watcher: Callable[..., Any], real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method that is watched; say what the loop accumulated before it, and since the one before."""
        self._finish_alone()
        self._inside += 1
        try:
            return watcher(real, *args, **kwargs)
        finally:
            self._inside -= 1
            if not self._inside:
                self._seen = len(self._recorder.writes)

    def _finish_alone(self) -> None:
        """Count scales of the last round that the loop itself made final: those after the accepted ones."""
        if self._inside:
            return
        draft, target = (_address(getattr(self._state, name, None)) for name in ("draft_f_hat", "target_f_hat"))
        for write in self._recorder.writes[self._seen :]:
            turn = self._turns[-1] if self._turns else None
            draft_only = write.place == draft != target
            if turn is None or write.idx_Bl is None or draft_only or len(turn.final) >= len(turn.drafted):
                continue
            if write.scale == turn.first + len(turn.final):
                turn.final.append(write.idx_Bl)
                turn.f_hats[write.scale] = write.f_hat_BCPP
        self._seen = len(self._recorder.writes)

    def _initialized(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._state = real(*args, **kwargs)
        return self._state

    def _drafted(self, real: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
        self._state, before = state, sum(self._recorder.calls("draft"))
        first = int(state.current_stage)
        self._recorder.note(f"round {len(self._turns) + 1} drafts from scale {first}")
        result = real(state, *args, **kwargs)
        tokens = [idx.detach().clone() for idx in result]
        self._turns.append(Turn(first, tokens, sum(self._recorder.calls("draft")) - before))
        return result

    def _verified(self, real: Callable[..., Any], draft_tokens: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        turn = self._turns[-1] if self._turns else Turn(int(state.current_stage), list(draft_tokens))
        before = len(self._recorder.passes)
        result = real(draft_tokens, state, *args, **kwargs)
        turn.passes = [each for each in self._recorder.passes[before:] if each.side == "target"]
        turn.target_rows += sum(each.n for each in turn.passes)
        guided = result[0] if isinstance(result, tuple) else result
        turn.guided = [each.detach().clone() for each in guided]
        return result

    def _split(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if self._turns:
            self._turns[-1].pieces = [each.detach().clone() for each in result]
        return result

    def _matched(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        count = accepted_scales(result)
        if self._turns and count is not None:
            self._turns[-1].accepted, self._turns[-1].draws = count, len(self._recorder.draws)
            self._recorder.note(f"round {len(self._turns)} accepts {count} scales")
        return result

    def _updated(
        self, real: Callable[..., Any], draft_tokens: Any, accept_length: Any, state: Any, *args: Any, **kwargs: Any
    ) -> Any:
        before, first = len(self._recorder.writes), int(state.current_stage)
        tokens = [idx.detach().clone() for idx in list(draft_tokens)[: int(accept_length)]]
        result = real(draft_tokens, accept_length, state, *args, **kwargs)
        if self._turns:
            turn = self._turns[-1]
            turn.draws = turn.draws if len(self._recorder.draws) == turn.draws else -1
            goes_on = bool(turn.final) and first == turn.first + len(turn.final)
            f_hats = _f_hats_of(self._recorder.writes[before:], state, first, len(tokens))
            turn.final = [*turn.final, *tokens] if goes_on else tokens
            turn.f_hats = turn.f_hats | f_hats if goes_on else f_hats
        return result


def _address(tensor: object) -> int:
    return tensor.data_ptr() if isinstance(tensor, Tensor) else -1


def _f_hats_of(writes: list[SeenWrite], state: Any, first: int, count: int) -> dict[int, Tensor]:
    """Return the target's f_hat after every scale of an update: by its memory where it is known, else the last."""
    f_hat, f_hats = getattr(state, "target_f_hat", None), {}
    for si in range(first, first + count):
        of_scale = [write for write in writes if write.scale == si]
        of_target = [write for write in of_scale if write.place == _address(f_hat)] or of_scale
        if of_target:
            f_hats[si] = of_target[-1].f_hat_BCPP
    if count and isinstance(f_hat, Tensor):
        f_hats[first + count - 1] = f_hat.detach().clone()
    return f_hats


def accepted_scales(answer: object) -> int | None:
    """Return how many scales a rule accepts: alone or first of what it returns; None where it says nothing."""
    answer = answer[0] if isinstance(answer, tuple) and answer else answer
    return int(answer) if isinstance(answer, SupportsInt) else None


def rounds_of_turns(turns: list[Turn]) -> Iterator[Round]:
    """Yield the rounds that made something final, the passes of attempts before them included."""
    target_rows = draft_rows = 0
    for turn in turns:
        target_rows, draft_rows = target_rows + turn.target_rows, draft_rows + turn.draft_rows
        if not turn.final:
            continue
        sizes = [idx.shape[1] for idx in turn.final]
        accepted = min(turn.accepted, len(turn.final), len(turn.drafted)) + turn.kept
        yield Round(
            first=turn.first, drafted=len(turn.drafted), accepted=accepted, corrected=len(turn.final) > accepted,
            bonus=False, accepted_tokens=sum(sizes[:accepted]), corrected_tokens=sum(sizes[accepted:]), bonus_tokens=0,
            target_rows=target_rows, draft_rows=draft_rows, kept=turn.kept,
        )  # fmt: skip
        target_rows = draft_rows = 0
