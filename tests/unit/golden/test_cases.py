"""A case is what its text says and runs the sampler that it names; whatever else it says is refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from harness.errors import InputError
from harness.golden import _cases as cases
from harness.golden import _plan as plan
from harness.golden._cases import CPU, RecordedCase, recorded_networks
from harness.golden._cases import parse as fitted
from harness.golden._check import recorded_cases, structure
from harness.golden._metadata import GoldenCase, Recipe
from harness.golden._store import canonical, read_recording
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.reference._handoff import HandOff, sample_handoff
from harness.reference.sequential import sample_sequential
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import RECORDED, Layout, tiny

TEXT: dict[str, Any] = next(
    json.loads(canonical((case,)))[0] for case in plan.cases("filled") if case.id == "one-phi-filtered"
)
DIGITS = {"id": "a", "sampler": "sequential", "model": "draft", "labels": [4], **asdict(plan.PLAIN)}
HANDED = {"sampler": "test3", "entry_num": 2, "sd_mask": 4}
SPECULATIVE = {"sampler": "speculative", "draft_len": 3, "bonus": True}
WORDS = Request((0, 1), 101, cfg=3.0, top_k=7, top_p=0.9, order="batch")
TEACHER = Request((0, 1), 3, cfg=4.0)
MODELS = tiny(Layout((1, 2, 3)))


def parse(text: dict[str, Any], models: str, device: torch.device) -> RecordedCase:
    """Read a case and fit it to its networks, as a file is."""
    return fitted(GoldenCase.from_values(text), models, device)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, {}),
        ({"model": "draft"}, {"network": "draft"}),
        ({"deep": True}, {"f_hats": True}),
        ({"logits": "some"}, {"logits": "some"}),
        ({"logits": "none", "deep": False}, {"logits": "none"}),
        ({"order": "image"}, {"request": replace(WORDS, order="image")}),
        ({"labels": None, "count": 3}, {"request": replace(WORDS, labels=None, count=3)}),
        ({"labels": [2], "count": 3}, {"request": replace(WORDS, labels=(2,))}),
        ({"cfg": 2, "top_p": 1}, {"request": replace(WORDS, cfg=2.0, top_p=1.0)}),
        (HANDED, {"sampler": "test3", "hand_off": HandOff(2, 4, "recorded")}),
        ({**HANDED, "mode": "corrected"}, {"sampler": "test3", "hand_off": HandOff(2, 4, "corrected")}),
        (SPECULATIVE, {"sampler": "speculative", "options": DecoderOptions(3, bonus=True)}),
    ],
)
def test_a_case_is_what_its_text_says(change: dict[str, Any], said: dict[str, Any]):
    made = parse({**TEXT, **change}, "filled", CPU)
    plain = RecordedCase("one-phi-filtered", "sequential", WORDS, made.models, logits="all")
    assert made == replace(plain, **said)
    assert type(made.request.cfg) is type(made.request.top_p) is float


def test_networks_filled_by_formula_need_not_say_which_of_them_decides():
    assert parse({key: value for key, value in TEXT.items() if key != "model"}, "filled", CPU).network == "target"


@pytest.mark.parametrize(("change", "logits"), [({}, "none"), ({"deep": True}, "some"), ({"logits": "all"}, "all")])
def test_of_digits_the_logits_of_deep_cases_are_recorded(change: dict[str, Any], logits: str):
    made = parse({**DIGITS, **change}, "digits", CPU)
    assert (made.network, made.f_hats, made.logits) == ("draft", "deep" in change, logits)


@pytest.mark.parametrize(("text", "models"), [(TEXT, "filled"), (DIGITS, "digits")])
def test_networks_lie_where_they_are_asked_for(text: dict[str, Any], models: str):
    assert parse(text, models, torch.device("meta")).models.device.type == "meta"


@pytest.mark.parametrize(
    "path",
    [RECORDED / "recorded-cpu.safetensors", RECORDED / "recorded-variants-cpu.safetensors"]
    + [plan.path_of(models, "cpu") for models in plan.FILES],
    ids=lambda path: path.stem,
)
def test_every_recording_has_the_form_that_its_cases_say(path):
    recording = read_recording(path)
    parsed = recorded_cases(recording, CPU)
    assert [(case.id, structure(case, recording.of(case.id))) for case in parsed] == [
        (case.id, []) for case in recording.cases
    ]


def changed(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in {**TEXT, "id": "a", **values}.items() if value is not ...}


HUGE = 10**400
AGAIN = "record it again"
BAD: list[tuple[dict[str, Any], str]] = [
    (changed(sampler="magic"), f": sampler=magic: must be one of sequential, test3, speculative; {AGAIN}"),
    (changed(logits="few"), f": logits=few: must be one of none, some, all; {AGAIN}"),
    (changed(logits=7), f": logits=7: must be one of none, some, all; {AGAIN}"),
    (changed(model="vae"), f": model=vae: must be one of draft, target; {AGAIN}"),
    (changed(order="rows"), f": order=rows: must be one of image, batch; {AGAIN}"),
    (changed(labels=["0"]), f": labels=['0']: must be a list of 1..65536, each of type int; {AGAIN}"),
    (changed(labels=[True]), f": labels=[True]: must be a list of 1..65536, each of type int; {AGAIN}"),
    (changed(labels="0"), f": labels=0: must be a list of 1..65536, each of type int; {AGAIN}"),
    (changed(labels=None), f"=metadata: lacks 'count'; {AGAIN}"),
    (changed(labels=None, count=2.0), f": count=2.0: must be of type int; {AGAIN}"),
    (changed(seed=1.5), f": seed=1.5: must be of type int; {AGAIN}"),
    (changed(top_k=True), f": top_k=True: must be of type int; {AGAIN}"),
    (changed(cfg=True), f": cfg=True: must be of type float; {AGAIN}"),
    (changed(cfg="1.5"), f": cfg=1.5: must be of type float; {AGAIN}"),
    (changed(cfg=HUGE), f": cfg={HUGE}: must be of type float; {AGAIN}"),
    (changed(cfg=...), f"=metadata: lacks 'cfg'; {AGAIN}"),
    (changed(deep=1), f": deep=1: must be of type bool; {AGAIN}"),
    (changed(more_smooth=0), f": more_smooth=0: must be of type bool; {AGAIN}"),
    (changed(**{**HANDED, "mode": "other"}), ": mode=other: must be recorded or corrected; pass mode corrected"),
    (changed(**{**SPECULATIVE, "bonus": "no"}), f": bonus=no: must be of type bool; {AGAIN}"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_what_a_case_may_not_say_is_refused_in_one_line(text: dict[str, Any], said: str):
    with pytest.raises(InputError) as refused:
        parse(text, "filled", CPU)
    assert str(refused.value) == f"case a{said}"


def test_a_case_of_digits_says_which_network_decides():
    with pytest.raises(InputError) as refused:
        parse({key: value for key, value in DIGITS.items() if key != "model"}, "digits", CPU)
    assert str(refused.value) == "case a=metadata: lacks 'model'; record it again"


# ---- runs ----


def by_hand(case: RecordedCase, models: ModelPair, forced_BL: torch.Tensor | None) -> Trace:
    """Run the sampler that a case names, without it."""
    noise = models.noise(case.request)
    if case.sampler == "test3":
        return sample_handoff(models, case.request, noise, case.hand_off, forced_BL)
    if case.sampler == "speculative" and forced_BL is None:
        return SpeculativeDecoder(models, case.options).decode(case.request, noise)
    return sample_sequential(getattr(models, case.network), models.vae, case.request, noise, forced_BL)


NAMED = [
    RecordedCase("a", "sequential", TEACHER, MODELS),
    RecordedCase("b", "sequential", TEACHER, MODELS, network="draft"),
    RecordedCase("c", "test3", TEACHER, MODELS, hand_off=HandOff(1, 5)),
    RecordedCase("d", "speculative", TEACHER, MODELS, options=DecoderOptions(2, bonus=True)),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: f"{case.sampler}-{case.network}")
def test_a_case_runs_the_sampler_that_it_names_free_and_forced_in_float32_and_float64(case: RecordedCase):
    other_BL = (torch.arange(2 * MODELS.pyramid.L) % 11).view(2, -1)
    for forced_BL in (None, other_BL):
        for made, models in ((case.run(forced_BL), MODELS), (case.exact(forced_BL), MODELS.wide())):
            expected = by_hand(case, models, forced_BL)
            assert torch.equal(made.tokens_BL, expected.tokens_BL)
            assert torch.equal(made.shown.guided_BLV, expected.shown.guided_BLV)
            assert made.shown.guided_BLV.dtype == models.target.dtype
            assert (made.target_calls, made.target_rows) == (expected.target_calls, expected.target_rows)


def test_whoever_decides_a_token_is_a_side():
    assert [[("draft", "target")[side is MODELS.target] for side in case.sides()] for case in NAMED] == [
        ["target"], ["draft"], ["draft", "target"], ["target"],
    ]  # fmt: skip


def test_some_logits_are_every_so_many_positions_from_one_scale_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cases, "LOGITS_DENSE", 2)
    monkeypatch.setattr(cases, "LOGITS_STEP", 3)
    kept = {
        logits: [list(range(MODELS.pyramid.L))[replace(NAMED[0], logits=logits).logits_at(si)] for si in (1, 2)]
        for logits in ("some", "all")
    }
    assert kept == {"some": [[1, 2, 3, 4], [5, 8, 11]], "all": [[1, 2, 3, 4], list(range(5, 14))]}


# ---- networks ----


META = torch.device("meta")


def stated(*left_out: str, **values: object) -> GoldenCase:
    """Return a case of networks of other sizes, some of them not stated."""
    text = {**TEXT, **values}
    return GoldenCase.from_values({key: value for key, value in text.items() if key not in left_out})


def refusal(models: str = "filled", **sizes: object) -> str:
    with pytest.raises(InputError) as caught:
        recorded_networks(stated(**sizes), models)
    return str(caught.value)


def test_the_draft_has_the_sizes_that_are_stated_and_otherwise_those_of_the_target():
    sizes_of_both = {"depth": 3, "D": 64, "H": 2, "draft_depth": 1, "draft_D": 32, "draft_H": 4}
    for left_out, sizes in (
        ((), (1, 32, 4)),
        (("draft_depth",), (3, 32, 4)),
        (("draft_D",), (1, 64, 4)),
        (("draft_H",), (1, 32, 2)),
        (("draft_depth", "draft_D", "draft_H"), (3, 64, 2)),
    ):
        pair = recorded_networks(stated(*left_out, **sizes_of_both), "filled")
        assert (pair.draft.config.depth, pair.draft.config.D, pair.draft.config.H) == sizes
        assert (pair.target.config.depth, pair.target.config.D, pair.target.config.H) == (3, 64, 2)
        assert pair.name == "filled"


@pytest.mark.parametrize("models", plan.files_of("cuda"))
def test_the_same_case_has_the_same_objects_on_each_device(models: str):
    pair = recorded_networks(stated(), models)
    assert recorded_networks(stated(), models, CPU) is pair
    assert pair.device == CPU
    assert recorded_networks(stated(), models, META).device == META


def test_what_names_no_networks_is_refused():
    assert refusal("cats") == "models=cats: must be digits or filled; pass a recording of known networks"
    for key in (size.name for size in fields(Recipe) if not size.name.startswith("draft_")):
        with pytest.raises(InputError) as caught:
            fitted(stated(key), "filled", CPU)
        assert str(caught.value) == f"case one-phi-filtered=metadata: lacks '{key}'; record it again"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"H": 3}, "sizes=D=64 and H=3: D must be a multiple of H"),
        ({"draft_H": 3}, "sizes=D=32 and H=3: D must be a multiple of H"),
        ({"vae_ch": 48}, "sizes=vae_ch=48 times 1: must be a multiple of 32"),
        (
            {"D": 2**14, "depth": 128, "H": 2, "shared_adaln": True},
            "sizes=414495605024 weights: must be at most 268435456 a network",
        ),
    ],
)
def test_sizes_that_make_no_networks_are_refused_before_any_is_made(
    sizes: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cases, "filled_weights", None)
    assert refusal(**sizes) == f"{said}; record it again"


@pytest.mark.parametrize(
    ("phi", "number", "layout"), [("1 shared", 1, "one"), ("2 shared", 2, "shared"), ("one a scale", 4, "per-scale")]
)
def test_phi_is_laid_out_as_it_is_spelled(phi: str, number: int, layout: str):
    config = recorded_networks(stated(phi=phi), "filled").vae.config
    assert (config.phi, config.phi_layout) == (number, layout)
    assert len(TEXT["patch_nums"]) == 4
