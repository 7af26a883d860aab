"""The pages of recordings: which cases hold (`golden check`), what a regeneration would change (`golden diff`).

Both show images as recorded and as this code makes them.
"""

from collections.abc import Sequence

import torch

from harness import golden
from harness.judge import Verdict, worst_verdict
from harness.report.html import _page as page
from harness.report.html._gallery import PicturePair, gallery_parts, side_by_side

SIDES = "recording", "code of today"
MOST_IMAGES = 40  # of cases that do not hold; each is decoded again
SHOWN = 5  # defects of one case
HEADLINES, CHANGES = page.WORDS["recordings"], page.WORDS["changes"]  # by verdict; by kind of change
RecordedCases = Sequence[tuple[golden.Recording, Sequence[golden.AnyCase]]]


def recordings_page(results: Sequence[golden.FileResult], recorded: RecordedCases, device: str) -> bytes:
    """Return the page of judgements on recordings as one HTML file; images come from what is `recorded`."""
    verdict = worst_verdict([result.verdict for result in results])
    pairs, count = _pairs_that_differ(results, recorded)
    files = [(result.path, f"DEFECT: {line}") for result in results for line in result.defects]
    files += [(result.path, f"UNVERIFIED: {result.unverified}") for result in results if result.unverified]
    sections = page.sections_of(
        "recordings", {}, result=[_result_facts(results)], wrong=_wrong(results),
        files=[page.Bullets(files)] if files else [],
        images=gallery_parts(pairs, count, "the files hold") if pairs else [], cases=_cases(results),
    )  # fmt: skip
    head = page.Head("goldens", verdict.value, page.TONE[verdict], HEADLINES.get(verdict, HEADLINES["holds"]))
    return page.as_html(head, [*sections, page.origin(f"On {device}.")])


def regeneration_page(files: Sequence[golden.Regeneration], device: str) -> bytes:
    """Return the page of a comparison of goldens with this code as one HTML file; what is on disk is read again."""
    count = sum(len(file.changes) for file in files)
    word, tone = ("CHANGED", "open") if count else ("UNCHANGED", "good")
    pairs = [pair for file in files for pair in _pairs_that_change(file)]
    images = gallery_parts(pairs, len(pairs), "the files hold") if pairs else []
    sections = page.sections_of(
        "regeneration", {}, result=[_change_facts(files)], changes=_change_sheets(files), images=images
    )
    head = page.Head("goldens", word, tone, page.WORDS["regeneration"][word])
    return page.as_html(head, [*sections, page.origin(f"On {device}.")])


def _result_facts(results: Sequence[golden.FileResult]) -> page.Facts:
    cases = [case for result in results for case in result.cases]
    bad = sum(case.verdict is Verdict.DEFECT for case in cases)
    return page.Facts([
        ("cases", f"{len(cases):,}", f"in {page.counted(len(results), 'file')}"),
        ("cases with a defect", f"{bad:,}", "none may"),
        ("draws", f"{sum(case.draws for case in cases):,}", golden.golden_totals(results)),
        ("certified ties", f"{sum(len(case.ties) for case in cases):,}", "rounding alone decides these"),
    ])  # fmt: skip


def _wrong(results: Sequence[golden.FileResult]) -> list[object]:
    parts: list[object] = []
    for path, case in ((result.path, case) for result in results for case in result.cases if case.defects):
        items = [(d.component, f"{d}. {page.COMPONENTS.get(d.component, '')}") for d in case.defects[:SHOWN]]
        if len(case.defects) > SHOWN:
            items.append(("and", page.counted(len(case.defects) - SHOWN, "defect more", "defects more")))
        parts += [f"Case {case.id} of {path}:", page.Bullets(items)]
    return parts


def _cases(results: Sequence[golden.FileResult]) -> list[object]:
    """Return a table a file: open where something in it is wrong, folded where all of it holds."""
    parts: list[object] = []
    for result in results:
        rows = [
            [case.id, case.verdict.value, f"{case.draws:,}", f"{case.identical:,}", f"{len(case.ties):,}",
             f"{case.not_judged:,}", f"{len(case.defects):,}",
             *map(page.number, (case.delta_logits, case.delta_f_hat, case.delta_image))]
            for case in sorted(result.cases, key=lambda case: not case.defects)
        ]  # fmt: skip
        bad = {k for k, row in enumerate(rows) if row[1] == Verdict.DEFECT.value}
        sheet = page.sheet_of("cases", rows, bad, file=result.path)
        if rows:
            parts.append(sheet if bad else page.Fold(f"{result.path}: {page.counted(len(rows), 'case')}", [sheet]))
    return parts


def _pairs_that_differ(results: Sequence[golden.FileResult], recorded: RecordedCases) -> tuple[list[PicturePair], int]:
    """Return images of the cases that do not hold, up to `MOST_IMAGES`, and how many there are in all."""
    sources = {(str(recording.path), case.id): (recording, case) for recording, cases in recorded for case in cases}
    pairs: list[PicturePair] = []
    count = 0
    for result in results:
        for judged in result.cases:
            if not judged.defects or judged.run is None:
                continue
            recording, case = sources[result.path, judged.id]
            if isinstance(case, golden.InfinityCase):
                continue  # its images are not recorded, or are bytes
            count += judged.request.B
            if len(pairs) < MOST_IMAGES:
                with torch.inference_mode():
                    image = case.models.vae.decode(judged.run.f_hat_BCPP)
                both = recording.of(case.id), {"tokens": judged.run.tokens_BL, "image": image}
                pairs += side_by_side(case.id, both, SIDES, case.models.pyramid, "Only one side has it.")
    return pairs, count


def _change_facts(files: Sequence[golden.Regeneration]) -> page.Facts:
    changes = [change for file in files for change in file.changes]
    return page.Facts([
        ("cases on record", f"{sum(len(file.cases) for file in files):,}", f"in {page.counted(len(files), 'file')}"),
        ("would change", f"{len({c.id for c in changes if c.id != golden.WHOLE_FILE}):,}", "cases"),
        ("tokens that change", f"{sum(change.tokens for change in changes):,}", "in those cases"),
    ])  # fmt: skip


def _change_sheets(files: Sequence[golden.Regeneration]) -> list[object]:
    sheets: list[object] = []
    for file in files:
        rows = [
            (change.id, change.what, CHANGES.get(change.what, ""), str(change.first_scale) if change.tokens else "–",
             f"{change.tokens:,}", page.number(change.f_hat), page.number(change.image))
            for change in file.changes
        ]  # fmt: skip
        if rows:
            sheets.append(page.sheet_of("changes", rows, file=file.path.name))
    return sheets


def _pairs_that_change(file: golden.Regeneration) -> list[PicturePair]:
    """Return the images of every case that changes, those of a case together."""
    before = golden.read_recording(file.path) if file.path.exists() else golden.Recording(file.path, {}, (), {})
    after = golden.Recording(file.path, {}, file.cases, file.tensors)
    pairs: list[PicturePair] = []
    for change in file.changes:
        if change.id != golden.WHOLE_FILE and file.models != "infinity":  # whose images are not recorded, or bytes
            both = before.of(change.id), after.of(change.id)
            alone = f"{CHANGES[change.what].capitalize()}."
            planned = {case.id: case for case in file.cases if isinstance(case, golden.GoldenCase)}
            case = planned.get(change.id)  # None: no longer planned
            layout = golden.recorded_networks(case, file.models).pyramid if case else None
            pairs += side_by_side(change.id, both, SIDES, layout, alone)
    return pairs
