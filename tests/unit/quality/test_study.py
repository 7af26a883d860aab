"""Drawing and measuring on quick networks: pairs, workers, run files, decoders that fail, rows that say what is so."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.decoders._factory import OWN_DECODER
from harness.decoders._runner import Terms
from harness.errors import InputError, StopSignal
from harness.pool._employ import Parallelism
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.quality._draw import BASE, DRAFT, LAW, Source, control_sources, portions
from harness.quality._features import Features
from harness.quality._gather import Conditions, ImageSet, gather
from harness.quality._study import Study, decoder_sources, run_study
from harness.runs._runfile import RunFileOptions
from scripts.measured import read_quality
from tests.helpers import digits
from tests.unit.quality.means import MODELS, corners

REQUEST, IN_PROCESS = Request((0,), 3), Conditions(terms=Terms(in_process=True))


def kept(path: Path, resume: bool = False) -> Conditions:
    return replace(IN_PROCESS, store=RunFileOptions(path, resume))


FIELDS = ("features_ND", "classes_N", "calls_N", "labels_N")


class Crash:
    """Fails at the second portion."""

    contract = "quality-preserving"

    def __init__(self) -> None:
        self.decodes = 0

    def decode(self, request, noise):
        raise RuntimeError("out of paint")


def crash(models, settings):
    return Crash()


def drawn(size: int, conditions: Conditions = IN_PROCESS, sources: list[Source] | None = None) -> list[ImageSet]:
    others = sources or [
        *decoder_sources(OWN_DECODER, [Settings(3, policy="coupled"), Settings(3, policy="rejection")])
    ]
    requests = portions(40, size, (0, 1), REQUEST)
    made, stopped = gather(MODELS, corners().features, [BASE, LAW, *others], requests, conditions)
    assert not stopped
    return made


def same(a: list[ImageSet], b: list[ImageSet]) -> bool:
    return all(torch.equal(getattr(x, name), getattr(y, name)) for x, y in zip(a, b, strict=True) for name in FIELDS)


def test_sets_are_paired_and_other_seeds_are_others():
    base, law, coupled, rejection = drawn(40)
    assert torch.equal(coupled.features_ND, base.features_ND)
    assert not torch.equal(law.features_ND, base.features_ND)
    assert not torch.equal(rejection.features_ND, law.features_ND)
    assert base.labels_N.tolist() == [0, 1] * 20
    assert [of.contract for of in (base, law, coupled, rejection)] == ["A", "A", "A", "B"]
    assert base.calls_N.tolist() == [3] * 40


def test_batches_and_workers_change_nothing():
    assert same(drawn(40), drawn(7))


@pytest.mark.slow
def test_a_process_of_its_own_changes_nothing():
    planted = decoder_sources("tests.losses:blur", [Settings(5, policy="")])
    requests = portions(40, 20, (0, 1), REQUEST)
    here, there = (
        gather(MODELS, corners().features, [BASE, LAW, *planted], requests, Conditions(terms=Terms(in_process=inside)))[
            0
        ]
        for inside in (True, False)
    )
    assert same(here, there)
    assert not torch.equal(there[2].features_ND, there[0].features_ND)


@pytest.mark.slow
def test_workers_change_nothing():
    assert same(drawn(10), drawn(10, replace(IN_PROCESS, parallelism=Parallelism(2))))


def test_a_run_that_was_stopped_goes_on_to_the_same(tmp_path: Path):
    path = tmp_path / "q.db"
    whole = drawn(10, kept(path))
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("DELETE FROM drawn WHERE portion >= 2")
    assert same(drawn(10, kept(path, resume=True)), whole)
    assert same(drawn(10, kept(path, resume=True)), whole)  # nothing is left to draw
    with pytest.raises(InputError, match="exists already; pass --resume"):
        drawn(10, kept(path))


def test_a_signal_ends_the_drawing_and_what_is_there_is_measured():
    done = 0

    def stop(images: int) -> None:
        nonlocal done
        done += images
        if done > 2 * 3 * 20:  # amid the third portion, of which nothing is kept
            raise StopSignal(15)

    asked = Study(control_sources(1), 80, 20, (0, 1), REQUEST, 10)
    found = run_study(MODELS, corners(), asked, IN_PROCESS, stop)
    assert found.stopped == 15
    assert {row.images for row in found.rows} == {40}
    with pytest.raises(StopSignal):
        run_study(MODELS, corners(), replace(asked, blocks=30), IN_PROCESS, stop)


def test_a_file_of_another_run_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "q.db"
    drawn(10, kept(path))
    with pytest.raises(InputError, match=r"is the file of another run: images requests"):
        drawn(20, kept(path, resume=True))
    with pytest.raises(
        InputError, match=r"is the file of another run: sources coupled draft_len 3 \(here unknown, recorded"
    ):
        drawn(10, kept(path, resume=True), decoder_sources(OWN_DECODER, [Settings(3, policy="kl:0.1")]))
    for content in (b"no database", path.read_bytes()[:3000]):
        (tmp_path / "bad.db").write_bytes(content)
        with pytest.raises(InputError, match=r"^run=.*pass a file of quality --run"):
            drawn(10, kept(tmp_path / "bad.db", resume=True))
    assert (tmp_path / "bad.db").read_bytes() == path.read_bytes()[:3000]


def test_a_damaged_row_is_one_error(tmp_path: Path):
    path = tmp_path / "q.db"
    drawn(10, kept(path))
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE drawn SET tensors = x'00' WHERE portion = 1")
    with pytest.raises(InputError, match=r"^run=.*can be read"):
        drawn(10, kept(path, resume=True))


def test_rows_say_what_the_decoders_are(tmp_path: Path):
    shifted = Source("wrong labels", f"{__name__}:shift", Settings(5, policy=""))
    others = [
        *control_sources(1),
        Source(DRAFT, draft=True),
        *decoder_sources(OWN_DECODER, [Settings(3, policy="coupled")]),
        shifted,
    ]
    asked = Study(others, 200, 100, (0, 1), REQUEST, 10, 0.5)
    found = run_study(MODELS, corners(), asked, IN_PROCESS)
    base, control, draft, coupled, wrong = found.rows
    assert (base.loss, base.drift) == (None, None)
    assert (coupled.loss.value, coupled.loss.half, coupled.drift.half) == (0, 0, 0)
    assert control.loss.low <= 0 <= control.loss.high
    assert control.drift.low <= 0 <= control.drift.high
    assert draft.calls == 0
    assert draft.contract == ""
    assert base.calls == 3
    assert wrong.accuracy.value == pytest.approx(1 - base.accuracy.value, abs=0.2)
    (tmp_path / "q.json").write_bytes(found.document())
    again = read_quality(tmp_path / "q.json")
    assert again == found
    assert again.document() == found.document()


def test_a_draft_of_another_width_than_the_target_gives_images():
    models = digits()
    (made,), _ = gather(models, Features(), [Source(DRAFT, draft=True)], portions(2, 2, (0, 1), REQUEST), IN_PROCESS)
    assert models.draft.config.D != models.target.config.D
    assert (made.failed, len(made.features_ND)) == ("", 2)


def test_progress_is_told_after_every_decode():
    heard: list[int] = []
    gather(MODELS, corners().features, [BASE, LAW], portions(6, 4, (0, 1), REQUEST), IN_PROCESS, heard.append)
    assert heard == [4, 4, 2, 2]


def shift(models, settings):
    from tests.losses import labels

    return labels(models, settings)


def test_a_decoder_that_gives_no_image_is_lost_and_the_others_are_measured():
    broken = Source("broken", f"{__name__}:crash", Settings(5, policy=""))
    asked = Study([broken, *control_sources(1)], 40, 10, (0, 1), REQUEST, 10, 1e3)
    found = run_study(MODELS, corners(), asked, IN_PROCESS)
    assert "out of paint" in found.rows[1].failed
    assert found.verdicts[0].value == "LOST"
    assert found.rows[2].drift is not None


def test_two_sources_of_one_name_are_refused():
    twice = decoder_sources(OWN_DECODER, [Settings(3, policy="coupled")] * 2)
    with pytest.raises(InputError, match=r"coupled draft_len 3: is asked for twice"):
        drawn(40, sources=twice)


def test_few_images_and_the_published_order_are_refused():
    with pytest.raises(InputError, match=r"^images=79: must be at least 80"):
        Study([], 79)
    with pytest.raises(InputError, match=r"^noise=batch"):
        portions(10, 5, (0, 1), replace(REQUEST, order="batch"))
    with pytest.raises(InputError, match=r"^labels=2"):
        run_study(MODELS, corners(), Study([], 40, 10, (0, 2), REQUEST, 10))
