"""One case against its tensors: each of them is compared, at each scale, and by no more than its cap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden import _cases as allowance
from harness.golden import _cases as cases
from harness.golden import _check as checking
from harness.golden import _plan as plan
from harness.golden._cases import CPU, LIMITS, Allowances, CaseResult, Ground, RecordedCase, allowances
from harness.golden._check import check_case, check_recording, read_recordings, recorded_cases, structure
from harness.golden._metadata import GoldenCase
from harness.golden._record import produce
from harness.golden._store import Recording, as_bytes
from harness.judge._verdict import Verdict
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import Noise
from harness.rounding._budget import Budget
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
CASE = RecordedCase("a", "sequential", Request((0, 1), 3, cfg=4.0), MODELS, f_hats=True, logits="all")
SMOOTH = replace(CASE, request=replace(CASE.request, more_smooth=True))
PLAIN = replace(CASE, f_hats=False, logits="none")
SPECULATIVE = replace(PLAIN, sampler="speculative", options=DecoderOptions(2))
SCALES = tuple(MODELS.pyramid)


def stated(case_id: str) -> GoldenCase:
    """Return what a file says of a case, as far as other cases look at it."""
    return GoldenCase(case_id, "sequential", (0, 1), plan.PLAIN)


def tensors_of(case: RecordedCase) -> dict[str, Tensor]:
    """Return what is recorded of a case, by the name after its id."""
    return {name.partition("/")[2]: tensor.clone() for name, tensor in produce(case)}


def judged(case: RecordedCase, tensors: Mapping[str, Tensor]) -> CaseResult:
    named = {f"{case.id}/{name}": tensor for name, tensor in tensors.items()}
    return check_case(case, Recording(Path("of-no-file"), {}, (stated(case.id),), named))


def moved(case: RecordedCase, name: str, by: float) -> CaseResult:
    """Judge a case of which one number of one tensor is another."""
    tensors = tensors_of(case)
    tensors[name].flatten()[-1] += by
    return judged(case, tensors)


@pytest.mark.parametrize("case", [CASE, SMOOTH, PLAIN, SPECULATIVE])
def test_a_recording_holds_whatever_is_recorded_of_it(case: RecordedCase):
    result = judged(case, tensors_of(case))
    assert (result.verdict, result.identical, result.defects) == (Verdict.IDENTICAL, result.draws, [])
    assert (result.delta_logits == 0) == (case.logits == "all")  # NaN where none are recorded


@pytest.mark.parametrize("case", [CASE, SMOOTH])
@pytest.mark.parametrize("kind", ["logits", "f_hat"])
@pytest.mark.parametrize("si", SCALES)
def test_every_recorded_scale_is_compared(si: int, kind: str, case: RecordedCase):
    found = [(d.component, d.scale) for d in moved(case, f"{kind}/{si}", 1e-2).defects if "off by" in d.detail]
    assert (kind, si) in found
    if case is CASE:  # with `more_smooth`, f_hat of a scale is what the next one is judged from
        assert found == [(kind, si)]


@pytest.mark.parametrize("sampler", ["sequential", "speculative"])
def test_one_wrong_token_is_one_defect_and_what_follows_from_it_is_none(sampler: str):
    """Plant: a token of scale 0 that is no draw; whatever is recorded behind it belongs to it."""
    case, tensors = replace(CASE, sampler=sampler, options=DecoderOptions(2)), {}
    tokens_BL = case.run().tokens_BL.clone()
    tokens_BL[1, 0] = (tokens_BL[1, 0] + 1) % 11
    for si in SCALES[1:]:
        tokens_BL[:, MODELS.pyramid.span(si)] = case.run(tokens_BL).tokens_BL[:, MODELS.pyramid.span(si)]
    run = case.run(tokens_BL)
    for si in SCALES:
        tensors[f"f_hat/{si}"] = run.intermediates.f_hat_SBCPP[si]
        tensors[f"logits/{si}"] = run.intermediates.guided_BLV[:, MODELS.pyramid.span(si)]
    tensors |= {"tokens": tokens_BL.short(), "f_hat": run.f_hat_BCPP, "image": MODELS.vae.decode(run.f_hat_BCPP)}
    if sampler == "speculative":
        tensors["rounds"] = torch.zeros(1, 7, dtype=torch.int32)  # not compared: other tokens take other rounds
    result = judged(case, tensors)
    assert [(d.component, d.image, d.position) for d in result.defects] == [("token", 1, 0)]
    assert (result.identical, result.free_run) == (result.draws - 1, False)


@pytest.mark.parametrize("case", [CASE, SMOOTH])
def test_f_hat_is_that_of_the_last_scale_to_the_bit(case: RecordedCase):
    tensors = tensors_of(case)
    tensors["f_hat"] = tensors["f_hat"].nextafter(torch.tensor(torch.inf))
    found = [(d.component, d.detail, d.scale) for d in judged(case, tensors).defects]
    assert found == [("f_hat", "f_hat is not f_hat/2", 2)]


def test_caps_are_those_of_measured_budgets_and_not_far_beyond():
    """What makes a cap tight: it lies beyond what the plain sampler needs, by less than thirty times."""
    run = CASE.run()
    budget = allowance.quick_budget(MODELS)
    largest = float(run.intermediates.rows_RLV.abs().max())
    f_hat = max(1.0, float(run.intermediates.f_hat_SBCPP.abs().max()))
    assert 1 < LIMITS["logits cap"] * largest / budget.rows < 30
    assert 1 < LIMITS["f_hat cap"] * f_hat / budget.f_hat < 30


@pytest.mark.parametrize(
    ("case", "name", "cap", "factor"),
    [(CASE, "logits/0", 1e-5, 1), (CASE, "logits/2", 1e-5, 9), (CASE, "f_hat/1", 4e-6, 1), (PLAIN, "f_hat", 4e-6, 1)],
)
@pytest.mark.parametrize(("caps", "wrong"), [(0.9, False), (1.1, True)])
def test_budgets_that_claim_too_much_excuse_no_more_than_the_cap(
    case: RecordedCase, name: str, cap: float, factor: int, caps: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
):
    """Plant: a plain sampler that is wrong by whole nats, and so would be its budget."""
    monkeypatch.setattr(allowance, "_budgets", lambda case: [Budget(10.0, 10.0, 10.0, "by hand")])
    run = case.run()
    kind = name.partition("/")[0]
    largest_of = {"logits": run.intermediates.rows_RLV, "f_hat": run.intermediates.f_hat_SBCPP}
    largest = max(1.0, float(largest_of[kind].abs().max()))
    allowed = 2 * factor * cap * largest  # both sides may be off
    scale = int(name.partition("/")[2] or SCALES[-1])
    assert [(d.component, d.scale) for d in moved(case, name, caps * allowed).defects] == [(kind, scale)] * wrong


def test_where_nothing_may_be_off_what_is_not_off_holds(monkeypatch: pytest.MonkeyPatch):
    none = Allowances((0.0,) * len(SCALES), 0.0, 0.0)
    monkeypatch.setattr(checking, "allowances", lambda case, run: none)
    assert judged(CASE, tensors_of(CASE)).defects == []


def test_where_no_token_differs_nothing_is_run_in_float64(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RecordedCase, "exact", None)
    assert judged(CASE, tensors_of(CASE)).verdict is Verdict.IDENTICAL


def test_tokens_are_judged_by_the_allowance_of_their_scale_and_float64_on_the_recorded_prefix(
    monkeypatch: pytest.MonkeyPatch,
):
    grounds: list[Ground] = []
    monkeypatch.setattr(Ground, "judge_tokens", lambda ground, *of_case: grounds.append(ground))
    tensors = tensors_of(CASE)
    tensors["tokens"][1, 0] = (tensors["tokens"][1, 0] + 1) % 11
    tokens_BL = tensors["tokens"].long()
    judged(CASE, tensors)
    (ground,) = grounds
    assert torch.equal(ground.exact.intermediates.guided_BLV, CASE.exact(tokens_BL).intermediates.guided_BLV)
    by_scale = allowances(CASE, CASE.run(tokens_BL)).logits_S
    expected = [[by_scale[si] for si in MODELS.pyramid.levels()]] * 2
    assert ground.margin_BL.tolist() == ground.error_BL.tolist() == expected
    assert torch.equal(ground.judged_BL, torch.ones(tokens_BL.shape, dtype=torch.bool))
    assert ground.judged_BL.dtype is torch.bool


def test_of_a_speculative_decode_its_own_f_hat_is_judged(monkeypatch: pytest.MonkeyPatch):
    """Plant: a decoder of the right tokens whose f_hat is another's."""
    tensors, whole = tensors_of(SPECULATIVE), SpeculativeDecoder.decode

    def bent(self: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
        run = whole(self, request, noise)
        return replace(run, f_hat_BCPP=run.f_hat_BCPP + 1e-2)

    monkeypatch.setattr(SpeculativeDecoder, "decode", bent)
    found = judged(SPECULATIVE, tensors)
    assert found.free_run
    assert [defect.component for defect in found.defects] == ["f_hat", "image"]


@pytest.mark.parametrize(("position", "defects"), [(-1, 1), (-2, 0)])
def test_of_some_logits_those_that_are_recorded_are_compared(
    position: int, defects: int, monkeypatch: pytest.MonkeyPatch
):
    """Plant: a sampler of other logits at one position of the last scale; of nine, 0, 4 and 8 are recorded."""
    monkeypatch.setattr(cases, "LOGITS_DENSE", 2)
    monkeypatch.setattr(cases, "LOGITS_STEP", 4)
    some = replace(CASE, logits="some")
    tensors = tensors_of(some)
    assert [tensors[f"logits/{si}"].shape[1] for si in SCALES] == [1, 4, 3]
    assert judged(some, tensors).defects == []
    run = CASE.run()
    guided_BLV = run.intermediates.guided_BLV.clone()
    guided_BLV[0, position] += 1e-2
    run.intermediates = replace(run.intermediates, guided_BLV=guided_BLV)
    monkeypatch.setattr(RecordedCase, "run", lambda self, forced_BL=None: run)
    assert [(d.component, d.scale) for d in judged(some, tensors).defects] == [("logits", 2)] * defects


@pytest.mark.parametrize("case", [CASE, SMOOTH])
@pytest.mark.parametrize(("by", "wrong"), [(0.7e-5, False), (1.5e-5, True)])
def test_an_image_is_off_by_what_its_decoder_rounds(by: float, wrong: bool, case: RecordedCase):
    assert [(d.component, d.scale) for d in moved(case, "image", by).defects] == [("image", -1)] * wrong


def test_networks_that_make_no_numbers_are_a_defect_of_every_tensor(monkeypatch: pytest.MonkeyPatch):
    """Plant: a sampler whose f_hat and logits are NaN, its tokens as recorded."""
    run = CASE.run()
    nan = replace(run, f_hat_BCPP=run.f_hat_BCPP * torch.nan)
    shown = run.intermediates
    nan.intermediates = replace(
        shown, guided_BLV=shown.guided_BLV * torch.nan, f_hat_SBCPP=shown.f_hat_SBCPP * torch.nan
    )
    tensors = tensors_of(CASE)
    monkeypatch.setattr(RecordedCase, "run", lambda self, forced_BL=None: nan)
    details = [d.detail.partition(" is ")[0] for d in judged(CASE, tensors).defects]
    assert details == [*(f"logits/{si}" for si in SCALES), *(f"f_hat/{si}" for si in SCALES), "f_hat", "image"]


def test_form_is_told_of_rounds_as_of_any_tensor():
    tensors = tensors_of(SPECULATIVE)
    rounds = tensors.pop("rounds")
    assert structure(SPECULATIVE, tensors) == ["tensor rounds is missing"]
    assert structure(PLAIN, {**tensors, "rounds": rounds}) == ["tensor rounds is not expected"]
    for other in (rounds.long(), rounds[0], rounds[:, :6]):
        found = structure(SPECULATIVE, {**tensors, "rounds": other})
        assert len(found) == 1
        assert found[0].endswith("expected torch.int32 and (any number, 7)")


@pytest.mark.parametrize("token", [-1, 11])
def test_tokens_on_either_side_of_the_vocabulary_are_a_defect_of_form(token: int):
    tensors = tensors_of(PLAIN)
    tensors["tokens"][1, 5] = token
    assert structure(PLAIN, tensors) == ["tokens lie outside 0..10"]


@pytest.mark.parametrize(("differing", "swapped"), [(1, True), (2, False)])
def test_cases_are_swapped_where_another_one_holds_almost_all_that_is_drawn(differing: int, swapped: bool):
    """Plant: two cases hold each other's tokens; 1 of 28 tokens is 4 %, 2 of them 7 %."""
    theirs = tensors_of(PLAIN)
    ours = tensors_of(replace(PLAIN, request=replace(PLAIN.request, seed=4)))
    theirs["tokens"][0, :differing] = (theirs["tokens"][0, :differing] + 1) % 11
    named = {f"a/{name}": tensor for name, tensor in ours.items()}
    named |= {f"b/{name}": tensor for name, tensor in theirs.items()}
    result = check_case(PLAIN, Recording(Path("of-no-file"), {}, (stated("a"), stated("b")), named))
    assert result.verdict is Verdict.DEFECT
    assert ("swapped" in [d.component for d in result.defects]) == swapped
    assert swapped == (result.defects[0].component == "swapped")
    if swapped:
        first = result.defects[0]
        assert (first.detail, first.seed) == ("case b holds the tokens drawn here: two cases are swapped", 3)
    alone = check_case(PLAIN, Recording(Path("of-no-file"), {}, (stated("a"),), named))
    assert "swapped" not in [d.component for d in alone.defects]


@pytest.mark.parametrize(("differing", "swapped"), [(0, True), (1, False)])
def test_nineteen_of_twenty_tokens_are_not_more_than_their_share(
    differing: int, swapped: bool, monkeypatch: pytest.MonkeyPatch
):
    case = RecordedCase("a", "sequential", Request((0, 1, 2, 0), 3), tiny(Layout((1, 2))))
    other = tensors_of(replace(case, request=replace(case.request, seed=4)))
    theirs = case.run().tokens_BL.short()
    theirs[0, :differing] = (theirs[0, :differing] + 1) % 11
    named = {**{f"a/{name}": tensor for name, tensor in other.items()}, "b/tokens": theirs}
    named["of-another-size/tokens"] = theirs[:, :3]
    listed = tuple(stated(name) for name in ("without-tokens", "of-another-size", "b", "a"))
    result = check_case(case, Recording(Path("of-no-file"), {}, listed, named))
    assert (theirs.numel(), result.defects[0].component == "swapped") == (20, swapped)


def test_a_case_is_not_swapped_with_itself():
    tensors = tensors_of(PLAIN)
    tensors["tokens"][1, -1] = (tensors["tokens"][1, -1] + 1) % 11  # 27 of 28 are those drawn here
    assert [d.component for d in judged(PLAIN, tensors).defects] == ["token", "f_hat", "image"]


def test_only_the_names_behind_an_id_belong_to_its_case():
    one = torch.zeros(1)
    named = {"a/tokens": one, "ab/tokens": one, "a": one}
    recording = Recording(Path("of-no-file"), {}, (stated("a"),), named)
    assert list(recording.of("a")) == ["tokens"]
    assert recording.strays() == ["a", "ab/tokens"]


def test_a_name_that_belongs_to_no_case_is_a_defect_of_the_file():
    named = {f"a/{name}": tensor for name, tensor in tensors_of(PLAIN).items()} | {"ab/tokens": torch.zeros(1)}
    metadata = {"device": "cpu", "dtype": "float32", "tf32": "off"}
    result = check_recording(Recording(Path("of-no-file"), metadata, (stated("a"),), named), [PLAIN], MODELS.device)
    assert result.path == "of-no-file"
    assert result.defects == ["tensor ab/tokens is not expected: it belongs to no case"]
    assert (result.verdict, [case.defects for case in result.cases]) == (Verdict.DEFECT, [[]])


def test_of_another_platform_nothing_is_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checking, "check_case", None)
    recording = Recording(Path("of-no-file"), {"device": "cuda"}, (stated("a"),), {"stray": torch.zeros(1)})
    result = check_recording(recording, [PLAIN], MODELS.device)
    assert result.unverified.startswith("recorded on cuda")
    assert (result.cases, result.defects) == ([], [])


# ---- files and cases to judge ----


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


def test_files_to_judge_are_named_and_named_once(tmp_path: Path):
    assert refused(lambda: read_recordings([])) == "files=[]: name nothing to check; pass at least one recording"
    path = tmp_path / "a.safetensors"
    path.write_bytes(as_bytes({"device": "cpu"}, (SMALL,), {}))
    again = tmp_path / ".." / tmp_path.name / path.name
    assert refused(lambda: read_recordings([path, again])) == f"files={again}: is named twice; name every file once"
    assert [recording.path for recording in read_recordings([path])] == [path]


SMALL = next(case for case in plan.cases("filled") if case.id == "one-phi-plain")


def recording_of(*listed: GoldenCase, models: str = "filled", **tensors: Tensor) -> Recording:
    words = {"models": models} if models else {}
    return Recording(Path("of-no-file"), words, listed, {name.replace("__", "/"): t for name, t in tensors.items()})


def test_cases_are_understood_in_their_order_on_the_device_that_is_asked_for():
    parsed = recorded_cases(recording_of(replace(SMALL, id="b"), replace(SMALL, id="a")), torch.device("meta"))
    assert [(case.id, case.models.device.type) for case in parsed] == [("b", "meta"), ("a", "meta")]


@pytest.mark.parametrize(
    ("tensors", "images"),
    [
        ({"a__tokens": torch.zeros(3, 5)}, 3),
        ({}, 1),
        ({"a__tokens": torch.tensor(7)}, 1),
        ({"b__tokens": torch.zeros(3, 5)}, 1),
    ],
)
def test_tokens_tell_how_many_images_have_drawn_labels_where_there_are_any(tensors: dict[str, Tensor], images: int):
    (case,) = recorded_cases(recording_of(replace(SMALL, id="a", labels=None), **tensors), CPU)
    assert case.request.labels is None
    assert images == case.request.B


def test_a_case_that_is_listed_twice_and_networks_that_nobody_knows_are_refused():
    twice = recording_of(replace(SMALL, id="a"), replace(SMALL, id="b"), replace(SMALL, id="a"))
    said = "golden=of-no-file: case a is listed twice; record it again"
    assert refused(lambda: recorded_cases(twice, CPU)) == said
    unknown = recording_of(replace(SMALL, id="a"), models="")
    said = "case a: models=: must be digits or filled; pass a recording of known networks"
    assert refused(lambda: recorded_cases(unknown, CPU)) == said
