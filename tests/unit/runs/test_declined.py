"""What a decoder declares not to do, refuses or never shows is not asked, is counted apart, and is said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from harness import InputError, ModelPair, Request, SeededNoise, Settings, Trace, Verdict, build_decoder, verify
from harness.protocol import DECLINES
from harness.report.html._story import first_parts
from harness.runs import _exercised as module
from harness.runs._exercised import TOGETHER, Decode, why_untested
from tests.unit.runs.test_exercised import HERE, MODELS, ONE, LockStep, Own, covered, declining, refuses, told


def test_what_a_decoder_declares_is_not_asked_counted_apart_and_costs_nothing():
    base = covered(build_decoder)
    result = covered(declining("bonus", "top_p"))
    assert (result.verdict, result.inconclusive) == (
        base.verdict,
        [why for why in base.inconclusive if "bonus" not in why],
    )
    assert result.exercised.not_done == {
        "top-p alone": "declared", "top-k and top-p together": "declared", "bonus scales": "declared",
        "bonus scales where images part": "declared", "filters by scale": "declared",
    }  # fmt: skip
    assert result.exercised.declared == 2 * len(result.settings)
    assert result.exercised.refused == 0
    assert "; declined by the decoder: top-p alone, bonus scales\n" in told(result)  # and nothing that nobody declared
    assert not any(setting.settings.bonus for setting in result.settings)
    assert any(isinstance(setting.settings.draft_len, str) for setting in result.settings)


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (declining("top_k", "top_p"), "no filter was exercised"),
        (declining("guidance"), "no guidance was exercised"),
        (refuses(lambda request: any(k or p for k, p in request.every_filter)), "no filter was exercised"),
        (refuses(lambda request: request.cfg != 0), "no guidance was exercised"),
        (declining("several images"), "declined (several images)"),
    ],
)
def test_who_declines_or_refuses_too_much_is_inconclusive(factory: Any, why: str):
    result = covered(factory)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert any(why in reason for reason in result.inconclusive), result.inconclusive


def test_beside_a_defect_or_a_stop_nobody_is_told_what_was_refused():
    class Mostly(Own):
        def decode(self, request: Request, noise: SeededNoise) -> Trace:
            if request.cfg != 4:
                raise InputError("cfg", request.cfg, "is refused", "pass 4")
            trace = super().decode(request, noise)
            return replace(trace, tokens_BL=(trace.tokens_BL + 1) % MODELS.target.config.V)

    result = covered(Mostly)
    assert result.verdict is Verdict.DEFECT
    assert "were not made" in json.loads(result.to_json())["inconclusive"][0]  # what is so stays in the file
    assert "were not made" not in told(result, quiet=False) + result._repr_html_()
    assert "were not made" not in repr(first_parts(result))
    result = covered(refuses(lambda request: request.cfg != 0))
    assert "inconclusive: " in told(result, quiet=False)
    assert "were not made" in repr(first_parts(result))
    result.reasons, result.stopped = [], 2
    result.take_design(0)
    assert result.reasons == ["it ended before all was exercised"]


def test_more_than_half_is_more_than_half():
    def decodes(refused: int, declared: int, done: int) -> list[Decode]:
        kinds = [(True, "")] * refused + [(False, "bonus")] * declared + [(False, "")] * done
        return [Decode(Settings(1), ONE, *kind) for kind in kinds]

    assert why_untested(decodes(3, 2, 5)) == []
    assert why_untested(decodes(3, 3, 5)) == ["6 of 11 decodes were not made: 3 refused, 3 declined (bonus)"]
    assert why_untested(decodes(3, 2, 5), unasked=1) == ["6 of 11 decodes were not made: 4 refused, 2 declined (bonus)"]


def test_a_word_that_nobody_may_declare_is_bad_input():
    for declines in ("bonus",), ["bonus", "top_k"]:
        assert set(declines) <= set(DECLINES)
    with pytest.raises(
        InputError, match=r"built a decoder that declines .*all.*, not a tuple of 'bonus', 'draft rules'"
    ):
        verify(MODELS, declining("all"), Settings(2), ONE, terms=HERE)


def test_what_is_asked_of_a_decoder_that_declines_it_is_bad_input():
    with pytest.raises(InputError, match="bonus=True: is asked of a decoder that declares that it does not do it"):
        verify(MODELS, declining("bonus"), Settings(2, True), ONE, terms=HERE)
    with pytest.raises(InputError, match="declines=top_k: is asked of a decoder that declares that it does not do it"):
        verify(MODELS, declining("top_k"), Settings(2), replace(ONE, top_k=2), terms=HERE)


def test_images_that_never_part_are_seen_and_cost_nothing():
    result = covered(LockStep)
    assert not any("different numbers" in why or "diverges" in why for why in result.inconclusive)
    parting = ("images that diverge", "bonus scales where images part")
    assert {word: why for word, why in result.exercised.not_done.items() if word in parting} == dict.fromkeys(
        parting, TOGETHER
    )
    assert f"{TOGETHER}: images that diverge\n" in told(result)


def test_few_batches_that_never_part_prove_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOCK_STEP", 10**6)
    result = covered(LockStep)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "never exercised: images of one batch that accept different numbers of scales" in result.inconclusive


class ReadsLittle:
    """A right decoder that knows neither filters by scale nor soft codes, and says nothing of it."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        return self.inner.decode(replace(request, filters=(), more_smooth=False), noise)


def test_what_many_right_decoders_do_not_read_is_not_asked_of_them_and_is_said():
    result = covered(ReadsLittle)
    assert result.verdict is covered(build_decoder).verdict
    assert {"filters by scale", "more_smooth"} <= set(result.exercised.missing)
    assert not {"filters by scale", "more_smooth"} & set(result.exercised.not_done)
