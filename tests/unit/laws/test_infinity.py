"""The laws on networks of Infinity: the right decoder keeps them, planted bugs break the one that is about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.laws import LAWS, Case, CaseList, Law, Subject, run_conformance, try_law
from harness.laws import _conformance as few
from harness.laws._conformance import LawsPlace, try_laws_quickly
from harness.speculative.sampler import build_decoder
from tests.helpers import decoder_factory
from tests.unit.judge.test_infinity import BUGS

SOME: dict[str, Any] = {"family": "infinity", "patch_nums": (1, 3, 5, 4)}
LISTED = [
    Case(labels=(0, 1, 3), draft_len=2, bonus=True, **SOME),  # guided at the logits
    Case(labels=(1, 2), weights=2, draft_len=3, policy="rejection", cfg=0.5, seed=1, **SOME),  # there and between
    # between blocks alone, of negative texts; four bits more a channel
    Case(labels=(2,), weights=1, depth=2, draft_len=2, top_p=0.9, order="batch", seed=2, **SOME),
]
OF_VAR = {"reuse.labels", "numbers.transformer", "numbers.encode", "numbers.pixels", "numbers.precision"}
LONG = {"acceptance.exact", "acceptance.real", "acceptance.distribution", "rules.oracle", "reuse.alternating"}
BY_ID = {law.id: law for law in LAWS}


@pytest.mark.parametrize(
    "law", [pytest.param(law, marks=[pytest.mark.slow] * (law.id in LONG), id=law.id) for law in LAWS]
)
def test_a_law_holds(law: Law):
    row = try_law(law, Subject(build_decoder), CaseList(LISTED))
    assert row.violation is None, str(row.violation)
    assert row.verdict is (None if law.id in OF_VAR else Verdict.IDENTICAL), row


def test_cases_are_of_every_kind_that_the_family_has():
    pairs = [case.models for case in LISTED]
    assert {pair.target.config.patch for pair in pairs} == {1, 2}
    assert {case.request.scale_guidance.places for case in LISTED} == {(0,), (0, -1), (-1,)}
    assert {bool(case.request.negative_texts) for case in LISTED} == {True, False}
    assert all(1.0 in case.request.scale_guidance.weights for case in LISTED)
    assert all(h != w for h, w in LISTED[0].pyramid.sides[1:])
    assert all(pair.target.config.rounds for pair in pairs)
    assert Case(family="infinity", V=13, top_k=3) == Case(family="infinity", V=2, top_k=2)


# bug -> the law that it breaks, and what that points to
CAUGHT = {
    "angles from the window's first position": ("positions.query", "positions"),
    "rows and columns exchanged": ("positions.query", "positions"),
    "positions of rule 0": ("positions.query", "positions"),
    "full sides of the last scale": ("positions.query", "positions"),
    "level of a window's first scale": ("positions.query", ""),
    "another text": ("positions.trace", ""),
    "unconditional rows of the own text": ("positions.trace", ""),
    "unconditional rows of all lengths": ("positions.trace", ""),
    "guidance between blocks, too": ("positions.trace", ""),
    "temperature left out": ("guidance.formula", ""),
    "another resize of the input": ("state.latent", ""),
    "another resize of codes": ("state.latent", ""),
    "bits reversed": ("state.latent", ""),
    "one number for all": ("randomness.race", ""),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_planted_bug_breaks_its_law(name: str):
    law_id, part = CAUGHT[name]
    row = try_law(BY_ID[law_id], Subject(decoder_factory(BUGS[name][0])), CaseList(LISTED[:1], passes=0))
    assert row.violation is not None
    assert row.violation.part == part, row.violation


def test_a_verification_tries_them_on_networks_of_the_family_in_question(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few, "LAWS", (BY_ID["state.latent"], BY_ID["numbers.encode"]))
    place = LawsPlace(family="infinity")
    assert try_laws_quickly(build_decoder, where=place).held == 1
    (broken,) = try_laws_quickly(decoder_factory(BUGS["bits reversed"][0]), where=place).broken
    assert "family='infinity'" in broken.clause


def test_conformance_takes_the_family_by_name():
    report = run_conformance(build_decoder, 2, laws=[BY_ID["positions.query"]], family="infinity")
    assert report.verdict is Verdict.IDENTICAL
    with pytest.raises(InputError, match=r"^family=none: must be one of var, infinity; pass family=infinity$"):
        run_conformance(build_decoder, family="none")


def test_a_failure_is_simplified_within_the_family():
    row = try_law(
        BY_ID["state.latent"], Subject(decoder_factory(BUGS["bits reversed"][0])), CaseList([replace(LISTED[2], D=32)])
    )
    assert row.violation is not None
    assert (row.violation.case.family, row.violation.case.D, row.violation.case.V) == ("infinity", 16, 2)
