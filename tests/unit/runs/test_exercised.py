"""A verdict says what was asked of the decoder and what was not, wherever it is shown; nothing is passed over."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import InputError, ModelPair, Request, SeededNoise, Settings, Terms, Trace, Verdict, build_decoder, verify
from harness.errors import StopSignal
from harness.mutants.positions import OFFSET
from harness.protocol import ScaleGuidance, declined
from harness.report import LongWork, show_verification
from harness.report.html import run_page
from harness.report.html._run import Seen
from harness.runs import RunFileOptions, RunInterrupted, Verification, recorded_result
from harness.runs._exercised import ASPECTS, BY_SCALE, KINDS, Decode, Exercised
from harness.runs._records import LawsTried
from harness.verification import Question, answer_question
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3, 4, 5)))
HERE = Terms(in_process=True, laws=0)
ONE = Request((0,), 0)
BOUND = {aspect.word for aspect in ASPECTS if aspect.claim}


class Own:
    """The harness's own decoder, with what it declares."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, *declines: str) -> None:
        self.declines, self.inner = declines, build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        return self.inner.decode(request, noise)


class LockStep(Own):
    """Take all images of a batch through the rounds of the one that accepts least, by decoding each as often."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = super().decode(request, noise)
        slowest = max(range(request.B), key=lambda b: len(trace.rounds[b]))
        counts = {name: [getattr(trace, name)[slowest]] * request.B for name in ("target_calls", "target_rows")}
        return replace(trace, rounds=[trace.rounds[slowest]] * request.B, **counts)


def declining(*words: str) -> Callable[[ModelPair, Settings], Own]:
    return lambda models, settings: Own(models, settings, *words)


def refuses(holds: Callable[[Request], bool]) -> Callable[[ModelPair, Settings], Own]:
    class Refuses(Own):
        def decode(self, request: Request, noise: SeededNoise) -> Trace:
            if holds(request):
                raise InputError("request", "so", "is not taken", "pass another")
            return super().decode(request, noise)

    return Refuses


def told(result: Verification, width: int = 0, quiet: bool = True) -> str:
    log = io.StringIO()
    console = Console(file=log, width=width or 500, soft_wrap=not width, markup=False, highlight=False)
    show_verification(result, console, quiet)
    return log.getvalue()


def covered(factory: Any, models: ModelPair = MODELS) -> Verification:
    return answer_question(models, Question(factory, (Settings(1),), (), HERE, cover=True))


def everywhere(result: Verification) -> list[str]:
    return [told(result, 10**4), str(result), result._repr_html_(), run_page(result, Seen()).decode(), result.to_json()]


GRIDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # what is asked, and the aspect that it exercises
    "top-k alone": ({}, {"top_k": 3}, "requests without a filter"),
    "top-p alone": ({}, {"top_p": 0.8}, "requests without a filter"),
    "top-k and top-p together": ({}, {"top_k": 3, "top_p": 0.8}, "requests without a filter"),
    "guidance off": ({}, {"cfg": 0.0}, "other guidance values"),
    "noise by batch": ({}, {"order": "batch"}, "noise by image"),
    "several images a batch": ({}, {"labels": (0, 1)}, "an image alone"),
}


@pytest.mark.parametrize("word", GRIDS)
def test_what_one_request_asks_is_said_and_all_else_is_missing(word: str):
    settings, request, missing = GRIDS[word]
    result = verify(MODELS, build_decoder, Settings(2, **settings), replace(ONE, **request), terms=HERE)
    exercised = result.exercised
    assert word in exercised.asked
    assert missing in exercised.missing
    assert result.verdict is Verdict.IDENTICAL  # a grid proves what it asks
    every = [*exercised.asked, *exercised.missing, *exercised.not_done]
    assert sorted(every) == sorted({aspect.word for aspect in ASPECTS} | set(KINDS))  # each once
    for shown in everywhere(result):
        for each in exercised.missing:
            assert each in shown, each


def test_of_a_long_list_a_line_in_a_log_names_the_first_and_counts_the_others():
    result = verify(MODELS, build_decoder, Settings(2), ONE, terms=HERE)
    missing = list(result.exercised.missing)
    line = told(result)
    first = ["images that diverge", "one decoder for several requests", "laws", "filters", "several draft lengths"]
    first.append("a rule of draft lengths")
    filters = [word for word in missing if word in ("top-k alone", "top-p alone", "top-k and top-p together", BY_SCALE)]
    more = len(missing) - len(filters) + 1 - len(first)
    assert f"; not exercised: {', '.join(first)} and {more} more (--cover asks them; --json has all)" in line
    assert not any(word in line for word in missing if word not in first)
    assert "; not exercised: drafts, batches, laws, filters, bonus, " in " ".join(told(result, 100).split())
    asked = replace(result.exercised, missing={word: "" for word in missing if word != "top-p alone"})
    assert ", laws, top-k alone, top-k and top-p together, filters by scale and " in asked.first_of(6)
    few = Exercised(missing={"laws": "--laws 2"}, not_done=dict.fromkeys(missing[:7], "refused"))
    said = few.first_of(6, few.hint(False))
    assert said.startswith("not exercised: laws (--laws 2); refused: top-k alone, top-p alone, ")
    joined = {"top-k and top-p together", BY_SCALE}  # without top-k or top-p they go without saying
    assert [word for word in missing[:7] if word not in said] == [word for word in missing[:7] if word in joined] != []
    assert few.first_of(6).startswith("not exercised: laws; refused: ")


def test_where_the_next_line_says_how_to_ask_the_verdict_does_not():
    result = verify(MODELS, build_decoder, Settings(2), ONE, terms=HERE)
    assert result.record is not None
    assert "--cover asks them" in told(result, 100, quiet=False)  # no command line made the run: no next line
    result.covers = True  # it has asked what it can
    assert "--cover asks them" not in told(result, 100, quiet=False)
    result.covers = False
    result.record = replace(result.record, recipe={}, command=("verify",))
    for width in (0, 100):
        said = told(result, width, quiet=False)
        assert "next: ask what was not exercised: sdvar-harness verify" in said
        assert "--cover asks them" not in said
        assert "--cover asks them" in told(result, width)  # nothing but the verdict


def omits(result: Verification) -> bool:
    """Tell whether some place that shows a verdict leaves out a claim that nothing exercised."""
    return any(word not in shown for shown in everywhere(result) for word in result.exercised.missing)


@pytest.mark.parametrize("word", ["top-k alone", "images that diverge", "more_smooth"])
def test_planted_a_verdict_that_omits_an_unexercised_claim_is_seen(word: str, monkeypatch: pytest.MonkeyPatch):
    result = verify(MODELS, build_decoder, Settings(2), ONE, terms=HERE)
    assert word in result.exercised.missing
    assert not omits(result)
    clause = Exercised.clause.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Exercised, "clause", property(lambda record: clause(record).replace(f"{word}, ", "")))
    assert omits(result)


def test_a_run_that_kept_nothing_has_no_table_of_zeros():
    result = verify(MODELS, build_decoder, Settings(2), ONE, terms=HERE)
    result.settings[0].rows.clear()
    result.stopped, result.tried = 2, 3
    lines = told(result, quiet=False).splitlines()
    assert lines[0].startswith("interrupted: 0 of 1 image judged; 3 were decoded, and a request is kept once all its")
    assert [lines[1], len(lines)] == ["INCONCLUSIVE nothing was judged", 2]


def test_an_interrupted_run_names_the_first_defect_of_a_request_that_is_not_finished():
    def stops() -> None:
        raise StopSignal(2)

    question = Question(OFFSET, (Settings(1), Settings(2)), (ONE,), HERE)
    with pytest.raises(RunInterrupted) as stopped:
        answer_question(MODELS, question, watch=partial(LongWork, quiet=True, told=stops))
    result = stopped.value.result
    assert (result.images, result.tried) == (0, 1)
    line = told(result, quiet=False).splitlines()[0]
    assert "; their first defect: component positions (" in line
    result.met = None
    assert "first defect" not in told(result, quiet=False)


def test_several_requests_and_settings_ask_what_they_differ_in():
    requests = [ONE, replace(ONE, labels=(0, 1), cfg=4.0), replace(ONE, top_k=2, cfg=0.0)]
    result = verify(MODELS, build_decoder, [Settings(1), Settings("dynamic:1:3", True)], requests, terms=HERE)
    wanted = {"other guidance values", "guidance off", "several draft lengths", "a rule of draft lengths",
              "several images a batch", "an image alone", "one decoder for several requests",
              "requests without a filter", "top-k alone"}  # fmt: skip
    assert wanted <= set(result.exercised.asked)
    assert result.exercised.missing["top-p alone"] == "--top-p 0.9"


@pytest.mark.parametrize(("labels", "cfg", "is_said"), [((3, 3), 1.5, True), ((2, 3), 1.5, False), ((3,), 0.0, False)])
def test_a_run_of_the_unconditional_label_alone_says_that_guidance_changes_nothing(labels, cfg: float, is_said: bool):
    result = verify(MODELS, build_decoder, Settings(1), replace(ONE, labels=labels, cfg=cfg), terms=HERE)
    said = {"label 3 alone, the unconditional one: guidance changes nothing": 1}
    assert result.remarks == (said if is_said else {})
    others = [replace(ONE, labels=labels, cfg=cfg), replace(ONE, labels=(0,), cfg=1.5)]
    assert verify(MODELS, build_decoder, Settings(1), others, terms=HERE).remarks == {}


def test_what_a_decoder_refuses_is_no_run_of_the_unconditional_label():
    requests = [replace(ONE, labels=(3,), cfg=1.5), replace(ONE, labels=(0,), cfg=0.0)]
    result = verify(
        MODELS,
        refuses(lambda request: request.labels == (3,)),
        Settings(1),
        requests,
        terms=replace(HERE, refusals=True),
    )
    assert (result.exercised.refused, result.remarks) == (1, {})


def test_the_default_question_reaches_all_but_what_is_no_decode(tmp_path: Path):
    terms = Terms(in_process=True, laws=0)
    question = Question(build_decoder, (Settings(1),), (), terms, cover=True)
    result = answer_question(MODELS, question, store=RunFileOptions(tmp_path / "run.db"))
    assert set(result.exercised.missing) - BOUND == {*KINDS}
    assert result.exercised.not_done == {"more_smooth": "refused"}
    again = recorded_result(tmp_path / "run.db")
    assert again.exercised == result.exercised
    document = json.loads(result.to_json())["exercised"]
    assert document["missing"] == result.exercised.missing
    assert document["asked"] == list(result.exercised.asked)


def test_python_is_told_of_python():
    result = verify(MODELS, build_decoder, Settings(2), ONE, terms=HERE)
    assert "(verify without settings and requests asks most)" in str(result)
    whole = covered(build_decoder)
    whole.laws = LawsTried(2, held=1, networks=("bfloat16", "shared AdaLN"))
    for each in (result, whole):
        assert "--" not in str(each)
    assert "asks most" not in str(whole)
    assert Exercised(missing={"more_smooth": ""}).clause == "not exercised: more_smooth"


@pytest.mark.parametrize("wrong", [False, True])
def test_verdict_and_what_was_not_exercised_take_three_lines(wrong: bool):
    def flipped(models: ModelPair, settings: Settings) -> Any:
        class Flipped(Own):
            def decode(self, request: Request, noise: SeededNoise) -> Trace:
                trace = super().decode(request, noise)
                return replace(trace, tokens_BL=(trace.tokens_BL + 1) % 11) if wrong else trace

        return Flipped(models, settings)

    result = verify(MODELS, flipped, Settings(2), ONE, terms=HERE)
    lines = told(result, width=80).splitlines()
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"{'DEFECT' if wrong else 'IDENTICAL'} contract token-identical: ")
    text = " ".join(line.strip() for line in lines)
    for family in {aspect.family for aspect in ASPECTS} | {"laws"}:
        assert family in text, text


def test_filters_by_scale_are_filters_and_guidance_by_scale_is_guidance():
    off = ScaleGuidance((1.0, 1.0))
    by_scale = Request((0,), 0, filters=((4, 0.0), (0, 0.9)), scale_guidance=off)
    asked = {each.word for each in ASPECTS if each.family in ("filters", "guidance") and each.test([decode(by_scale)])}
    assert asked == {"top-k alone", "top-p alone", "filters by scale", "guidance off"}
    for word in ("top_k", "top_p"):
        assert declined([word], Settings(), by_scale) == word
    assert not declined(["guidance"], Settings(), by_scale)
    assert declined(["guidance"], Settings(), replace(by_scale, cfg=0.0, scale_guidance=ScaleGuidance((1.0, 2.0))))


def decode(request: Request) -> Decode:
    return Decode(Settings(), request)
