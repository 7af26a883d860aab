"""Whatever a decoder returns: a trace of another form is a defect that names the field, never a crash."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.decoders._factory import load_factory
from harness.errors import InputError
from harness.judge import _form as form
from harness.judge._form import expected_tensors as whole
from harness.judge._form import made_plain, malformed, rounds_by_beginning
from harness.judge._verdict import Verdict
from harness.models._pair import close_pair
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Round, Trace
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny, verify_here
from tests.unit.judge.planted_lines import LOCKSTEP, module_of

MODELS, REQUEST = tiny(Layout((1, 2, 3))), Request((0, 1), 0)
RIGHT = build_decoder(MODELS, Settings(2)).decode(REQUEST, MODELS.noise(REQUEST))


class Computing(torch.Tensor):
    """A tensor whose numbers nobody can take."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(arg.as_subclass(torch.Tensor) if isinstance(arg, cls) else arg for arg in args))


WRONG: dict[str, tuple[Any, str]] = {
    "None": (None, "decode returned None, not a Trace"),
    "a dict": ({}, "decode returned a dict, not a Trace"),
    "list of tokens": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL.tolist()), "tokens_BL is a list, not a tensor"),
    "tokens that compute for themselves": (
        replace(RIGHT, tokens_BL=RIGHT.tokens_BL.as_subclass(Computing)),
        "tokens_BL is a Computing, not a plain tensor",
    ),
    "f_hat in a byte": (
        replace(RIGHT, intermediates=replace(RIGHT.intermediates, rows_RLV=RIGHT.intermediates.rows_RLV.to(
            torch.float8_e5m2))), "intermediates.rows_RLV is torch.float8_e5m2, not floating point"
    ),
    "no tokens": (replace(RIGHT, tokens_BL=None), "tokens_BL is None, not a tensor"),
    "real tokens": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL.float()), "tokens_BL is torch.float32"),
    "meta tokens": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL.to("meta")), "tokens_BL is no dense tensor"),
    "sparse f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP.to_sparse()), "f_hat_BCPP is no dense tensor"),
    "numpy f_hat": (replace(RIGHT, f_hat_BCPP=np.zeros(1)), "f_hat_BCPP is a ndarray, not a tensor"),
    "half f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP.half()), "f_hat_BCPP is torch.float16, not"),
    "whole f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP.long()), "f_hat_BCPP is torch.int64"),
    "complex f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP.cfloat()), "f_hat_BCPP is torch.complex64"),
    "no writes": (replace(RIGHT, scale_writes_BS=None), "scale_writes_BS is None, not a tensor"),
    "no rounds": (replace(RIGHT, rounds=None), "rounds must be empty or a list of one list an image"),
    "one image's rounds": (replace(RIGHT, rounds=RIGHT.rounds[:1]), "rounds must be empty or a list of one list"),
    "rounds of numbers": (replace(RIGHT, rounds=[[1], [2]]), "rounds must hold Round records"),
    "broken rounds": (
        replace(RIGHT, rounds=[[replace(RIGHT.rounds[0][0], first="a")], []]), "rounds must hold Round records"
    ),
    **{
        f"{name} of {count}": (
            replace(RIGHT, rounds=[[replace(RIGHT.rounds[0][0], **{name: count})], []]), "rounds must hold Round"
        )
        for name in ("first", "drafted", "accepted", "kept", "corrected", "bonus") for count in (1000, 10**18, 10**400)
    },
    "calls of any size": (replace(RIGHT, target_calls=[10**400, 1]), "target_calls must be empty or a list of"),
    "dict of intermediates": (replace(RIGHT, intermediates={}), "intermediates is a dict, not Intermediates or None"),
    "int32 tokens": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL.int()), "tokens_BL is torch.int32, not torch.int64"),
    "whole rows": (
        replace(RIGHT, intermediates=replace(RIGHT.intermediates, rows_RLV=RIGHT.intermediates.rows_RLV.long())),
        "intermediates.rows_RLV is torch.int64, not floating point",
    ),
    "real writes": (
        replace(RIGHT, scale_writes_BS=RIGHT.scale_writes_BS.float()), "scale_writes_BS is torch.float32, not integers"
    ),
    "half of the intermediates": (
        replace(RIGHT, intermediates=replace(RIGHT.intermediates, x_RLD=None)), "intermediates.x_RLD is None"
    ),
    "no calls": (replace(RIGHT, target_calls=None), "target_calls must be empty or a list of one whole number"),
    "too many calls": (replace(RIGHT, target_calls=[1, 2, 3]), "target_calls must be empty or a list of one"),
    "negative rows": (replace(RIGHT, target_rows=[-5, 1]), "target_rows must be empty or a list of one whole number"),
    "tensor calls": (replace(RIGHT, draft_calls=[torch.tensor(1)] * 2), "draft_calls must be empty or a list of one"),
}  # fmt: skip


class Returning:
    contract = "token-identical"

    def __init__(self, trace: object) -> None:
        self.trace = trace

    def decode(self, request: Request, noise: object) -> Any:
        return self.trace


def judged(trace: object) -> Any:
    return verify_here(MODELS, lambda models, settings: Returning(trace), [Settings(2)], [REQUEST])


def test_a_right_trace_is_well_formed():
    assert malformed(MODELS, REQUEST, RIGHT) is None
    assert malformed(MODELS, REQUEST, replace(RIGHT, rounds=[], target_calls=[], intermediates=None)) is None
    assert judged(RIGHT).verdict is Verdict.IDENTICAL


def test_tuples_and_whole_numbers_of_numpy_are_as_good_as_lists_and_pythons():
    rounds = tuple(tuple(replace(turn, first=np.int64(turn.first)) for turn in turns) for turns in RIGHT.rounds)
    trace = replace(RIGHT, rounds=rounds, target_calls=tuple(np.int32(count) for count in RIGHT.target_calls))
    assert judged(trace).verdict is Verdict.IDENTICAL
    plain, remarks = made_plain(trace)
    assert (plain.rounds, plain.target_calls, remarks) == (RIGHT.rounds, RIGHT.target_calls, [])


@pytest.mark.parametrize("name", WRONG)
def test_another_form_is_a_defect_that_names_the_field(name: str):
    trace, said = WRONG[name]
    result = judged(trace)
    assert result.verdict is Verdict.DEFECT
    first = result.first_divergence
    assert first.component == "trace"
    assert first.detail.startswith(said)
    assert json.loads(result.to_json())["verdict"] == "DEFECT"


BENT: dict[str, tuple[Any, str, str]] = {
    "flat f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP[:1]), "f_hat", "f_hat_BCPP is (1, 4, 3, 3), not (2, 4,"),
    "short": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL[:, 1:]), "scheduling", "tokens_BL is (2, 13), not (2, 14)"),
    "few writes": (replace(RIGHT, scale_writes_BS=RIGHT.scale_writes_BS[:1]), "scheduling", "scale_writes_BS is (1,"),
    "nan f_hat": (replace(RIGHT, f_hat_BCPP=RIGHT.f_hat_BCPP * torch.nan), "f_hat", "f_hat is not finite"),
    "swapped f_hats": (
        replace(RIGHT, intermediates=replace(RIGHT.intermediates, f_hat_SBCPP=RIGHT.intermediates.f_hat_SBCPP.mT[:2])),
        "trace",
        "intermediates.f_hat_SBCPP is (2, 2, 4, 3, 3), not (3, 2, 4, 3, 3)",
    ),
    "negative token": (replace(RIGHT, tokens_BL=RIGHT.tokens_BL - 100), "scheduling", "token outside 0..10"),
    "a repeated round": (
        replace(RIGHT, rounds=[turns + turns[-1:] for turns in RIGHT.rounds]),
        "scheduling",
        "rounds finish scales [0, 1, 2, 2], not 0..2 once each; that at scale 2 finishes 1 scale "
        "(accepted 1, corrected 0, bonus 0), and the next round begins at scale 2",
    ),
    "a round that accepts the corrected scale": (
        replace(RIGHT, rounds=[[*turns[:-1], replace(turns[-1], accepted=1)] for turns in RIGHT.rounds]),
        "scheduling",
        "rounds finish scales [0, 1, 2, 3], not 0..2 once each; that at scale 2 finishes 2 scales "
        "(accepted 1, corrected 1, bonus 0), and the pyramid has 3 scales",
    ),
    "rounds of nothing": (
        replace(RIGHT, rounds=[[] for _ in RIGHT.rounds]),
        "scheduling",
        "rounds finish scales [], not 0..2 once each: leave rounds out where nothing is drafted",
    ),
    "rounds in another order": (
        replace(RIGHT, rounds=[turns[::-1] for turns in RIGHT.rounds]),
        "scheduling",
        "rounds finish scales [2, 0, 1], not 0..2 once each; the first round begins at scale 2",
    ),
    "written twice": (
        replace(RIGHT, scale_writes_BS=2 * RIGHT.scale_writes_BS), "scheduling", "scale 0 was made final 2 times"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_a_trace_that_can_be_read_is_judged_and_its_counts_are_kept(name: str):
    trace, component, said = BENT[name]
    result = judged(trace)
    first = result.first_divergence
    assert (result.verdict, first.component, first.seed) == (Verdict.DEFECT, component, REQUEST.seed)
    assert first.detail.startswith(said)
    assert result.settings[0].target_calls == RIGHT.target_calls
    assert result.settings[0].total("defects") == 1


@pytest.mark.parametrize("wrong", [0, 1])
def test_where_rounds_alone_are_wrong_tokens_are_compared_all_the_same(wrong: int):
    rounds = [[replace(turn, accepted=0, corrected=False, bonus=False) for turn in turns] for turns in RIGHT.rounds]
    tokens_BL = RIGHT.tokens_BL.clone()
    tokens_BL[0, -1] = (tokens_BL[0, -1] + wrong) % 11
    result = judged(replace(RIGHT, rounds=rounds, tokens_BL=tokens_BL))
    setting = result.settings[0]
    *before, last = setting.rows[0].judgement.defects
    assert last.component == "scheduling"
    assert last.detail.endswith(
        "; that at scale 0 finishes 0 scales (accepted 0, corrected 0, bonus 0), and the next round begins at scale 2"
    )
    # what the changed token makes wrong is named first
    assert [each.component for each in before] == ["draw", "f_hat"] * wrong
    assert result.first_divergence == [*before, last][0]
    assert (setting.total("draws"), setting.total("wrong_tokens")) == (28, wrong)
    assert result.not_compared == {
        "calls and rows": f"the rounds are wrong, as of seed {last.seed}, image {last.image}: {last.detail}"
    }


def test_rounds_that_are_wrong_come_after_tokens_and_before_the_counts_that_follow_from_them():
    rounds = [turns[:-1] for turns in RIGHT.rounds]  # the last one is forgotten, and its rows with it
    rows = [sum(turn.target_rows for turn in turns) for turns in rounds]
    result = judged(replace(RIGHT, rounds=rounds, target_rows=rows))
    defects = result.settings[0].rows[0].judgement.defects
    assert [each.component for each in defects] == ["scheduling", "counts", "counts"]
    token = replace(defects[0], component="accept", scale=2)
    shape = replace(defects[0], image=-1)  # of the whole batch: nothing else is known of it
    assert sorted([*defects, token, shape], key=lambda each: each.order) == [shape, token, *defects]


def test_a_token_outside_the_codebook_is_told_by_image_and_scale():
    for position, scale in ((0, 0), (4, 1), (5, 2)):
        tokens_BL = RIGHT.tokens_BL.clone()
        tokens_BL[1, position] = 11
        wrong = malformed(MODELS, REQUEST, replace(RIGHT, tokens_BL=tokens_BL))
        assert (wrong.detail, wrong.image, wrong.scale) == ("token outside 0..10", 1, scale)


def test_what_is_computed_with_lies_where_the_networks_do(monkeypatch: pytest.MonkeyPatch):
    """What says how often a scale was made may lie anywhere."""
    monkeypatch.setattr(type(MODELS), "device", property(lambda models: torch.device("cuda", 0)))
    said = malformed(MODELS, REQUEST, RIGHT).detail
    assert said == "tokens_BL lies on cpu, not on cuda:0"
    monkeypatch.setattr(form, "expected_tensors", lambda *a: {"scale_writes_BS": whole(*a)["scale_writes_BS"]})
    assert malformed(MODELS, REQUEST, RIGHT) is None


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("change", [torch.zeros_like, lambda f_hat: f_hat + 1e-3, lambda f_hat: f_hat.flip(0)])
def test_a_wrong_final_f_hat_is_a_defect_whatever_else_is_shown(change: Callable[..., Any], keep: bool):
    kept = RIGHT.intermediates if keep else None
    result = judged(replace(RIGHT, f_hat_BCPP=change(RIGHT.f_hat_BCPP), intermediates=kept))
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence.component == "f_hat"


def test_a_decoder_that_leaves_the_program_is_a_defect():
    class Leaving(Returning):
        def decode(self, request: Request, noise: object) -> Trace:
            raise SystemExit(0)

    result = verify_here(MODELS, lambda models, settings: Leaving(None), [Settings(2)], [REQUEST])
    assert (result.verdict, result.first_divergence.component) == (Verdict.DEFECT, "crash")


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "decoder_of_this_folder.py").write_text("def factory(models, settings): ...\n")
    (tmp_path / "module_with_a_mistake.py").write_text("1 / 0\n")
    (tmp_path / "module_that_leaves.py").write_text("raise SystemExit(5)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("nowhere")  # restores the path afterwards
    assert callable(load_factory("decoder_of_this_folder:factory"))
    (tmp_path / "module_with_another.py").write_text("\nimport module_with_a_mistake\n")
    (tmp_path / "module_that_lacks.py").write_text("\n\nimport nothing_of_the_kind\n")
    for name, error, remedy in (
        ("module_with_a_mistake", "ZeroDivisionError", f"mend {tmp_path / 'module_with_a_mistake.py'}:1"),
        ("module_with_another", "ZeroDivisionError", f"mend {tmp_path / 'module_with_a_mistake.py'}:1"),
        ("module_that_leaves", "SystemExit", f"mend {tmp_path / 'module_that_leaves.py'}:1"),
        ("module_that_lacks", "ModuleNotFoundError", f"install that, or mend {tmp_path / 'module_that_lacks.py'}:3"),
        ("module_of_nowhere", "ModuleNotFoundError", "see how it is spelt, and run in the folder where it lies"),
    ):
        said = rf"implementation={name}:x: cannot be imported \({error}: .*\); {re.escape(remedy)}$"
        with pytest.raises(InputError, match=said):
            load_factory(f"{name}:x")
    typo = tmp_path / "module_with_a_typo.py"
    typo.write_text("factory = 1\ndef factory(models settings): ...\n")
    rule = "cannot be imported (SyntaxError: invalid syntax (module_with_a_typo.py, line 2))"
    with pytest.raises(InputError) as caught:
        load_factory("module_with_a_typo:factory")
    assert str(caught.value) == f"implementation=module_with_a_typo:factory: {rule}; mend {typo}:2"
    with pytest.raises(InputError, match=r"must read package\.module:factory"):
        load_factory(".x:y")


def test_inputs_as_wide_as_the_drafts_are_the_drafts():
    models = replace(MODELS, draft=tiny(Layout((1, 2, 3), D=2 * MODELS.target.config.D)).draft)
    wide = replace(RIGHT.intermediates, x_RLD=RIGHT.intermediates.x_RLD.repeat(1, 1, 2))
    found = malformed(models, REQUEST, replace(RIGHT, intermediates=wide))
    assert (found.component, "inputs of the draft in place of the target's" in found.detail) == ("network", True)
    wider = replace(RIGHT.intermediates, x_RLD=RIGHT.intermediates.x_RLD.repeat(1, 1, 3))
    assert malformed(models, REQUEST, replace(RIGHT, intermediates=wider)).component == "trace"


@pytest.mark.parametrize("mistake", ["if (wrong > 1).any()", "if wrong[0]"])
def test_a_scale_that_is_accepted_after_wrong_tokens_is_that_where_its_round_is_miscounted(
    mistake: str, tmp_path: Path
):
    """The round counts scales without a wrong token, and goes on after one: its scales are those before the next."""
    decoder = module_of(LOCKSTEP.replace("if wrong.any()", mistake), tmp_path / "lockstep.py").factory
    requests = [Request((0, 1, 2), seed) for seed in range(3)]
    found = verify_here(close_pair(tiny(Layout((1, 2, 3, 4))), 0.1), decoder, [Settings(3)], requests)
    first = found.first_divergence
    assert first is not None
    assert first.component == "accept"
    assert first.detail.endswith("that its input does not hold")
    assert found.not_compared["calls and rows"].startswith("the rounds are wrong, as of seed 2, image ")
    defects = [each for row in found.settings[0].rows for each in row.judgement.defects]
    assert {each.component for each in defects} <= {"accept", "scheduling"}


@pytest.mark.parametrize(
    ("begins", "accepted"),
    [((0, 2), [1, 0]), ((0,), [2]), ((0, 1, 2), [0, 0, 0]), ((1, 2), None), ((0, 0), None), ((), None)],
)
def test_rounds_are_taken_to_end_where_the_next_begins_or_not_at_all(
    begins: tuple[int, ...], accepted: list[int] | None
):
    rounds = [Round(first, 3, 3, False, True, 1, 2, 3, 4) for first in begins]
    found = rounds_by_beginning(MODELS.pyramid, replace(RIGHT, rounds=[rounds, rounds]))
    if accepted is None:
        assert found == []
        return
    assert [[each.accepted for each in turns] for turns in found] == [accepted, accepted]
    for turns in found:
        assert [si for each in turns for si in range(each.first, each.first + each.finished)] == list(MODELS.pyramid)


def test_a_round_that_is_left_out_makes_no_count_wrong_of_the_others():
    """The first one would have to compute what the second did."""
    left_out = [turns[:-1] for turns in RIGHT.rounds]
    defects = judged(replace(RIGHT, rounds=left_out)).settings[0].rows[0].judgement.defects
    assert [each.component for each in defects] == ["scheduling"] * len({each.image for each in defects})


@pytest.mark.parametrize("later", range(6, 14))
def test_f_hat_comes_after_every_token_that_it_is_made_of(later: int):
    """Its worst place may be before a wrong token's."""
    tokens_BL = RIGHT.tokens_BL.clone()
    for position in (5, later):
        tokens_BL[0, position] = (tokens_BL[0, position] + 1) % 11
    defects = judged(replace(RIGHT, tokens_BL=tokens_BL)).settings[0].rows[0].judgement.defects
    assert [each.component for each in defects] == ["draw", "draw", "f_hat"]
