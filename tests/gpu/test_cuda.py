"""What only a CUDA device can show. Without one these tests fail: a suite that skips in silence proves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.decoders._runner import Terms, start_runner
from harness.judge._verdict import Verdict
from harness.models._pair import ModelPair, load_digits
from harness.mutants import guidance, masks, positions, reuse, streams, windows
from harness.mutants._hunt import MUTANTS
from harness.mutants._mutant import Mutant
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.rounding._budget import SHIPPED_BUDGETS, load_budgets, mode_of
from harness.rounding._measure import errors, measure_budget
from harness.rounding._precision import set_precision
from harness.runs._cover import covering, plan_of, verify_coverage_plan
from harness.runs._decodes import Decodes
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_decoder
from harness.verification import verify
from tests.bent_smooth import SOFT_BUGS
from tests.helpers import RECORDED, bend, command, recorded, verify_here

pytestmark = pytest.mark.gpu
SOFT = ("sequential-005", "test3-064", "test3-065")
# those without a filter: no recorded case has both
BUGS_OF_SOFT = {name: bug for name, bug in SOFT_BUGS.items() if "filter" not in name}
MODES = ("float32", "tf32", "bfloat16", "float16", "autocast-float16", "autocast-bfloat16")
REQUEST = Request((0, 3, 7), 5)


@pytest.fixture(autouse=True)
def device() -> None:
    if not torch.cuda.is_available():
        pytest.fail("device=cuda: there is no CUDA device here; run tox without -e gpu, or on a machine with one")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[ModelPair]:
    set_precision(request.param == "tf32")
    yield load_digits().in_mode("cuda", "float32" if request.param == "tf32" else request.param)
    set_precision(False)


def test_the_cuda_recordings_are_reproduced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, report = RECORDED / "recorded-cuda.safetensors", tmp_path / "report.json"
    assert command(monkeypatch, "golden", "check", str(file), "--device", "cuda", "--json", str(report)) == 0
    assert json.loads(report.read_text())["cases"] == 76


def test_the_widest_tolerance_of_the_recordings_is_tight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`more_smooth` may differ most: by 0.02 where rounding does so much, and else by far less."""
    tensors, metadata = recorded("cuda")
    f_hat = tensors["sequential-005/f_hat"].clone()
    f_hat[:, 0] += 0.021
    file = tmp_path / "bent.safetensors"
    save_file({**tensors, "sequential-005/f_hat": f_hat}, file, metadata)
    assert command(monkeypatch, "golden", "check", str(file), "--device", "cuda") == 1
    assert "DEFECT in sequential-005: component f_hat" in capsys.readouterr().out


def test_this_projects_goldens_hold_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "golden", "check", "--device", "cuda") == 0
    assert command(monkeypatch, "golden", "diff", "--device", "cuda") == 0


@pytest.mark.parametrize("name", BUGS_OF_SOFT)
def test_planted_soft_bugs_are_caught_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, bug in BUGS_OF_SOFT[name].items():
        bend(monkeypatch, part, bug)
    file = RECORDED / "recorded-cuda.safetensors"
    found = [command(monkeypatch, "golden", "check", str(file), "--device", "cuda", "--only", case) for case in SOFT]
    assert 1 in found


def test_the_decoder_is_right_in_every_mode(mode: ModelPair) -> None:
    result = verify_here(mode, build_decoder, [Settings(1), Settings(3), Settings(10, bonus=True)], [REQUEST])
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence
    assert [setting.total("draws") for setting in result.settings] == [3 * 680] * 3


# mutants that change the tokens or tensors of digits too, besides those whose component is named
MUTANT_IDS = (
    "positions.half", "masks.token-causal", "guidance.relative", "guidance.window-weight", "guidance.short-ramp",
    "state.last-lost", "randomness.product",
)  # fmt: skip
# what these change shows with a close draft, a bonus scale, unusual guidance or a second request alone
MANY = [thing for module in (reuse, streams, windows) for thing in vars(module).values() if isinstance(thing, Mutant)]
# what windows of more than six scales, or weights that float32 does not hold, show alone: laws reach it, no digit does
LAWS_ALONE = (masks.LONG, masks.OPEN_END, positions.SIX_LEVELS, guidance.NARROW_WEIGHTS, guidance.NARROW_RAMP)
PLACED = {mutant.id: mutant for mutant in MUTANTS if mutant.component}
BUGS = {
    mutant.id: mutant
    for mutant in MUTANTS
    if mutant not in (*MANY, *LAWS_ALONE) and (mutant.id in PLACED or mutant.id in MUTANT_IDS)
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught_in_every_mode(name: str, mode: ModelPair) -> None:
    assert verify_here(mode, BUGS[name], [Settings(3)], [REQUEST]).verdict is Verdict.DEFECT


@pytest.mark.parametrize("name", [name for name, mutant in PLACED.items() if mutant in MANY])
def test_the_default_design_catches_what_one_request_does_not_show(name: str) -> None:
    blocks = covering(load_digits().to("cuda"))
    decodes = Decodes(PLACED[name], plan_of(blocks), Terms(in_process=True, first_only=True))
    result = verify_coverage_plan(blocks[0].models, decodes)
    assert result.verdict is Verdict.DEFECT


def test_repeated_decodes_are_bit_equal(mode: ModelPair) -> None:
    decoder = SpeculativeDecoder(mode, DecoderOptions(5))
    first, second = (decoder.decode(REQUEST, mode.noise(REQUEST)) for _ in range(2))
    assert torch.equal(first.tokens_BL, second.tokens_BL)
    assert torch.equal(first.f_hat_BCPP, second.f_hat_BCPP)


@pytest.mark.parametrize("policy", ["coupled", "rejection", "kl:0.5", "handoff:3", "code:3"])
@pytest.mark.parametrize("bonus", [False, True])
def test_graphs_change_nothing(mode: ModelPair, bonus: bool, policy: str) -> None:
    eager = SpeculativeDecoder(mode, DecoderOptions(5, bonus, parse_policy(policy)))
    graphed = SpeculativeDecoder(mode, DecoderOptions(5, bonus, parse_policy(policy), graphs=True))
    requests = [REQUEST, replace(REQUEST, seed=9), Request((4,), 2), replace(REQUEST, cfg=4.0, top_k=50), REQUEST]
    expected = [eager.decode(request, mode.noise(request)) for request in requests]
    # all traces are kept: a later decode must not write into an earlier one's tensors
    actual = [graphed.decode(request, mode.noise(request)) for request in requests]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.tokens_BL, b.tokens_BL)
        assert torch.equal(a.f_hat_BCPP, b.f_hat_BCPP)
        assert a.intermediates is not None
        assert b.intermediates is not None
        for name, tensor in a.intermediates.named().items():
            assert torch.equal(tensor.nan_to_num(7.0), b.intermediates.named()[name].nan_to_num(7.0)), name


def test_recorded_and_compiled_work_is_judged_like_any_other(mode: ModelPair) -> None:
    settings = [Settings(5, True, graphs=True, compiled=True), Settings(2, compiled=True)]
    result = verify_here(mode, build_decoder, settings, [REQUEST, replace(REQUEST, seed=9)])
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence


def test_a_draft_of_another_dtype_changes_no_token() -> None:
    set_precision(False)
    models = load_digits().to(torch.device("cuda"), torch.float32, torch.bfloat16)
    verdict = verify_here(models, build_decoder, [Settings(3), Settings(9, bonus=True)], [REQUEST]).verdict
    assert verdict in (Verdict.IDENTICAL, Verdict.TIE)


def test_fresh_images_stay_within_the_stored_errors_and_near_them(mode: ModelPair) -> None:
    entry = next((entry for entry in load_budgets(SHIPPED_BUDGETS) if entry.mode == mode_of(mode)), None)
    entry = entry or measure_budget(mode)  # another GPU than that of the stored entries
    fresh = errors(mode, Request((2, 5), 71))
    for name in ("rows", "rows_rms", "f_hat"):
        assert getattr(entry, name) / 4 < getattr(fresh, name) < 1.4 * getattr(entry, name), name


@pytest.mark.parametrize("tf32", [False, True])
def test_the_result_states_what_is_switched_off(tf32: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--seeds", "0:1", "--labels", "0", "--draft-len", "2", "--json", str(report)]
    assert command(monkeypatch, "verify", "--device", "cuda", *options, *(["--tf32"] if tf32 else [])) == 0
    set_precision(False)
    stated = json.loads(report.read_text())["precision"]
    assert stated == {"tf32_matmul": tf32, "tf32_convolution": tf32, "deterministic_convolution": True}


def test_a_decoder_in_a_process_of_its_own_meets_the_same_numbers_on_the_device():
    models = load_digits().to("cuda")
    requests = [REQUEST, Request((4, 5), 9)]
    result = verify(models, "tests.bent:honest", [Settings(2), Settings(5)], requests)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence


@pytest.mark.parametrize(("name", "component"), [("exits", "process"), ("killed", "process"), ("hoards", "process")])
def test_a_process_that_dies_on_the_device_is_a_defect(name: str, component: str):
    result = verify(load_digits().to("cuda"), f"tests.bent:{name}", [Settings(2)], [REQUEST])
    assert (result.verdict, result.first_divergence.component) == (Verdict.DEFECT, component)


def test_weights_changed_on_the_device_are_the_decoders_own():
    assert (
        verify(load_digits().to("cuda"), "tests.bent:rounds_target", [Settings(2)], [REQUEST]).verdict is Verdict.DEFECT
    )


def test_nothing_of_the_judges_lies_in_memory_that_a_decoder_can_open():
    models = load_digits().to("cuda")
    with closing(start_runner(models, "tests.bent:honest", [Settings(2)], 1, Terms())) as runner:
        later = torch.ones(8, device="cuda")
        own, lent = (
            addresses(models) | {later.data_ptr()},
            addresses(runner._copies) | {runner.mailbox.block.data_ptr()},
        )
        segments = [{block["address"] for block in each["blocks"]} for each in torch.cuda.memory_snapshot()]
    assert own <= set().union(*segments) and lent <= set().union(*segments)
    assert not [each for each in segments if each & own and each & lent], "a handle opens the whole segment"


def addresses(models: ModelPair) -> set[int]:
    return {w.data_ptr() for part in (models.draft, models.target, models.vae) for w in part.weights.values()}
