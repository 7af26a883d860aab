"""What goes through the certifying network: each image as far as its last differing token, and no further."""

from __future__ import annotations

import pytest
import torch

from harness.judge import _tokens as tokens
from harness.judge._tokens import _by_last_scale, _raced
from tests.helpers import Layout, tiny
from tests.unit.judge.test_tokens import MODELS, evidence

PLACES = torch.tensor([[1, 0], [0, 2], [0, 13], [1, 4]])  # of scales 0, 1, 2 and 1: the sides are 1, 2 and 3


def test_images_go_by_their_last_differing_scale():
    found = [(last, rows.tolist()) for last, rows in _by_last_scale(MODELS.pyramid, PLACES)]
    assert found == [(1, [1]), (2, [0])]


def test_no_later_scale_is_computed_and_the_answers_are_those_of_whole_passes(monkeypatch: pytest.MonkeyPatch):
    found, asked, real = evidence(), [], tokens.teacher_forced

    def watched(network, vae, cfg, labels_B, tokens_BL, scales):
        asked.append((len(tokens_BL), scales))
        return real(network, vae, cfg, labels_B, tokens_BL, scales)

    def whole(network, vae, cfg, labels_B, tokens_BL, scales):
        return real(network, vae, cfg, labels_B, tokens_BL, MODELS.pyramid.S)

    monkeypatch.setattr(tokens, "teacher_forced", watched)
    made = {(one.row, one.token.position): one for one in _raced(found, PLACES)}
    assert asked == [(1, 2), (1, 3)]
    monkeypatch.setattr(tokens, "teacher_forced", whole)
    expected = {(one.row, one.token.position): one for one in _raced(found, PLACES)}
    assert made.keys() == expected.keys() == {tuple(place) for place in PLACES.tolist()}
    for place, one in made.items():
        assert one.token.actual == expected[place].token.actual
        assert one.is_tie == expected[place].is_tie
        assert one.token.margin == pytest.approx(
            expected[place].token.margin, rel=1e-9, abs=1e-9
        )  # float64 of another shape


def test_one_image_alone_is_one_pass():
    models = tiny(Layout((1, 2)))
    assert [(k, r.tolist()) for k, r in _by_last_scale(models.pyramid, torch.tensor([[3, 0], [3, 0]]))] == [(0, [3])]
