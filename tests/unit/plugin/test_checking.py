"""Single checks and decodes, in this process: what passes, what is a defect, and what proves nothing."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import pytest

from harness import InputError, ModelPair, Request, Settings, build_decoder
from harness.judge._line import CodeLine
from harness.laws import LAWS as EVERY
from harness.laws import Subject, Violation
from harness.plugin._checking import (
    SEEN,
    DefectFound,
    KnownNotApplicable,
    Unproven,
    cases_of,
    check_digits,
    check_law,
    judged,
    reference,
)
from harness.plugin._digits import design, pair
from harness.plugin._options import PluginOptions
from harness.protocol._decoder import Contract
from harness.reference.sequential import sample_sequential
from harness.runs._result import Verification
from tests.helpers import laws_of

LAWS = laws_of("positions")
QUERY = next(law for law in LAWS if law.id == "positions.query")
REQUEST = Request((3,), seed=1)


def asked(name: str = "harness:build_decoder", known: dict[str, str] | None = None, **more: object) -> PluginOptions:
    options = {
        "implementation": name, "known_failures": "", "report": "", "examples": 2, "seed": 0, "shrink_seconds": 0.0,
        "patch_nums": ["1,2"], "dtype": "", "device": "cpu", "checkout": "", "option": [], "stub": [], "cover": False,
        "sequential": False, **more,
    }  # fmt: skip
    return replace(
        PluginOptions.read(Namespace(**{f"sdvar_{key}": value for key, value in options.items()})), known=known or {}
    )


def test_a_case_on_digits_passes_for_the_harness_itself():
    of, stash = asked(), pytest.Stash()
    case = next(case for case in cases_of(of) if case.name == "digits[close-5]")
    check_digits(case, of, stash)
    seen = stash[SEEN]
    assert (seen.verdict, seen.examples, seen.state) == ("IDENTICAL", 5, "held")


def test_the_whole_design_is_asked_for_by_cover():
    assert [case.name for case in cases_of(asked(cover=True))] == list(design())
    assert len(cases_of(asked())) == 4


def test_published_code_is_put_to_its_own_settings():
    of = asked("published:code", checkout="somewhere", option=["steps=3"])
    cases = cases_of(of)
    assert [case.name for case in cases] == ["digits[code]", "digits[code-1]"]
    assert all(dict(case.settings.options)["steps"] == "3" for case in cases)
    assert all(dict(case.settings.options)["checkout"].endswith("/somewhere") for case in cases)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"examples": 0}, "examples=0: must be 1 or more"),
        ({"report": "."}, "sdvar-report=.: is a folder"),
        ({"dtype": "float3"}, "dtype=float3: must be one of"),
        ({"known_failures": "nowhere.toml"}, "sdvar-known-failures=nowhere.toml: no such file"),
    ],
)
def test_bad_input_is_one_line(more: dict[str, object], said: str):
    with pytest.raises(InputError) as caught:
        asked(**more)
    assert said in str(caught.value)


def test_a_law_that_is_always_refused_is_unproven():
    def picky(models: ModelPair, settings: Settings):
        raise InputError("draft_len", settings.draft_len, "is never right", "pass another")

    of = asked()
    trace = next(law for law in LAWS if law.id == "positions.trace")
    with pytest.raises(Unproven, match="cases refused, 0 decoded; the last refusal: draft_len"):
        check_law(trace, Picky(of, picky), pytest.Stash())


@pytest.mark.parametrize("text", ["steps", "=3", "a b=3"])
def test_an_option_of_another_form_is_refused(text: str):
    with pytest.raises(InputError, match="must read NAME=VALUE"):
        asked(option=[text])


def test_a_law_that_does_not_apply_is_skipped_and_one_known_to_fail_must_be_struck():
    of = asked("tests.naive:naive")
    with pytest.raises(
        pytest.skip.Exception, match="does not apply: the decoder has no `parts`, the functions that this law calls"
    ):
        check_law(QUERY, of, pytest.Stash())
    with pytest.raises(KnownNotApplicable, match=r"is known to fail .why.*strike it"):
        check_law(QUERY, replace(of, known={"positions.query": "why"}), pytest.Stash())


def test_a_law_that_was_never_exercised_is_unproven():
    trace = next(law for law in LAWS if law.id == "positions.trace")
    of, stash = asked(patch_nums=["1"]), pytest.Stash()
    with pytest.raises(Unproven, match="every one was trivial"):
        check_law(trace, of, stash)
    assert stash[SEEN].state == "unproven"
    assert replace(stash[SEEN], known="why").state == "known"


def test_what_is_known_to_fail_is_not_shrunk():
    of = asked("harness.mutants.positions:OFFSET", known={"positions.query": "why"}, shrink_seconds=60.0)
    assert of.scope_of(QUERY).shrink_s == 0
    stash = pytest.Stash()
    with pytest.raises(Violation):
        check_law(QUERY, of, stash)
    assert stash[SEEN].state == "known"


def test_a_costly_law_tries_a_share():
    costly = next(law for law in EVERY if law.id == "reuse.alternating")
    assert asked(examples=40).scope_of(costly).examples == 8
    assert asked(examples=2).scope_of(costly).examples == 2


def test_one_decode_is_judged_as_verify_would():
    models = pair()
    assert judged(models, build_decoder(models, Settings(2)), REQUEST).identical == 680
    assert judged(models, reference(models, REQUEST), REQUEST, drafts=False).identical == 680
    with pytest.raises(Unproven, match="nothing was drafted"):
        judged(models, reference(models, REQUEST), REQUEST)


def test_a_defect_of_one_decode_names_its_component():
    from harness.mutants.positions import OFFSET

    models = pair()
    with pytest.raises(DefectFound, match="component positions"):
        judged(models, OFFSET(models, Settings(5)), REQUEST)
    trace = reference(models, REQUEST)
    trace.tokens_BL = trace.tokens_BL.roll(1, 1)
    with pytest.raises(DefectFound, match="more"):
        judged(models, trace, REQUEST, drafts=False)


def test_the_line_of_a_defect_on_digits_is_said(monkeypatch: pytest.MonkeyPatch):
    searched, of, stash = list[object](), asked("harness.mutants.positions:OFFSET"), pytest.Stash()

    def found(result: Verification, models: ModelPair, asked: bool | None = None) -> None:
        searched.extend((result.verdict.value, models.pyramid == pair().pyramid, asked))
        result.line = CodeLine("/x/mine.py", 3, "inputs", "x = 1", "add", "the input of scale 1 by 2")

    monkeypatch.setattr("harness.plugin._checking.take_line", found)
    case = next(case for case in cases_of(of) if case.name == "digits[close-5]")
    with pytest.raises(DefectFound, match=r"mine\.py:3, in inputs: x = 1"):
        check_digits(case, of, stash)
    assert searched == ["DEFECT", True, None]  # by the rule of a run that does not ask
    assert "; line: mine.py:3, in inputs: x = 1 (add; wrong: the input of scale 1 by 2)" in stash[SEEN].finding


class Picky:
    """What was asked for, of another decoder."""

    def __init__(self, of: PluginOptions, factory) -> None:
        self.known, self.scope_of, self.subject = of.known, of.scope_of, Subject(factory)


class Writer:
    """A decoder that writes into the networks."""

    contract = Contract.TOKENS.value

    def __init__(self, models: ModelPair) -> None:
        self.models = models

    def decode(self, request, noise):
        self.models.draft.weights["head.bias"] += 1
        return reference(self.models, request)


def test_a_decoder_that_writes_into_the_pair_is_told():
    weights = pair().draft.weights
    own = replace(pair(), draft=replace(pair().draft, weights={k: v.clone() for k, v in weights.items()}))
    with pytest.raises(DefectFound, match=r"wrote into draft\.head\.bias"):
        judged(own, Writer(own), REQUEST, drafts=False)


def test_tokens_that_do_not_follow_the_claimed_law_are_told():
    models, request = pair(), Request((0, 1, 2, 3), 5)
    other = sample_sequential(models.target, models.vae, replace(request, cfg=0.0), models.noise(request)).tokens_BL
    trace = sample_sequential(models.target, models.vae, request, models.noise(request), other)
    with pytest.raises(DefectFound, match="component law"):
        judged(models, replace(trace, tokens_BL=other), request, "B", drafts=False)
    assert judged(models, reference(models, request), request, "B", drafts=False).verdict.value == "CONSISTENT"


def test_a_claim_weaker_than_demanded_is_refused():
    models = pair()
    decoder = build_decoder(models, Settings(2, policy="match:0.5"))
    with pytest.raises(InputError, match="the decoder claims quality-preserving"):
        judged(models, decoder, REQUEST, "A")
    assert judged(models, decoder, REQUEST).verdict.value == "CONSISTENT"
