"""SDVAR's parallel decode under test: its loop, seen by the methods that the loop calls.

Promise: what a round drafted, verified, accepted and made final is what the object's own methods returned and left in
its state; an attempt of which nothing was kept counts for the round that follows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsInt

import torch
from torch import Tensor

from harness.adapters.published import Published
from harness.adapters.recorder import Recorder, SeenPass, SeenWrite, replaced
from harness.adapters.traces import blank, check_image, put
from harness.protocol.noise import Noise
from harness.protocol.request import Request
from harness.protocol.trace import Round, Trace

METHODS = (
    "_initialize_inference_state",
    "draft_generate_batch",
    "target_verify_batch",
    "_split_logits_by_stage",
    "update_state_with_accepted_tokens",
)
MATCHING = ("basic_token_matching", "advanced_token_matching")


class Parallel:
    """The parallel decode of an SDVAR object as a decoder.

    Args:
        code: the checkout's modules.
        call: runs the decode.
        sdvar: the object.
        contract: what it is held to.
        numbers: "shared" or "own".
    """

    threshold: float | None = None  # `similarity_thresh` that the object was built with, where it was given

    def __init__(self, code: Published, call: Callable[..., Any], sdvar: Any, contract: str, numbers: str) -> None:
        self.code, self.call, self.sdvar, self.contract, self.numbers = code, call, sdvar, str(contract), numbers
        self._begin(Recorder(code.models.pyramid), 0)

    def decode(self, request: Request, noise: Noise) -> Trace:
        """Run the code under the numbers given.

        Raises:
            InputError: it cannot take the request.
            ImageError: what it returns is not the image of its f_hat.
        """
        arguments = self.code.arguments(request, noise, self.numbers)
        self._begin(Recorder(self.code.models.pyramid, getattr(noise, "note", lambda text: None)), request.B)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.code.running(self._recorder, request, noise, self.numbers))
            stack.enter_context(self._watching())
            stack.enter_context(torch.no_grad())
            image = self.call(**arguments)
        trace = self.so_far()
        check_image(image, trace.f_hat_BCPP, self.code.models)
        return trace

    def so_far(self) -> Trace:
        """Return the trace of the last decode, whole or not."""
        self._finish_alone()
        trace, pyramid = blank(self.code.models, self._B), self.code.models.pyramid
        kept = trace.intermediates
        assert kept is not None
        for turn in self._turns:
            for k, idx_Bl in enumerate(turn.final):
                si = turn.first + k
                if si not in pyramid:
                    continue
                span = (slice(None), pyramid.span(si))
                trace.scale_writes_BS[:, si] += 1
                put(trace.tokens_BL, span, idx_Bl)
                if k < len(turn.guided):
                    put(kept.guided_BLV, span, turn.guided[k])
                if (rows_RlV := turn.pieces[k] if k < len(turn.pieces) else rows_of(turn, k)) is not None:
                    put(kept.rows_RLV, span, rows_RlV)
                if (x_RlD := inputs_of(turn, k)) is not None:
                    put(kept.x_RLD, span, x_RlD)
                if si in turn.f_hats:
                    put(kept.f_hat_SBCPP, si, turn.f_hats[si])
        f_hat = self._recorder.image_f_hat(self._B)
        state_f_hat = getattr(self._state, "target_f_hat", None)
        last = f_hat if f_hat is not None else state_f_hat
        if isinstance(last, Tensor) and last.shape == trace.f_hat_BCPP.shape:
            trace.f_hat_BCPP = last.detach().clone()
        trace.rounds = [list(rounds_of(self._turns)) for _ in range(self._B)]
        for side in ("target", "draft"):
            calls = self._recorder.calls(side)
            setattr(trace, f"{side}_calls", [len(calls)] * self._B)
            setattr(trace, f"{side}_rows", [sum(calls)] * self._B)
        return trace

    def _begin(self, recorder: Recorder, B: int) -> None:
        self._recorder, self._B = recorder, B
        self._inside = self._seen = 0  # methods under way; writes that were looked at
        self._turns: list[Turn] = []
        self._state: Any = None

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        watch: dict[str, Callable[..., Any]] = {
            "_initialize_inference_state": self._initialized,
            "draft_generate_batch": self._drafted,
            "target_verify_batch": self._verified,
            "_split_logits_by_stage": self._split,
            "update_state_with_accepted_tokens": self._updated,
            **dict.fromkeys(MATCHING, self._matched),
        }
        with contextlib.ExitStack() as stack:
            for name, wrap in watch.items():
                if hasattr(self.sdvar, name):
                    stack.enter_context(replaced(self.sdvar, name, partial(self._told, wrap)))
            yield

    def _told(self, wrap: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that is watched, and tells what the loop accumulated before it and after the last one."""
        watched = wrap(real)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._finish_alone()
            self._inside += 1
            try:
                return watched(*args, **kwargs)
            finally:
                self._inside -= 1
                if not self._inside:
                    self._seen = len(self._recorder.writes)

        return call

    def _finish_alone(self) -> None:
        """Count scales of the last round that the loop itself made final: those behind the accepted ones."""
        if self._inside:
            return
        draft_f_hat = getattr(self._state, "draft_f_hat", None)
        theirs = draft_f_hat.data_ptr() if isinstance(draft_f_hat, Tensor) else -1
        target_f_hat = getattr(self._state, "target_f_hat", None)
        ours = target_f_hat.data_ptr() if isinstance(target_f_hat, Tensor) else -1
        for write in self._recorder.writes[self._seen :]:
            turn = self._turns[-1] if self._turns else None
            draft_only = write.place == theirs != ours
            if turn is None or write.idx_Bl is None or draft_only or len(turn.final) >= len(turn.drafted):
                continue
            if write.scale == turn.first + len(turn.final):
                turn.final.append(write.idx_Bl)
                turn.f_hats[write.scale] = write.f_hat_BCPP
        self._seen = len(self._recorder.writes)

    def _initialized(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def initialize(*args: Any, **kwargs: Any) -> Any:
            self._state = real(*args, **kwargs)
            return self._state

        return initialize

    def _drafted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def draft(state: Any, *args: Any, **kwargs: Any) -> Any:
            self._state, before = state, sum(self._recorder.calls("draft"))
            first = int(state.current_stage)
            self._recorder.note(f"round {len(self._turns) + 1} drafts from scale {first}")
            made = real(state, *args, **kwargs)
            kept = [idx.detach().clone() for idx in made]
            self._turns.append(Turn(first, kept, sum(self._recorder.calls("draft")) - before))
            return made

        return draft

    def _verified(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def verify(draft_tokens: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
            turn = self._turns[-1] if self._turns else Turn(int(state.current_stage), list(draft_tokens))
            before = len(self._recorder.passes)
            made = real(draft_tokens, state, *args, **kwargs)
            passes = [each for each in self._recorder.passes[before:] if each.side == "target"]
            turn.made_by = passes
            turn.target_rows += sum(each.n for each in passes)
            guided = made[0] if isinstance(made, tuple) else made
            turn.guided = [each.detach().clone() for each in guided]
            return made

        return verify

    def _split(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def split(*args: Any, **kwargs: Any) -> Any:
            made = real(*args, **kwargs)
            if self._turns:
                self._turns[-1].pieces = [each.detach().clone() for each in made]
            return made

        return split

    def _matched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def match(*args: Any, **kwargs: Any) -> Any:
            made = real(*args, **kwargs)
            count = scales_of(made)
            if self._turns and count is not None:
                self._turns[-1].accepted = count
                self._recorder.note(f"round {len(self._turns)} accepts {count} scales")
            return made

        return match

    def _updated(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def update(draft_tokens: Any, accept_length: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
            before, first = len(self._recorder.writes), int(state.current_stage)
            given = [idx.detach().clone() for idx in list(draft_tokens)[: int(accept_length)]]
            made = real(draft_tokens, accept_length, state, *args, **kwargs)
            if self._turns:
                turn = self._turns[-1]
                goes_on = bool(turn.final) and first == turn.first + len(turn.final)
                f_hats = f_hats_of(self._recorder.writes[before:], state, first, len(given))
                turn.final = [*turn.final, *given] if goes_on else given
                turn.f_hats = turn.f_hats | f_hats if goes_on else f_hats
            return made

        return update


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
