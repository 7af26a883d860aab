"""A run file says all that its run said, and keeps the pictures of its worst images."""

from __future__ import annotations

import io
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness.decoders._runner import Terms
from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.mutants.positions import OFFSET
from harness.pool._employ import Parallelism
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.runs import _runfile as runfile
from harness.runs import pictures as kept_pictures
from harness.runs._cover import covering, plan_of, verify_coverage_plan
from harness.runs._decodes import Decodes, recorded_result, verify_decodes
from harness.runs._plan import Plan
from harness.runs._result import Verification
from harness.runs._runfile import RunFileOptions, pictures_of
from harness.runs.pictures import TIE, UNCLAIMED, WRONG, Best
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, seal_anew, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUESTS = [Request((0, 1, 2), seed) for seed in range(4)]
HERE = Terms(in_process=True)


def run(path: Path, factory=build_decoder, policy: str = "coupled", workers: int = 1) -> Verification:
    plan = Plan.of([Settings(1, policy=policy), Settings(2, policy=policy)], REQUESTS)
    return verify_decodes(
        MODELS, Decodes(factory, plan, HERE), Parallelism(workers), store=RunFileOptions(path, recipe={})
    )


def said(result: Verification) -> object:
    listed = [(str(s.settings), s.draft, s.verdict, s.refused, len(s.rows), s.target_calls) for s in result.settings]
    about = result.device, result.dtype, result.draft_dtype, result.models, str(result.budget), str(result.coverage)
    return result.summary, str(result.first_divergence), result.alone, result.inconclusive, listed, about


@pytest.mark.parametrize(
    ("factory", "policy", "verdict"),
    [
        (build_decoder, "coupled", Verdict.IDENTICAL),
        (OFFSET, "coupled", Verdict.DEFECT),
        (build_decoder, "match:0.5", Verdict.CONSISTENT),
    ],
)
def test_a_file_says_what_its_run_said(factory, policy: str, verdict: Verdict, tmp_path: Path):
    result = run(tmp_path / "a.db", factory, policy)
    again = recorded_result(tmp_path / "a.db")
    assert result.verdict is again.verdict is verdict
    assert said(again) == said(result)
    assert again.is_whole


def test_a_covering_design_says_again_what_it_covered(tmp_path: Path):
    models = tiny(Layout((1, 2, 3)))
    terms, store = replace(HERE, sequential=False), RunFileOptions(tmp_path / "a.db", recipe={})

    def only_fixed_lengths(networks, settings):
        if not isinstance(settings.draft_len, int):
            raise InputError("draft_len", settings.draft_len, "must be a number", "pass --draft-len 2")
        return build_decoder(networks, settings)

    result = verify_coverage_plan(
        covering(models)[0].models, Decodes(only_fixed_lengths, plan_of(covering(models)), terms), store=store
    )
    assert result.coverage.refused > 0
    assert said(recorded_result(tmp_path / "a.db")) == said(result)
    assert recorded_result(tmp_path / "a.db").covers


def test_a_run_that_was_killed_is_not_whole(tmp_path: Path):
    run(tmp_path / "a.db")
    base = sqlite3.connect(tmp_path / "a.db")
    base.execute("DELETE FROM judged WHERE task = 3")
    seal_anew(base)
    base.commit()
    base.close()
    again = recorded_result(tmp_path / "a.db")
    assert (again.is_whole, again.unfinished, again.images) == (False, 1, 18)


def test_an_empty_run_is_inconclusive(tmp_path: Path):
    run(tmp_path / "a.db")
    base = sqlite3.connect(tmp_path / "a.db")
    base.execute("DELETE FROM judged")
    seal_anew(base)
    base.commit()
    base.close()
    assert recorded_result(tmp_path / "a.db").verdict is Verdict.INCONCLUSIVE


def test_a_file_that_does_not_say_its_networks_is_refused(tmp_path: Path):
    run(tmp_path / "a.db")
    base = sqlite3.connect(tmp_path / "a.db")
    base.execute("DELETE FROM run WHERE key = 'networks'")
    seal_anew(base)
    base.commit()
    base.close()
    with pytest.raises(InputError, match="holds no record of a run that can be read"):
        recorded_result(tmp_path / "a.db")


def test_pictures_of_the_worst_images_are_kept_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runfile, "MOST_PICTURES", 5)
    result = run(tmp_path / "a.db", OFFSET)
    found = pictures_of(tmp_path / "a.db")
    assert len(found) == 5
    assert found == sorted(found, key=lambda picture: picture.rank)
    wrong = [row.judgement.wrong_tokens for setting in result.settings for row in setting.rows]
    assert found[0].marks.count(WRONG) >= sum(wrong) / 24  # of 24 images: the worst one is no better than the mean
    first = result.first_divergence
    assert first is not None
    for picture in found:
        assert len(picture.tokens) == len(picture.expected) == len(picture.marks) == MODELS.pyramid.L
        assert [a == b for a, b in zip(picture.tokens, picture.expected, strict=True)] == [
            mark == "=" for mark in picture.marks
        ]
        assert sum(turn.finished for turn in picture.rounds) == MODELS.pyramid.S
        assert Image.open(io.BytesIO(picture.decoder)).size == Image.open(io.BytesIO(picture.reference)).size
        assert picture.decoder != picture.reference


def test_of_a_right_decoder_the_first_images_are_kept_and_both_sides_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runfile, "MOST_PICTURES", 4)
    run(tmp_path / "a.db")
    found = pictures_of(tmp_path / "a.db")
    assert [(p.task, p.setting, p.row) for p in found] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)]
    assert all(p.decoder == p.reference and set(p.marks) <= {"=", TIE} for p in found)


def test_what_is_not_claimed_is_not_called_wrong(tmp_path: Path):
    run(tmp_path / "a.db", policy="match:0.5")
    found = pictures_of(tmp_path / "a.db")
    assert {mark for picture in found for mark in picture.marks} == {"=", UNCLAIMED}
    assert found[0].distance == max((p.distance for p in found), key=lambda distance: distance.pixels)


def test_workers_keep_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in (1, 2):
        run(tmp_path / f"{number}.db", OFFSET, workers=number)
    assert pictures_of(tmp_path / "1.db") == pictures_of(tmp_path / "2.db")


def test_the_best_of_a_worker_holds_the_best_of_all():
    ranks = [(-(number * 37 % 101), number, 0, 0) for number in range(200)]
    best = Best(10)
    taken = [rank for rank in ranks if best.takes(rank)]
    assert set(sorted(ranks)[:10]) <= set(taken)
    assert len(taken) < 60
    assert best.ranks == sorted(ranks)[:10]


def test_large_images_are_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_pictures, "MOST_SIDE", 3)
    run(tmp_path / "a.db")
    assert Image.open(io.BytesIO(pictures_of(tmp_path / "a.db")[0].decoder)).size == (3, 3)
