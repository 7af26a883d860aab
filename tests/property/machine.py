"""A decode taken apart into single steps in any order, against a plain model of its state: lists of tokens.

Every rule takes plain numbers, so the trace that Hypothesis prints is a program. To replay one, import `DecodeMachine`
and `Case` and run it line by line.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from harness.judge._verdict import require
from harness.laws import Case
from harness.laws._case import CHOICES
from harness.laws._law import FLOAT64, require_same
from harness.laws._oracle import BrokenNoise, Interrupted, Run, Snapshot, check_snapshot, run_over, snapshot
from harness.laws._strategies import cases
from harness.speculative._accept import Proposal, Window, drafted_proposal
from harness.speculative._policies import COUPLED
from harness.speculative._round import draft_generate_batch, forward_window, target_verify_batch
from harness.speculative._state import DecodeState, Launcher
from harness.speculative._steps import split_logits_by_scale
from harness.speculative.parts import PARTS, Parts

several_scales = tuple(sides for sides in CHOICES["patch_nums"] if 1 < len(sides) < 5)


class DecodeMachine(RuleBasedStateMachine):
    """Draft, verify, accept, reject, roll back, go to the next image, be interrupted."""

    parts: Parts = PARTS

    @initialize(case=cases(several_scales))
    def begin(self, case: Case) -> None:
        self.case = case.wide()
        self.earlier: list[tuple[DecodeState, Snapshot]] = []
        self._start(self.case.seed)

    def _start(self, seed: int) -> None:
        case = self.case
        request = replace(case.request, seed=seed)
        with torch.inference_mode():
            launcher = Launcher(case.models, case.B, self.parts.new_cache)
            self.state = DecodeState.begin(
                case.models, request, case.noise(request), launcher, self.parts.condition_rows, keep=False
            )
        self.tokens: list[list[int]] = [[] for _ in case.labels]  # the model: final tokens of every image
        self.images: list[int] = []  # the group of the open round; empty between rounds
        self.proposal: Proposal | None = None
        self.first = self.count = 0
        self.verified = False

    def _done(self, image: int) -> int:
        return next(k for k in range(self.case.pyramid.S + 1) if self.case.pyramid.begin(k) == len(self.tokens[image]))

    def _unfinished(self) -> list[int]:
        return [image for image in range(self.case.B) if self._done(image) < self.case.pyramid.S]

    def _group(self, which: int) -> list[int]:
        """Return an unfinished image and those that can share its passes."""
        some, sides = self._unfinished(), (self.state.draft, self.state.target)

        def place(image: int) -> tuple[int, ...]:
            return self._done(image), *(side.cache.lengths[image] for side in sides)

        chosen = some[which % len(some)]
        return [image for image in some if place(image) == place(chosen)]

    def _open(self, which: int, count: int) -> None:
        self.images = self._group(which)
        self.first = self._done(self.images[0])
        self.count = min(count, self.case.pyramid.S - self.first)

    def _window(self) -> Window:
        """Return the scales of the open round."""
        last = self.first + self.count - 1
        return Window(self.state.noise, self.case.pyramid, self.images, self.first, last, "target")

    def _close(self) -> None:
        """Give up the open round: both caches go back to the final scales."""
        for image in self.images:
            for side in (self.state.draft, self.state.target):
                side.cache.rollback(image, len(self.tokens[image]))
        self.images, self.proposal, self.verified = [], None, False

    def _tokens_BL(self) -> Tensor:
        """Return the model's tokens, zeros where there are none."""
        L = self.case.pyramid.L
        return torch.tensor([known + [0] * (L - len(known)) for known in self.tokens])

    def _run(self, name: str, tokens_BL: Tensor) -> Run:
        """Return one network's sequential run over tokens."""
        return run_over(getattr(self.case.models, name), self.case.models.vae, self.case, tokens_BL)

    @precondition(lambda self: not self.images and self._unfinished())
    @rule(which=st.integers(0, 2), count=st.integers(1, 4))
    def draft(self, which: int, count: int) -> None:
        self._open(which, count)
        with torch.inference_mode():
            draft_generate_batch(self.state, self.parts, COUPLED, self._window())
            self.proposal = drafted_proposal(self.state, self._window())

    @precondition(lambda self: self.proposal is not None and not self.verified)
    @rule()
    def verify(self) -> None:
        assert self.proposal is not None
        last = self.first + self.count - 1
        with torch.inference_mode():
            verified = forward_window(self.state, self.parts, self.state.target, self._window(), target_verify_batch)
        self.verified = True
        window = slice(self.case.pyramid.begin(self.first), self.case.pyramid.end(last))
        tokens_BL = self._tokens_BL()
        tokens_BL[self.images, window] = self.proposal.tokens_bn
        rows_R = [*self.images, *(self.case.B + image for image in self.images)]
        due_RnV = self._run("target", tokens_BL).rows_RLV[rows_R, window]
        require_same({"rows": verified.rows_RnV}, {"rows": due_RnV}, f"verify {self.first}..{last}", FLOAT64)

    @precondition(lambda self: self.verified)
    @rule(k=st.integers(1, 4))
    def accept(self, k: int) -> None:
        """Make the first k drafted scales final."""
        self._finish(min(k, self.count), corrected=False)

    @precondition(lambda self: self.verified)
    @rule(k=st.integers(0, 3))
    def reject(self, k: int) -> None:
        """Accept k drafted scales and correct every token of the next one."""
        self._finish(min(k, self.count - 1), corrected=True)

    def _finish(self, accepted: int, corrected: bool) -> None:
        assert self.proposal is not None
        pyramid, last = self.case.pyramid, self.first + self.count - 1
        tokens = split_logits_by_scale(self.proposal.tokens_bn, pyramid, self.first, last)
        if corrected:
            tokens[accepted] = (tokens[accepted] + 1) % self.case.V
        made = accepted + corrected
        with torch.inference_mode():
            self.parts.update_state_with_accepted_tokens(
                self.state, self.parts, self.images, self.first, tokens, [made] * len(self.images)
            )
        for row, image in enumerate(self.images):
            for idx_bl in tokens[:made]:
                self.tokens[image] += idx_bl[row].tolist()
        self.images, self.proposal, self.verified = [], None, False

    @precondition(lambda self: not self.images and any(self.tokens))
    @rule(which=st.integers(0, 2), scale=st.integers(0, 4), of_draft=st.booleans())
    def rollback(self, which: int, scale: int, of_draft: bool) -> None:
        """Forget some of one image's cache, which a later pass must fill again; beyond its length there is nothing."""
        image = which % self.case.B
        side = self.state.draft if of_draft else self.state.target
        side.cache.rollback(image, self.case.pyramid.begin(min(scale, self.case.pyramid.S)))

    @precondition(lambda self: not self.images and self._unfinished())
    @rule(which=st.integers(0, 2), count=st.integers(1, 4), readings=st.integers(0, 3))
    def exception_in_draft(self, which: int, count: int, readings: int) -> None:
        self._open(which, count)
        noise = self.state.noise
        self.state.noise = BrokenNoise(noise, readings)  # type: ignore[assignment]
        try:
            with torch.inference_mode():
                draft_generate_batch(self.state, self.parts, COUPLED, self._window())
        except Interrupted:
            pass
        self.state.noise = noise
        self._close()

    @precondition(lambda self: self.proposal is not None and not self.verified)
    @rule()
    def exception_in_verify(self) -> None:
        def interrupted(*arguments: object) -> Tensor:
            raise Interrupted

        try:
            with torch.inference_mode():
                parts = replace(self.parts, guide=interrupted)
                forward_window(self.state, parts, self.state.target, self._window(), target_verify_batch)
        except Interrupted:
            pass
        self._close()

    @precondition(lambda self: not self.images and any(self.tokens))
    @rule(seed=st.integers(0, 9))
    def next_image(self, seed: int) -> None:
        """Start another decode with the same networks; the state of this one must not change any more."""
        self.earlier = [(self.state, snapshot(self.state))]
        self._start(seed)

    @invariant()
    def the_state_is_that_of_a_sequential_run(self) -> None:
        taken = snapshot(self.state)
        require(taken.done == [self._done(image) for image in range(self.case.B)], f"done is {taken.done}")
        tokens_BL = self._tokens_BL()
        runs = {name: self._run(name, tokens_BL) for name in ("draft", "target")}
        if self.images:  # an open round may write behind the final scales, and nowhere else
            caches = {
                side: ([min(length, len(known)) for length, known in zip(lengths, self.tokens, strict=True)], kv)
                for side, (lengths, kv) in taken.caches.items()
            }
            taken = replace(taken, caches=caches)
        check_snapshot(taken, self.case, runs, tokens_BL, "state")

    @invariant()
    def earlier_decodes_stay_as_they_were(self) -> None:
        for state, taken in self.earlier:
            now = snapshot(state)
            require(now.done == taken.done, "an earlier decode changed")
            for name in ("tokens_BL", "raw_BLC", "f_hat_BCPP"):
                require_same({name: getattr(now, name)}, {name: getattr(taken, name)}, "an earlier decode")
            for side, (lengths, kv) in taken.caches.items():
                require(now.caches[side][0] == lengths, f"the {side} cache of an earlier decode changed")
                require_same({"kv": now.caches[side][1]}, {"kv": kv}, f"the {side} cache of an earlier decode")
