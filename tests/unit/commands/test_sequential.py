"""A decoder that drafts nothing is asked one draft length, unless several are asked for; and shares say what of."""

from __future__ import annotations

import re

import pytest

from harness.commands.verify import VerifyDecoding, VerifyJudging, other_for, settings_tested
from harness.decoders import Terms
from harness.protocol import Settings
from harness.verification import LENGTHS, Question, usual_settings
from tests.helpers import Layout, command, tiny

MINE, OPTIONS = "mine:factory", (("ratio", "2"),)


@pytest.mark.parametrize("sequential", [True, False])
def test_without_a_draft_length_a_sequential_decoder_is_asked_one(sequential: bool):
    asked = LENGTHS[:1] if sequential else LENGTHS
    settings = settings_tested(VerifyDecoding(), MINE, OPTIONS, sequential)
    assert [(each.draft_len, each.policy, each.options) for each in settings] == [
        (n, "coupled", OPTIONS) for n in asked
    ]
    judging = VerifyJudging(against="other:factory", sequential=sequential)
    other = other_for(judging, MINE, settings, VerifyDecoding())
    assert other is not None
    assert [each.draft_len for each in other.settings] == list(asked)
    assert len(usual_settings(MINE, Settings(1), 10, sequential)) == len(asked)
    several = settings_tested(VerifyDecoding(draft_len="2,3"), MINE, (), sequential)
    assert [each.draft_len for each in several] == [2, 3]  # as it is asked
    published = settings_tested(VerifyDecoding(), "published:code", (), sequential)
    assert [each.option("refiner") for each in published] == ["target", "draft"]


def test_a_design_asks_a_sequential_decoder_every_request_once():
    models, settings = tiny(Layout((1, 2, 3))), (Settings(1, options=OPTIONS),)
    alone, drafting = (
        Question(MINE, settings, (), Terms(sequential=sequential), cover=True).decodes(models).plan
        for sequential in (True, False)
    )
    assert alone.settings == settings
    assert [task.request for task in alone.tasks] == [task.request for task in drafting.tasks]
    assert alone.decodes == len(alone.tasks)
    assert len(drafting.settings) > len(set(drafting.drafts)) == 2


def test_the_share_of_tokens_that_differ_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch, capsys):
    words = ("verify", "--seeds", "0", "--labels", "0", "--draft-len", "2", "--policy", "match:0.5")
    assert command(monkeypatch, *words) == 0
    said = (
        r"draft_len=2: of all tokens of an image \d+\.\d% are others than in sequential decoding of the same seed, mean"
    )
    assert re.search(said, capsys.readouterr().out)
