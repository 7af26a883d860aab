"""What a check says of honest certificates, of liars who keep to the form, and of what is not at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.certificate import _form as form
from harness.certificate import _read as reading
from harness.certificate import checked, made
from harness.certificate.checked import Again, CheckAnswer, Checked, check_certificate
from harness.judge import Divergence, Judgement
from harness.models import ModelPair
from harness.protocol import Request
from harness.rounding import SHIPPED_BUDGETS, Budget
from harness.runs import LawsTried
from harness.runs._exercised import ASPECTS
from harness.schema import record_of
from tests.certificates import HERE, MODELS, certificate, rooted, run, with_tie, with_token
from tests.helpers import Layout, tiny

OWN = "harness.speculative.sampler:build_decoder"


def answer(statement: dict[str, Any], again: Again | None = None, models: ModelPair = MODELS) -> Checked:
    made = record_of(form.Certificate, statement["predicate"])
    assert list(reading._problems(made)) == []  # a liar keeps to the form
    return check_certificate(made, statement["subject"], models, SHIPPED_BUDGETS, again)


@pytest.fixture
def honest() -> dict[str, Any]:
    return certificate(run())


def test_an_honest_one_is_reproduced_by_the_reference_and_by_the_decoder(honest: dict[str, Any]):
    assert answer(honest) == Checked(CheckAnswer.SAME, "", 2)
    assert answer(honest, Again(OWN, (), HERE)).answer is CheckAnswer.SAME


@pytest.mark.parametrize("again", [None, Again("tests.doors:wrong_token", (), HERE)])
def test_a_defect_is_reproduced_too(again: Again | None):
    assert answer(certificate(run("tests.doors:wrong_token")), again).answer is CheckAnswer.SAME


def test_a_token_that_was_never_drawn_is_refuted_at_its_place(honest: dict[str, Any]):
    image = honest["predicate"]["challenged"][0]
    made = record_of(form.Certificate, honest["predicate"])
    token = int(made.tokens(made.image(image)[2].tokens)[5])
    with_token(honest, image, 5, (token + 1) % 16)
    honest["predicate"]["challenged"] = list(range(6))  # or another root would challenge others
    _show_all(honest)
    found = answer(rooted(honest))
    assert found.answer is CheckAnswer.REFUTED
    assert f"image {image} " in found.why and "scale 2, draw 5" in found.why and f"draws {token}" in found.why


def _show_all(statement: dict[str, Any]) -> None:
    """Show the tokens of every image, as a run with as many challenges does."""
    every = certificate(run(), challenged=6)["predicate"]["decodes"]
    for decode, whole in zip(statement["predicate"]["decodes"], every, strict=True):
        decode["images"] = [
            image if "tokens" in image else other
            for image, other in zip(decode["images"], whole["images"], strict=True)
        ]


def test_a_wrong_token_or_a_tie_that_is_none_is_refuted(honest: dict[str, Any]):
    for is_tie in (True, False):
        found = answer(with_tie(certificate(run()), is_tie))
        assert found.answer is CheckAnswer.REFUTED and "the reference is said to draw" in found.why, is_tie


def test_ties_that_are_none_are_refuted_in_images_that_nobody_challenged():
    statement = with_tie(certificate(run()))
    tied = statement["predicate"]["challenged"][0]
    statement["predicate"]["challenged"] = []
    found = answer(statement)
    assert found.answer is CheckAnswer.REFUTED and f"image {tied} " in found.why and found.images == 1


@pytest.mark.parametrize("again", [None, Again(OWN, (), HERE)])
def test_a_stated_defect_that_no_token_shows_is_not_reproduced(again: Again | None):
    """Wrong tokens of soft codes, which nobody challenges, and under contract B, where none is shown."""
    of_soft, of_law = certificate(run(), 6), certificate(run(policy="rejection"), 6)
    with_tie(of_soft, is_tie=False)
    decode = next(d for d in of_soft["predicate"]["decodes"] if d["wrong_tokens"])
    of_soft["predicate"]["requests"][decode["request"]]["more_smooth"] = True
    del of_soft["predicate"]["exercised"]["missing"]["more_smooth"]
    of_soft["predicate"]["exercised"]["asked"].append("more_smooth")
    head, counts = of_law["predicate"]["decodes"][-1], of_law["predicate"]["counts"]
    for each in (head, counts):
        each.update(unclaimed=each["unclaimed"] - 1, wrong_tokens=1, defects=1)
    head["verdict"] = of_law["predicate"]["verdict"] = "DEFECT"
    for statement in (of_soft, of_law):
        found = answer(rooted(statement), again)
        assert found.answer is CheckAnswer.UNKNOWN, found


def test_what_rounding_explains_is_reproduced_up_to_ties(monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]):
    monkeypatch.setattr(checked, "joint_budget", lambda *of: Budget(20.0, 10.0, 1.0, "far too wide"))
    assert answer(with_tie(honest)).answer is CheckAnswer.TIES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["weights"].update(target="0" * 64), "the target here is another one"),
        (lambda p: p["networks"].update(family="infinity"), "of the family infinity, are not at hand"),
        (lambda p: p["platform"].update(device="cuda"), "cpu draws other numbers than cuda"),
        (lambda p: p["platform"].update(numbers=[1.0] * 16), "draws other numbers than that of cpu"),
        (lambda p: p["platform"].update(numbers=["x"] * 16), "draws other numbers than that of cpu"),
    ],
)
def test_what_is_not_at_hand_is_said(change: Callable[[dict[str, Any]], None], says: str, honest: dict[str, Any]):
    change(honest["predicate"])
    found = answer(honest)
    assert (found.answer, found.images) == (CheckAnswer.UNKNOWN, 0) and says in found.why


def test_other_networks_leave_it_unverifiable(honest: dict[str, Any]):
    assert answer(honest, models=tiny(Layout((1, 2, 3)), seed=5)).answer is CheckAnswer.UNKNOWN


def test_under_contract_b_tokens_need_the_decoder():
    of_law = certificate(run(policy="rejection"))
    found = answer(of_law)
    assert found.answer is CheckAnswer.UNKNOWN and "pass --decode" in found.why
    assert answer(of_law, Again(OWN, (), HERE)).answer is CheckAnswer.SAME


def test_another_decoder_or_other_options_decode_nothing(monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]):
    monkeypatch.setattr(checked, "VerifyWork", None)
    found = answer(honest, Again("tests.doors:wrong_token", (), HERE))
    assert found.answer is CheckAnswer.UNKNOWN and "is not that of the certificate" in found.why
    assert "nobody finds the source of nowhere:factory" in answer(honest, Again("nowhere:factory", (), HERE)).why
    honest["predicate"]["settings"][0]["options"] = [["stub", "numpy=/tmp/evil.py"]]
    found = answer(honest, Again(OWN, (), HERE))
    assert found.answer is CheckAnswer.UNKNOWN and "had other options: stub=numpy=/tmp/evil.py" in found.why


def test_a_tie_is_that_of_the_row_that_differs_where_an_address_stands_twice():
    actual_BL, expected_BL = (np.full((2, 14), 3) for _ in range(2))
    expected_BL[1, 0] = 4
    judgement = Judgement(2, ties=[Divergence("token", "", 0, 0, 0, 0, 0, 3, 4)])
    networks = form.Layout("tiny", "var", "float32", "float32", (1, 2, 3), (), 1, 16, 2)
    images = list(made._images(np.stack([actual_BL, expected_BL]), judgement, Request((0, 1), images=(0, 0)), networks))
    assert [ties for _, _, ties, _ in images] == [(), (0,)]


def test_requests_that_are_none_are_bad_input(honest: dict[str, Any]):
    for request in honest["predicate"]["requests"]:
        request["labels"] = ["x", "y"]
    with pytest.raises(checked.InputError, match="does not hold together"):
        answer(honest)


def _asked(word: str) -> Callable[[dict[str, Any]], object]:
    return lambda p: (p["exercised"]["missing"].pop(word), p["exercised"]["asked"].append(word))


def _unasked(word: str, option: str) -> Callable[[dict[str, Any]], object]:
    return lambda p: (p["exercised"]["asked"].remove(word), p["exercised"]["missing"].update({word: option}))


DRAFTED = {each.word: each.claim for each in ASPECTS if each.family in ("drafts", "bonus")}
HELD = {"cases": 2, "held": 77, "broken": [], "trivial": [], "refused": [], "why": "", "not_applicable": [], "left": [],
        "networks": ["float64"], "pyramid": "", "late": []}  # fmt: skip


NONE_HELD = HELD | {"held": 0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_asked("bonus scales"), "was exercised, and nothing asks it: bonus scales"),
        (_asked("laws"), "was exercised, and nothing asks it: laws"),
        (_asked("other dtypes"), "was exercised, and nothing asks it: other dtypes"),
        (lambda p: p.update(laws=HELD), "was not exercised, and it was: laws"),
        (_unasked("noise by image", "--noise image"), "was not exercised, and it was: noise by image"),
        (lambda p: p["exercised"]["missing"].pop("bonus scales"), "say once whether this was exercised: bonus scales"),
        (lambda p: p["exercised"]["asked"].append("all else"), "say once whether this was exercised: all else"),
        (lambda p: p["exercised"]["missing"].update({"guidance off": "--cfg 1"}), "it names other options than those"),
        (lambda p: p["exercised"].update(claims=[]), "it names other options than those"),
        (lambda p: p.update(planted=made.planted_bugs(), laws=NONE_HELD), "it counts other planted bugs than"),
        (lambda p: p["exercised"].update(asked=[1]), "Exercised.asked is (1,)"),
    ],
)  # fmt: skip
def test_what_its_own_decodes_contradict_is_refused(
    change: Callable[[dict[str, Any]], object], says: str, honest: dict[str, Any]
):
    change(honest["predicate"])
    with pytest.raises(checked.InputError, match="does not hold together") as refused:
        answer(honest)
    assert says in str(refused.value)
    if says != "Exercised.asked is (1,)":  # another version has other words for what is asked
        honest["predicate"]["versions"]["harness"] = "0.0"
        assert answer(honest).answer is CheckAnswer.SAME
        (unseen,) = checked.unchecked(record_of(form.Certificate, honest["predicate"]))
        assert unseen.startswith("what was exercised, planted bugs: those of version 0.0")


@pytest.mark.parametrize(("more", "is_refused"), [({}, False), ({"caught": 180}, True)])
def test_planted_bugs_are_those_of_the_table_and_the_default_question(
    more: dict[str, int], is_refused: bool, monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]
):
    predicate = honest["predicate"]
    predicate.update(planted=made.planted_bugs() | more, laws=HELD)
    predicate["networks"]["title"] = "digits"
    for word in ("laws", "other dtypes"):
        _asked(word)(predicate)
    usual = [Request((0, 1), seed) for seed in range(2)]
    monkeypatch.setattr(checked, "requests_for", lambda models: usual)
    if is_refused:
        with pytest.raises(checked.InputError, match="it counts other planted bugs than the default question"):
            answer(honest)
        return
    assert answer(honest).answer is CheckAnswer.SAME
    usual[0] = Request((1, 0))
    with pytest.raises(checked.InputError, match="of the default question, and asked another one"):
        answer(honest)


def test_what_no_check_sees_is_said(honest: dict[str, Any]):
    stated = honest["predicate"]["exercised"]
    stated["not_done"]["top-k alone"] = stated["missing"].pop("top-k alone")
    assert answer(honest).answer is CheckAnswer.SAME
    by_rounds, declined = checked.unchecked(record_of(form.Certificate, honest["predicate"]))
    assert by_rounds.startswith("what rounds and laws show (one decoder for several requests, rejected drafts, ")
    assert declined == "what the decoder is said not to do (top-k alone)"
    words = [word for word, claim in DRAFTED.items() if claim or word.startswith("bonus") or "rule" in word]
    for word in words:  # whoever leaves all drafts out says that it drafts nothing
        stated["missing"].pop(word, None)
        stated["asked"] = [each for each in stated["asked"] if each != word]
    stated["claims"] = []
    assert answer(honest).answer is CheckAnswer.SAME
    assert checked.unchecked(record_of(form.Certificate, honest["predicate"]))[-1].endswith("(top-k alone, drafts)")


@pytest.mark.parametrize("part", ["forced", "joint_budget"])
def test_what_this_machine_has_no_kernel_for_is_unverifiable(
    part: str, monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]
):
    def without_kernel(*of: object) -> None:
        raise RuntimeError("pack_vnni2 is only supported when avx512 is supported")

    monkeypatch.setattr(checked, part, without_kernel)
    why = "its mode, float32, is not at hand: pack_vnni2 is only supported when avx512 is supported"
    assert answer(honest) == Checked(CheckAnswer.UNKNOWN, why, 0)


def test_what_else_goes_wrong_is_no_missing_kernel(monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]):
    def wrong(*of: object) -> None:
        torch.ones(2, 2) @ torch.ones(3, 3)

    monkeypatch.setattr(checked, "forced", wrong)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        answer(honest)


@pytest.mark.parametrize("lack", [
    lambda *of: torch.zeros(2, dtype=torch.float8_e4m3fn).topk(1),
    lambda *of: torch.empty(10**14),
    lambda *of: torch.ones(2, device="meta").tolist(),
])  # fmt: skip
def test_what_pytorch_says_of_kernels_and_memory_is_known(
    lack: Callable[..., object], monkeypatch: pytest.MonkeyPatch, honest: dict[str, Any]
):
    monkeypatch.setattr(checked, "forced", lack)
    assert answer(honest).why.startswith("its mode, float32, is not at hand: ")


def test_a_defect_of_tensors_alone_needs_the_decoder():
    of_tensors = certificate(run("tests.doors:not_finite"))
    assert of_tensors["predicate"]["counts"]["wrong_tokens"] == 0
    found = answer(of_tensors)
    assert found.answer is CheckAnswer.UNKNOWN and "tokens alone do not show its defect" in found.why
    assert answer(of_tensors, Again("tests.doors:not_finite", (), HERE)).answer is CheckAnswer.SAME


def test_no_certificate_of_a_decoder_without_source_or_of_code_that_changed(monkeypatch: pytest.MonkeyPatch):
    result = run()
    record = result.record
    assert record is not None and record.identity is not None
    code = replace(record.identity.decoder, source="another")
    result.record = replace(record, identity=replace(record.identity, decoder=code))
    with pytest.raises(checked.InputError, match="is not what it was when the run began"):
        certificate(result)
    code = replace(record.identity.decoder, source="", implementation="nowhere:factory")
    result.record = replace(record, identity=replace(record.identity, decoder=code))
    with pytest.raises(checked.InputError, match="nobody finds the source of nowhere:factory"):
        certificate(result)


def test_it_is_the_same_from_a_run_s_file(tmp_path: Path):
    from harness.protocol import Settings
    from harness.runs import Decodes, Plan, RunFileOptions, recorded_result, verify_decodes
    from harness.speculative.sampler import build_decoder

    file = tmp_path / "run.db"
    plan = Plan.of([Settings(2)], [Request((0, 1), seed) for seed in range(3)])
    whole = verify_decodes(MODELS, Decodes(build_decoder, plan, HERE), store=RunFileOptions(file, recipe={}))
    assert certificate(recorded_result(file)) == certificate(whole)


@pytest.mark.parametrize(
    ("title", "covers", "is_said"), [("digits", True, True), ("digits", False, False), ("own", True, False)]
)
def test_planted_bugs_are_those_of_the_default_question_alone(title: str, covers: bool, is_said: bool):
    result = run()
    assert result.record is not None
    result.record = replace(result.record, networks=replace(result.record.networks, title=title))
    result.covers, result.laws = covers, LawsTried(2, 77)
    stated = certificate(result)["predicate"]["planted"]
    assert (stated is not None) is is_said and (not is_said or 0 < stated["caught"] <= stated["planted"])
