"""Scripted drafts: the rounds are those of the script, for a decoder that has never heard of it."""

from __future__ import annotations

import pytest

from harness.laws import Case, NotOffered, Subject
from harness.laws._oracle import Ranked, Scripted, decode_drafted
from harness.models._pair import ModelPair
from harness.models.var.transformer import Transformer
from harness.protocol._decoder import Settings
from harness.speculative.sampler import build_decoder
from tests.naive import naive

CASE = Case((1, 2, 3, 4), V=8, labels=(0, 1), draft_len=2, draft="identical")
SCRIPT = ((0, 1), (1, 0), (1, 3))


@pytest.mark.parametrize("policy", ["coupled", "rejection", "greedy"])
@pytest.mark.parametrize("seed", range(3))
def test_the_draft_is_wrong_where_the_script_says_and_nowhere_else(policy: str, seed: int):
    case = Case((1, 2, 3, 4), V=8, labels=(0, 1), draft_len=2, policy=policy, seed=seed)
    decoded = decode_drafted(Subject(build_decoder), case, Scripted.of(case, SCRIPT))
    seen = [[(turn.first, turn.drafted, turn.accepted) for turn in turns] for turns in decoded.rounds]
    assert seen == [[(0, 2, 1), (2, 2, 2)], [(0, 2, 0), (1, 2, 2), (3, 1, 0)]]


def test_the_script_is_about_the_draft_alone():
    """A decoder that recomputes every prefix meets the same script, and gives the same tokens."""
    draft = Scripted.of(CASE, SCRIPT)
    tokens = [decode_drafted(Subject(factory), CASE, draft).tokens_BL for factory in (build_decoder, naive)]
    assert tokens[0].equal(tokens[1])
    assert tokens[0].equal(Subject(build_decoder).decode(CASE).tokens_BL)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_ranked_draft_proposes_the_targets_token_of_that_rank(rank: int):
    case = Case((1, 2, 3), V=8, cfg=0.0, draft_len=1, policy=f"topk-match:{rank}:1")
    draft = Ranked(case.models.target, rank)
    for k, accepted in ((rank, True), (rank - 1, False)):
        if k:
            tried = Case((1, 2, 3), V=8, cfg=0.0, draft_len=1, policy=f"topk-match:{k}:1")
            turns = decode_drafted(Subject(build_decoder), tried, draft).rounds[0]
            assert {turn.accepted == 1 for turn in turns} == {accepted}


def test_a_decoder_that_takes_no_draft_of_another_class_is_not_asked():
    def strict(models: ModelPair, settings: Settings):
        if not isinstance(models.draft, Transformer):
            raise TypeError("a Transformer, please")
        return build_decoder(models, settings)

    with pytest.raises(NotOffered, match=r"no draft of another class: .*a Transformer, please"):
        decode_drafted(Subject(strict), CASE, Scripted.of(CASE, SCRIPT))
