"""Each law that stands before a recording sees the sampler that it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.golden import guard
from harness.golden.guard import failing_laws
from harness.protocol.trace import Trace
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))


def other(tokens_BL: Tensor) -> Tensor:
    return (tokens_BL + 1) % 11


def test_right_samplers_agree_with_each_other():
    assert failing_laws(MODELS) == []


def test_a_sampler_without_cache_that_draws_others_fails_one_law(monkeypatch: pytest.MonkeyPatch):
    whole = guard.cachefree.sample
    monkeypatch.setattr(guard.cachefree, "sample", lambda *a: other(whole(*a)))
    assert failing_laws(MODELS) == ["decoding with a cache = decoding without one"]


@pytest.mark.parametrize(("mode", "mask"), [("corrected", 3), ("recorded", 0)])
def test_a_hand_off_that_draws_others_fails_the_laws_of_its_mode_and_mask(
    mode: str, mask: int, monkeypatch: pytest.MonkeyPatch
):
    whole = guard.handoff.sample

    def bent(*arguments: Any) -> Trace:
        run = whole(*arguments)
        hit = (arguments[-1].mode, arguments[-1].sd_mask) == (mode, mask)
        return replace(run, tokens_BL=other(run.tokens_BL)) if hit else run

    monkeypatch.setattr(guard.handoff, "sample", bent)
    assert failing_laws(MODELS) == [f"hand-off at entry 0 ({mode}, mask {mask}) = sequential decoding"]


@pytest.mark.parametrize("draft_len", [1, 2, 3])
def test_a_speculative_decoder_that_draws_others_fails_at_its_draft_length(
    draft_len: int, monkeypatch: pytest.MonkeyPatch
):
    whole = guard.run

    def bent(decoder: Any, *arguments: Any) -> Any:
        decoded = whole(decoder, *arguments)
        if decoder.options.draft_len == draft_len:
            decoded.f_hat_BCPP = torch.zeros_like(decoded.f_hat_BCPP)
        return decoded

    monkeypatch.setattr(guard, "run", bent)
    found = failing_laws(MODELS)
    assert len(found) == 1
    assert found[0].startswith(f"speculative decoding, draft_len={draft_len} = sequential decoding (")
