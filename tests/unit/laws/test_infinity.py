"""The laws on networks of Infinity: the right decoder keeps them, planted bugs break the one that is about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.laws import LAWS, Case, CaseList, Law, Subject, run_conformance, try_law
from harness.laws import _conformance as few
from harness.laws._conformance import LawsPlace, try_laws_quickly
from harness.models.infinity import transformer
from harness.models.infinity.transformer import InfinityTransformer, block_name
from harness.mutants._mutant import Mutant
from harness.protocol import ScaleGuidance
from harness.speculative.sampler import build_decoder
from tests.helpers import decoder_factory
from tests.unit.judge.planted_infinity import BUGS

SOME: dict[str, Any] = {"family": "infinity", "patch_nums": (1, 3, 5, 4)}
LISTED = [
    Case(labels=(0, 1, 3), draft_len=2, bonus=True, **SOME),  # guided at the logits
    Case(labels=(1, 2), weights=2, draft_len=3, policy="rejection", cfg=0.5, seed=1, **SOME),  # there and between
    # between blocks alone, of negative texts; four bits more a channel
    Case(labels=(2,), weights=1, depth=2, draft_len=2, top_p=0.9, order="batch", seed=2, **SOME),
    Case(labels=(1,), weights=4, cfg=0.7071067811865476, seed=5, family="infinity", patch_nums=(1, 2, 3, 4, 5)),
    Case(labels=(0, 3), weights=3, depth=2, draft_len=1, seed=3, shared_adaln=True, **SOME),  # deep, then the logits
]
OF_VAR = {"reuse.labels"}
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
    assert {case.request.scale_guidance.places for case in LISTED} == {(0,), (0, -1), (-1,), (-3, 0)}
    assert {bool(case.request.negative_texts) for case in LISTED} == {True, False}
    assert all(1.0 in case.request.scale_guidance.weights for case in LISTED)
    assert all(h != w for h, w in LISTED[0].pyramid.sides[1:])
    assert all(pair.target.config.rounds for pair in pairs)
    for option in ("ca_gamma", "norm0_ve", "two_layer_head", "levels_once", "shared_adaln"):
        assert {getattr(pair.target.config, option) for pair in pairs} == {True, False}, option
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
    monkeypatch.setattr(few, "LAWS", (BY_ID["state.latent"], BY_ID["reuse.labels"]))
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


NETWORK, CODES = "harness.models.infinity.transformer", "harness.models.infinity.autoencoder"


def _level_of_every_block(self: InfinityTransformer, *arguments: Any, **named: Any) -> Tensor:
    """Run the blocks as if each were a chunk of its own, with levels before every chunk."""
    config = replace(self.config, chunks=self.config.depth, levels_once=False)
    weights = dict(self.weights)
    for i in range(config.depth):
        was = block_name(self.config, i)
        inner = {name.removeprefix(was): w for name, w in self.weights.items() if name.startswith(was)}
        weights |= {block_name(config, i) + name: w for name, w in inner.items()}
    return HIDDEN(replace(self, config=config, weights=weights), *arguments, **named)


def _copied(x_RnD: Tensor, guidance: ScaleGuidance, level_n: Tensor) -> Tensor:
    """Copy the guided rows over the unconditional ones where a scale's weight is 1, too."""
    conditional_BnD, other_BnD = x_RnD.chunk(2)
    w_n1 = x_RnD.new_tensor(guidance.weights)[level_n][:, None]
    return torch.cat([w_n1 * conditional_BnD + (1 - w_n1) * other_BnD] * 2)


def _columns_first(idx_Bl: Tensor, h: int, w: int, C: int) -> Tensor:
    bits_BNhw = idx_Bl.view(len(idx_Bl), w, h, -1).permute(0, 3, 2, 1)
    return bits_BNhw if bits_BNhw.shape[1] == C else F.pixel_shuffle(bits_BNhw, 2)


def _rows_and_columns_of_a_patch(idx_Bl: Tensor, h: int, w: int, C: int) -> Tensor:
    bits_BNhw = idx_Bl.view(len(idx_Bl), h, w, -1).permute(0, 3, 1, 2)
    if bits_BNhw.shape[1] == C:
        return bits_BNhw
    return F.pixel_shuffle(bits_BNhw.unflatten(1, (C, 2, 2)).transpose(2, 3).flatten(1, 3), 2)


def _channels_last(idx_Bl: Tensor, h: int, w: int, C: int) -> Tensor:
    bits_BNhw = idx_Bl.view(len(idx_Bl), h, w, -1).permute(0, 3, 1, 2)
    if bits_BNhw.shape[1] == C:
        return bits_BNhw
    return F.pixel_shuffle(bits_BNhw.unflatten(1, (4, C)).transpose(1, 2).flatten(1, 2), 2)


def _unrotated_keys(x_RHnc: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    a, b = x_RHnc.chunk(2, -1)  # halves, not neighbours
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x_RHnc.dtype)


def _one_text(self: InfinityTransformer, name: str, q_RnHc: Tensor, texts: Any) -> Tensor:
    return ATTEND(self, name, q_RnHc, [torch.cat(texts)] * len(texts))


def _wide(self: InfinityTransformer, x: Tensor) -> Tensor:
    return x


ATTEND, HIDDEN, ROTATED = InfinityTransformer._attend, InfinityTransformer.hidden, transformer.rotated
# what both sides share: law, what stands in which place
SHARED = {
    "level before every block": ("numbers.transformer", f"{NETWORK}:InfinityTransformer.hidden", _level_of_every_block),
    "rows copied where a weight is 1": ("numbers.transformer", f"{NETWORK}:guided_between", _copied),
    "halves rotated": ("numbers.transformer", f"{NETWORK}:rotated", _unrotated_keys),
    "all texts read by every row": ("numbers.transformer", f"{NETWORK}:InfinityTransformer._attend", _one_text),
    "no rounding": ("numbers.transformer", f"{NETWORK}:InfinityTransformer._rounded", _wide),
    "GELU without tanh": ("numbers.transformer", f"{NETWORK}:_gelu", F.gelu),
    "columns before rows": ("numbers.encode", f"{CODES}:to_map", _columns_first),
    "channels of a patch spread otherwise": ("numbers.encode", f"{CODES}:to_map", _channels_last),
    "a patch turned": ("numbers.encode", f"{CODES}:to_map", _rows_and_columns_of_a_patch),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_bug_in_what_both_sides_share_breaks_its_law(name: str):
    law_id, place, wrong = SHARED[name]
    with Mutant("numbers.shared", "", "", shared={place: wrong}).planted():
        row = try_law(BY_ID[law_id], Subject(build_decoder), CaseList(LISTED, passes=0))
    assert row.violation is not None


@pytest.mark.parametrize("name", ["a patch turned", "channels of a patch spread otherwise"])
def test_the_few_cases_of_a_verification_meet_patches(name: str, monkeypatch: pytest.MonkeyPatch):
    law_id, place, wrong = SHARED[name]
    monkeypatch.setattr(few, "LAWS", (BY_ID[law_id],))
    with Mutant("numbers.shared", "", "", shared={place: wrong}).planted():
        tried = try_laws_quickly(build_decoder, where=LawsPlace(family="infinity"))
    assert [each.component for each in tried.broken] == ["quantizer"]


def test_rows_that_sit_elsewhere_are_named_before_the_cache_that_holds_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few, "LAWS", (BY_ID["positions.query"], BY_ID["state.sync"]))
    bug = decoder_factory(BUGS["coordinates rounded half up"][0])
    tried = try_laws_quickly(bug, where=LawsPlace(family="infinity"))
    assert [each.component for each in tried.broken] == ["positions", "cache"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("law_id", ["numbers.transformer", "numbers.encode", "numbers.pixels", "numbers.precision"])
def test_the_numbers_that_both_sides_share_are_right_in_every_dtype(law_id: str, dtype: str):
    listed = CaseList([replace(case, dtype=dtype, exact=False) for case in LISTED])
    assert try_law(BY_ID[law_id], Subject(build_decoder), listed).violation is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_bug_in_what_both_sides_share_is_found_where_numbers_are_rounded(dtype: str):
    listed = CaseList([replace(case, dtype=dtype, exact=False) for case in LISTED], passes=0)
    wrong = {"float32": 1e-4, "bfloat16": 0.3}[dtype]

    def moved(x_RHnc: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = turn
        return ROTATED(x_RHnc, (cos * (1 + wrong), sin))

    with Mutant("numbers.shared", "", "", shared={f"{NETWORK}:rotated": moved}).planted():
        assert try_law(BY_ID["numbers.transformer"], Subject(build_decoder), listed).violation is not None
