"""A recorded defect is repeated here, elsewhere, and after the fix; the answer says no more than was seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.decoders._runner import Terms
from harness.errors import InputError
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol.noise import CORRECT, TOKEN, NoiseError, RecordedNumbers
from harness.rounding._budget import SHIPPED_BUDGETS
from harness.runs._case import KEY, KeptCase, cases_of, is_bundle, read_bundle, repeat_line, write_bundle
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._identity import Identity
from harness.runs._plan import Plan
from harness.runs._replay import KEEPS, Answer, replay_case, shrink_case
from harness.runs._runfile import RunFileOptions, read_run
from tests.helpers import Layout, tiny, with_weight

MODELS = tiny(Layout((1, 2, 3, 4)))
NAME = "harness.mutants.positions:OFFSET"
PLAN = Plan.of([Settings(3)], [Request((0, 1, 2), 5, seeds=(5, 5, 6), images=(0, 1, 0))])


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "run.db"
    verify_decodes(MODELS, Decodes(NAME, PLAN, Terms(in_process=True)), store=RunFileOptions(path, recipe={}))
    return path


def changed(case: KeptCase, part: str, **values: object) -> KeptCase:
    """Return the case as another machine or version would have recorded it."""
    identity = case.recorded.as_dict()
    identity |= {part: {**identity[part], **values}}
    return replace(case, record=replace(case.record, identity=Identity.from_dict(identity)))


def test_a_defect_is_repeated_and_known_again(recorded: Path):
    (case,) = cases_of(recorded)
    assert case.record == read_run(recorded)[0].record
    assert replay_case(case, MODELS, SHIPPED_BUDGETS).answer is Answer.STILL
    other = replace(case, defect=replace(case.defect, component="f_hat"))
    found = replay_case(other, MODELS, SHIPPED_BUDGETS)
    assert (found.answer, found.defect.component) == (Answer.OTHER, "positions")


def test_a_fix_is_told_from_what_cannot_be_reproduced(recorded: Path):
    (case,) = cases_of(recorded)
    right = changed(case, "decoder", implementation="harness:build_decoder")  # as if that name had had the defect
    same = replay_case(right, MODELS, SHIPPED_BUDGETS)
    assert (same.answer, same.why) == (Answer.CANNOT, f"{KEEPS}; or what it imports was changed")
    assert replay_case(changed(right, "decoder", source="0123"), MODELS, SHIPPED_BUDGETS).answer is Answer.FIXED
    other = replay_case(changed(right, "versions", torch="1.0"), MODELS, SHIPPED_BUDGETS)
    assert (other.answer, other.why) == (Answer.CANNOT, f"versions torch (here {torch.__version__}, recorded 1.0)")


def test_what_stands_in_the_way_is_named(recorded: Path):
    (case,) = cases_of(recorded)
    other = replace(MODELS, target=with_weight(MODELS.target, "head.bias", lambda bias: bias + 1))
    found = replay_case(case, other, SHIPPED_BUDGETS)
    assert found.answer is Answer.CANNOT
    assert found.why.startswith("other weights: weights target (here ")
    cuda = changed(case, "machine", device="cuda", name="NVIDIA H100")
    assert "recorded on NVIDIA H100, here cpu" in replay_case(cuda, MODELS, SHIPPED_BUDGETS).why
    gone = changed(case, "decoder", implementation="no_such_module:factory")
    assert (
        "the decoder cannot be had: implementation=no_such_module:factory"
        in replay_case(gone, MODELS, SHIPPED_BUDGETS).why
    )
    mode = changed(case, "mode", dtype="bfloat16")
    assert (
        replay_case(mode, MODELS, SHIPPED_BUDGETS).why == "another mode: mode dtype (here float32, recorded bfloat16)"
    )


def test_the_smallest_case_is_one_image_one_scale_more_than_the_bug_needs(recorded: Path):
    (case,) = cases_of(recorded)
    small = shrink_case(case, MODELS, SHIPPED_BUDGETS)
    assert (small.request.B, small.settings.draft_len) == (1, 1)
    assert 1 < small.scales < 4
    assert small.defect.component == "positions"
    assert replay_case(small, MODELS, SHIPPED_BUDGETS).answer is Answer.STILL


def test_a_bundle_meets_its_own_numbers_on_another_class_of_machine(recorded: Path, tmp_path: Path):
    (case,) = cases_of(recorded)
    path = tmp_path / "case.sdvar"
    write_bundle(case, MODELS, path)
    assert is_bundle(path)
    assert not is_bundle(recorded)
    sent = read_bundle(path)
    assert (sent.request, sent.settings, sent.exhibit.keys()) == (case.request, case.settings, case.exhibit.keys())
    # numbers that no generator of this machine gives, as from a GPU
    tensors = {name: tensor.flip(-1).contiguous() for name, tensor in sent.numbers.tensors.items()}
    bent = replace(
        changed(sent, "machine", device="cuda", name="NVIDIA H100"), numbers=RecordedNumbers(tensors, sent.request)
    )
    noise = replace(MODELS, numbers=bent.numbers).noise(case.request)
    assert torch.equal(noise.exponential(2, TOKEN, "x"), tensors["token/2"])
    found = replay_case(bent, MODELS, SHIPPED_BUDGETS)
    assert found.answer is Answer.STILL
    assert "machine name (here cpu, recorded NVIDIA H100)" in found.why


def test_a_bundle_of_before_says_of_a_defect_what_it_could_say(recorded: Path, tmp_path: Path):
    (case,) = cases_of(recorded)
    write_bundle(case, MODELS, tmp_path / "new.sdvar")
    tensors = load_file(tmp_path / "new.sdvar")
    with safe_open(tmp_path / "new.sdvar", "pt") as bundle:
        values = json.loads(bundle.metadata()[KEY])
    del values["found"][-1]  # there were no channels
    save_file(tensors, tmp_path / "old.sdvar", {KEY: json.dumps(values)})
    assert replace(read_bundle(tmp_path / "old.sdvar").defect, channel=case.defect.channel) == case.defect


def test_numbers_that_were_not_recorded_are_no_numbers(recorded: Path, tmp_path: Path):
    (case,) = cases_of(recorded)
    write_bundle(case, MODELS, tmp_path / "case.sdvar")
    numbers = read_bundle(tmp_path / "case.sdvar").numbers
    models = replace(MODELS, numbers=numbers)
    one = case.request.only([2])
    assert one.addresses == ((6, 0),)
    own = MODELS.noise(one).exponential(1, CORRECT, "x")
    assert torch.equal(models.noise(one).exponential(1, CORRECT, "x"), own)
    with pytest.raises(NoiseError, match="were not recorded"):
        models.noise(Request((0,), 99)).exponential(0, TOKEN, "x")


@pytest.mark.parametrize("content", [b"", b"no bundle at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_bundle_is_one_line(content: bytes, tmp_path: Path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=r"file=.*(holds no record of a run|is empty|is a text)"):
        read_bundle(tmp_path / "x")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seeds": (5, 5, 6), "images": (0, 1, 0)}, "--seeds 5 --labels 0,1 --batch 2"),  # seeds have other images
        ({"seeds": (5, 6, 7), "images": (3, 3, 3), "labels": (1, 1, 1)}, "--seeds 5:8 --labels 1 --images 3 --batch 3"),
        ({}, "--seeds 5 --labels 0:3 --batch 3"),
        ({"images": (4, 2, 9)}, "--seeds 5 --labels 0:3 --images 4,2,9 --batch 3"),
    ],
)
def test_the_line_that_repeats_a_case_decodes_its_batch(asked: dict[str, object], words: str, recorded: Path):
    (case,) = cases_of(recorded)
    request = replace(PLAN.tasks[0].request, **{"seeds": None, "images": None} | asked)
    line = repeat_line(replace(case, request=request))
    assert f" {words} --draft-len 3" in line
