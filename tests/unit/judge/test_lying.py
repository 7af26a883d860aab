"""Decoders that say more than they did go through a whole verification, and a judge that did not look is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from harness.decoders._runner import Terms
from harness.judge import _components as components
from harness.judge import _decode as decode
from harness.judge._verdict import Verdict
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.runs import _exercised as exercised
from harness.runs._cover import covering, plan_of, verify_coverage_plan
from harness.runs._decodes import Decodes
from harness.runs._result import Verification
from tests import lying
from tests.helpers import Layout, command, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3, 4)))
REQUESTS = [Request((0, 1), 0), Request((2,), 1)]
Planted = tuple[object, str, Callable]  # module, name, and what stands there in a judge that does not look


def verified(name: str, *settings: Settings) -> Verification:
    return verify_here(MODELS, getattr(lying, name), settings, REQUESTS)


def any_number_is_close(actual: torch.Tensor, expected: torch.Tensor, error: float | torch.Tensor) -> torch.Tensor:
    return TRUE_CLOSE(actual.nan_to_num(), torch.where(actual.isnan(), actual.nan_to_num(), expected), error)


def drafted_alone(*arguments: object) -> list:
    pyramid, request, trace, contract = arguments
    return TRUE_COUNTS(pyramid, request, trace, contract) if all(t.drafted for r in trace.rounds for t in r) else []


TRUE_CLOSE, TRUE_COUNTS = components._close, decode._wrong_counts
DEFECTS = {
    "nan_kept": ([Settings(2)], "f_hat", (components, "_close", any_number_is_close)),
    "few_rows": ([Settings(2, policy="code:4")], "counts", (decode, "_wrong_counts", drafted_alone)),
}


@pytest.mark.parametrize(("name", "settings", "component", "planted"), [(k, *row) for k, row in DEFECTS.items()])
def test_what_a_trace_cannot_hold_is_a_defect_with_its_component(
    name: str, settings: Sequence[Settings], component: str, planted: Planted, monkeypatch: pytest.MonkeyPatch
):
    result = verified(name, *settings)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == component
    monkeypatch.setattr(*planted)
    assert verified(name, *settings).verdict is not Verdict.DEFECT  # nobody else notices


def test_a_decoder_that_drafts_under_one_setting_alone_proves_nothing_about_the_others():
    result = verified("drafts_first", Settings(1), Settings(3))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert [setting.verdict for setting in result.settings] == [Verdict.IDENTICAL, Verdict.INCONCLUSIVE]
    assert any("nothing was drafted" in why for why in result.inconclusive)


def test_a_decoder_that_ignores_bonus_scales_is_not_said_to_have_them_right(monkeypatch: pytest.MonkeyPatch):
    bonus = ("a bonus scale", "a bonus scale in a batch that diverges")
    decodes = Decodes(lying.bonus_ignored, plan_of(covering(MODELS)), Terms(in_process=True))
    result = verify_coverage_plan(MODELS, decodes)
    assert [f"never exercised: {word}" for word in bonus] == [why for why in result.inconclusive if "bonus" in why]
    silent = [replace(aspect, claim="") for aspect in exercised.ASPECTS]
    monkeypatch.setattr(exercised, "ASPECTS", silent)
    assert not any("bonus" in why for why in verify_coverage_plan(MODELS, decodes).inconclusive)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--implementation", "tests.lying:nan_kept", "--draft-len", "5"], 1, "f_hat"),
        (["--implementation", "tests.lying:drafts_first", "--draft-len", "1,5"], 3, "nothing was drafted"),
    ],
)
def test_the_command_says_so_too(
    arguments: list[str], status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "verify", "--seeds", "0", "--labels", "0", "--in-process", *arguments) == status
    assert said in capsys.readouterr().out
