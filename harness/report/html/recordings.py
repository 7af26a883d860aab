"""The page of `golden check`: which recorded cases hold, what is wrong with the others, and their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.golden.result import CaseResult, FileResult, totals
from harness.golden.store import Recording
from harness.judge.verdict import Verdict, worst
from harness.protocol.trace import Trace
from harness.report.html import gallery
from harness.report.html.gallery import Shown
from harness.report.html.origin import here
from harness.report.html.page import Bullets, Facts, Fold, Page, Section, Sheet, Words, as_html, counted
from harness.report.html.sidebyside import side_by_side
from harness.report.html.words import COMPONENTS, TONE

SIDES = "recording", "code of today"
MOST_IMAGES = 40  # of cases that do not hold; each is decoded again
SHOWN = 5  # defects of one case
HEADLINES = {
    Verdict.DEFECT: "Something recorded is not what this code makes, and rounding cannot explain it.",
    Verdict.INCONCLUSIVE: "Not everything could be compared: see what is unverified below.",
}
HOLDS = "Every recorded case holds against this code: token by token, and every tensor within its bound."
Checked = Sequence[tuple[Recording, Sequence[RecordedCase]]]


def recordings_page(results: Sequence[FileResult], checked: Checked, device: str) -> bytes:
    """Return the page of judgements on recordings as one HTML file.

    Args:
        results: a file each.
        checked: recordings and their cases, understood; images of the cases that do not hold are taken from here.
        device: where this code ran.
    """
    verdict = worst([result.verdict for result in results])
    shown, count = _images(results, checked)
    left = [(result, case) for result in results for case in result.cases if case.defects]
    sections = [
        Section("result", "Result", "", [_facts(results)]),
        Section("wrong", "What does not hold", "The first defects of every case, in causal order.", _wrong(left)),
        Section("files", "What was not compared", "", _files(results)),
        Section("images", "Images of the cases that do not hold",
                "As recorded, as this code makes it, and the difference. A frame marks the first token that differs.",
                gallery.parts(shown, count, "the files hold") if shown else []),
        Section("cases", "Every case", "Differences are the largest of a case, on the recorded prefix.",
                _cases(results)),
        Section("provenance", "Provenance", "", [Words(f"On {device}."), *here()]),
    ]  # fmt: skip
    headline = HEADLINES.get(verdict, HOLDS)
    return as_html(
        Page("goldens", verdict.value, TONE[verdict], headline, [section for section in sections if section.parts])
    )


def _facts(results: Sequence[FileResult]) -> Facts:
    cases = [case for result in results for case in result.cases]
    bad = sum(case.verdict is Verdict.DEFECT for case in cases)
    return Facts(
        [
            ("cases", f"{len(cases):,}", f"in {counted(len(results), 'file')}"),
            ("cases with a defect", f"{bad:,}", "none may"),
            ("draws", f"{sum(case.draws for case in cases):,}", totals(results)),
            ("certified ties", f"{sum(len(case.ties) for case in cases):,}", "rounding alone decides these"),
        ]
    )


def _wrong(left: Sequence[tuple[FileResult, CaseResult]]) -> list[object]:
    made: list[object] = []
    for result, case in left:
        items = [(each.component, f"{each}. {COMPONENTS.get(each.component, '')}") for each in case.defects[:SHOWN]]
        if len(case.defects) > SHOWN:
            items.append(("and", counted(len(case.defects) - SHOWN, "defect more", "defects more")))
        made += [Words(f"Case {case.id} of {result.path}:"), Bullets(items)]
    return made


def _files(results: Sequence[FileResult]) -> list[object]:
    items = [(result.path, f"DEFECT: {line}") for result in results for line in result.defects]
    items += [(result.path, f"UNVERIFIED: {result.unverified}") for result in results if result.unverified]
    return [Bullets(items)] if items else []


def _cases(results: Sequence[FileResult]) -> list[object]:
    """Return a table a file: open where something in it is wrong, folded where all of it holds."""
    head = ("case", "verdict", "draws", "identical", "ties", "not judged", "defects", "Δlogits", "Δf_hat", "Δpixel")
    made: list[object] = []
    for result in results:
        rows = [
            (case.id, case.verdict.value, f"{case.draws:,}", f"{case.identical:,}", f"{len(case.ties):,}",
             f"{case.not_judged:,}", f"{len(case.defects):,}",
             *map(_number, (case.delta_logits, case.delta_f_hat, case.delta_image)))
            for case in sorted(result.cases, key=lambda case: not case.defects)
        ]  # fmt: skip
        bad = frozenset(k for k, row in enumerate(rows) if row[1] == Verdict.DEFECT.value)
        sheet = Sheet(result.path, head, rows, 2, bad)
        if rows:
            made.append(sheet if bad else Fold(f"{result.path}: {counted(len(rows), 'case')}", [sheet]))
    return made


def _images(results: Sequence[FileResult], checked: Checked) -> tuple[list[Shown], int]:
    """Return images of the cases that do not hold, up to `MOST_IMAGES`, and how many there are in all."""
    of = {(str(recording.path), case.id): (recording, case) for recording, cases in checked for case in cases}
    shown: list[Shown] = []
    count = 0
    for result in results:
        for judged in result.cases:
            if not judged.defects or judged.run is None:
                continue
            recording, case = of[result.path, judged.id]
            count += judged.request.B
            if len(shown) < MOST_IMAGES:
                old, sides = recording.of(case.id), case.models.pyramid.patch_nums
                shown += side_by_side(case.id, (old, _made(case, judged.run)), SIDES, sides, "Only one side has it.")
    return shown, count


@torch.inference_mode()
def _made(case: RecordedCase, run: Trace) -> Mapping[str, Tensor]:
    """Return what the free run of a case made."""
    return {"tokens": run.tokens_BL, "image": case.models.vae.decode(run.f_hat_BCPP)}


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"
