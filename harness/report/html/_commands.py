"""The pages of recordings, of timings, and of many runs.

Those of recordings (which cases hold, `golden check`; what a regeneration would change, `golden diff`) show images as
recorded and as this code makes them; `bench` shows what speculation buys against what is accepted; `report` one row a
run and verdicts over time, and of two runs what changed between them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from harness import golden
from harness.bench import ANSWERS, Contest, Speed, SpeedRow
from harness.judge import Verdict, worst_verdict
from harness.report import History, RunSummary, changes_between, contest_cells, sequential_rows, speculative_rows
from harness.report.html import _page as page
from harness.report.html._gallery import PicturePair, gallery_parts, side_by_side
from harness.report.html._plots import Axis, Series, plot
from harness.runs import Verification

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
    cases = [case for result in results for case in result.cases]
    facts = page.Facts([
        ("cases", f"{len(cases):,}", f"in {page.counted(len(results), 'file')}"),
        ("cases with a defect", f"{sum(case.verdict is Verdict.DEFECT for case in cases):,}", "none may"),
        ("draws", f"{sum(case.draws for case in cases):,}", golden.golden_totals(results)),
        ("certified ties", f"{sum(len(case.ties) for case in cases):,}", "rounding alone decides these"),
    ])  # fmt: skip
    sections = page.sections_of(
        "recordings", {}, result=[facts], wrong=_wrong(results),
        files=[page.Bullets(files)] if files else [],
        images=gallery_parts(pairs, count, "the files hold") if pairs else [], cases=_cases(results),
    )  # fmt: skip
    head = page.Head("goldens", verdict.value, page.TONE[verdict], HEADLINES.get(verdict, HEADLINES["holds"]))
    return page.as_html(head, [*sections, page.origin(f"On {device}.")])


def regeneration_page(files: Sequence[golden.Regeneration], device: str) -> bytes:
    """Return the page of a comparison of goldens with this code as one HTML file; what is on disk is read again."""
    changes = [change for file in files for change in file.changes]
    facts = page.Facts([
        ("cases on record", f"{sum(len(file.cases) for file in files):,}", f"in {page.counted(len(files), 'file')}"),
        ("would change", f"{len({c.id for c in changes if c.id != golden.WHOLE_FILE}):,}", "cases"),
        ("tokens that change", f"{sum(change.tokens for change in changes):,}", "in those cases"),
    ])  # fmt: skip
    sheets = []
    for file in (file for file in files if file.changes):
        rows = [
            (change.id, change.what, CHANGES.get(change.what, ""), str(change.first_scale) if change.tokens else "–",
             f"{change.tokens:,}", page.number(change.f_hat), page.number(change.image))
            for change in file.changes
        ]  # fmt: skip
        sheets.append(page.sheet_of("changes", rows, file=file.path.name))
    word, tone = ("CHANGED", "open") if changes else ("UNCHANGED", "good")
    pairs = [pair for file in files for pair in _pairs_that_change(file)]
    images = gallery_parts(pairs, len(pairs), "the files hold") if pairs else []
    sections = page.sections_of("regeneration", {}, result=[facts], changes=sheets, images=images)
    head = page.Head("goldens", word, tone, page.WORDS["regeneration"][word])
    return page.as_html(head, [*sections, page.origin(f"On {device}.")])


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


IMPOSED = "imposed:RATE accepts drafts at that rate, right or wrong: it shows what drafts so good would gain."


def timings_page(run: Speed, device: str) -> bytes:
    best = max(run.rows, key=lambda row: row.speed_up)
    gains = best.speed_up > 1
    text = f"At best {best.speed_up:.2f} times as fast as sequential decoding by the target, with {_named(best)}."
    if not gains:
        text = f"No setting is faster than sequential decoding; the best is {best.speed_up:.2f} times as fast."
    notes = [IMPOSED] if any(row.policy.startswith("imposed:") for row in run.rows) else []
    rows = zip(run.rows, speculative_rows(run.rows), strict=True)
    # with what was accepted
    speculative = [[*cells[:3], page.number(row.kept, ".0%"), *cells[3:]] for row, cells in rows]
    tables = {"speculative": speculative, "sequential": sequential_rows(run.rows)}
    sheets = {name: [page.sheet_of(name, _dashed(rows))] for name, rows in tables.items()}
    facts = page.Facts([
        ("best speed-up", f"{best.speed_up:.2f}", _named(best)),
        ("its target calls", f"{best.target_calls:.2f}", "mean an image"),
        ("its scales accepted", page.number(best.kept, ".0%"), "of those judged"),
        ("its extra memory", page.number(best.extra_memory, ".1%"), "beyond the target alone"),
        ("settings timed", f"{len(run.rows):,}", run.title),
    ])  # fmt: skip
    sections = page.sections_of("timings", {}, result=[facts], speed=[_plot(run)], **sheets)
    sections.append(page.origin(f"{run.models} on {device}, {run.title}. {run.machine}."))
    word, tone = (f"{best.speed_up:.2f} TIMES AS FAST", "good") if gains else ("NOT FASTER", "open")
    return page.as_html(page.Head(f"{run.models} on {device}", word, tone, text, notes), sections)


def contest_page(found: Contest, device: str) -> bytes:
    answers = found.answers
    word = min((each.partition(":")[0] for each in answers), key=ANSWERS.index)  # of all batch sizes the worst
    text = answers[0].partition(": ")[2] if len(answers) == 1 else "; ".join(answers)
    best = [found.best(row.batch) for row in found.rows if not row.is_sequential]
    facts = [("the decoder", found.verdict, f"{found.decoder}, {found.setting}")]
    for row in best:
        facts.append((f"best sequential, {page.counted(row.batch, 'image')}", f"{row.times.median:.1f} ms", row.side))
    sheet, made = page.sheet_of("contest", _dashed(contest_cells(found))), f"{found.models} on {device}, {found.mode}."
    sections = page.sections_of("contest", {}, result=[page.Facts(facts)], sides=[sheet])
    sections.append(page.origin(f"{made} {found.machine}. {' '.join(found.remarks)}"))
    tone = "good" if word == ANSWERS[-1] else "open"
    return page.as_html(page.Head(f"{found.models} on {device}", word, tone, text), sections)


def _dashed(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return cells with a page's dash in place of a terminal's."""
    return [["–" if cell == "-" else cell for cell in row] for row in rows]


def _named(row: SpeedRow) -> str:
    drafted = f", {page.counted(row.draft_len, 'drafted scale')}" if row.speculates else ""
    return f"{row.policy}{drafted}, {page.counted(row.batch, 'image')} a batch"


def _plot(run: Speed) -> page.Drawing:
    series = []
    judged = [row for row in run.rows if not math.isnan(row.kept)]
    for batch, length in dict.fromkeys((row.batch, row.draft_len) for row in judged):
        points = sorted((r.kept, r.speed_up) for r in judged if (r.batch, r.draft_len) == (batch, length))
        name = f"{page.counted(length, 'scale')}, {page.counted(batch, 'image')}"
        series.append(Series(name, [100 * x for x, _ in points], [y for _, y in points]))
    caption = "Above the dashed line speculation gains; right of it more drafted scales are accepted."
    x, y = Axis("judged scales that were accepted, %", low=0), Axis("speed-up", low=0)
    return page.Drawing("Line plot", plot(series, x, y, (1.0, "sequential"), "speed"), caption)


LATEST = 40  # runs of a decoder that are shown over time
STATES: dict[str, tuple[str, str]] = page.PAGES["verdicts"]
NOTHING = page.State("final", "", "")


def history_page(history: History) -> bytes:
    runs, worst = history.runs, history.runs[0].verdict
    decoders = page.counted(len({run.decoder for run in runs if run.decoder}), "decoder")
    head = page.Head(
        "runs", worst, page.TONE[Verdict(worst)] if worst in set(Verdict) else "open",
        f"{page.counted(len(runs), 'run')} of {decoders}: {history.counts}.",
        parts=[page.Line(history.command, f"Next: look at the newest {worst}:")],
    )  # fmt: skip
    rows = [[cell or "–" for cell in run.cells] for run in runs]
    bad = {k for k, run in enumerate(runs) if run.verdict == Verdict.DEFECT}
    sheet = page.sheet_of("runs", rows, bad).filled()
    return page.as_html(head, page.sections_of("history", {"latest": LATEST}, runs=[sheet], time=_over_time(history)))


def _over_time(history: History) -> list[object]:
    """Return a grid, a row a decoder on some networks, and where its verdict changed from one run to the next."""
    lanes, changes = list[list[str | page.State]](), list[tuple[str, ...]]()
    ended = sorted((run for run in history.runs if run.ended), key=lambda run: run.ended)
    groups: dict[str, list[RunSummary]] = {}
    for run in ended:
        claim = run.contract and f", {'' if run.contract.startswith('against ') else 'contract '}{run.contract}"
        groups.setdefault(f"{run.decoder or 'unknown'}, {run.models}{claim}", []).append(run)
    most = min(LATEST, max(map(len, groups.values()), default=0))
    for name, group in groups.items():
        states = [
            page.State(*STATES.get(run.verdict, STATES["none"]), f"{run.verdict}, {run.cells[3]}")
            for run in group[-LATEST:]
        ]
        lanes.append([name, *states, *[NOTHING] * (most - len(states)), f"{len(group):,}"])
        changes += [
            (run.cells[3], name, f"{before.verdict} to {run.verdict}", f"{before.commit} to {run.commit}", run.cells[0])
            for before, run in pairwise(group)
            if before.verdict != run.verdict
        ]
    if not lanes:
        return []
    heads = ["decoder", *map(str, range(1, most + 1)), "runs in all"]
    grid = page.Sheet("Verdicts, a row a decoder", heads, lanes, kind="grid")
    return [grid, *([page.sheet_of("changes of verdict", sorted(changes, reverse=True))] if changes else [])]


def changes_page(runs: tuple[Verification, Verification], names: tuple[str, str]) -> bytes:
    """Return the page of what differs between two runs, whose files are called `names`."""
    changes, (one, other) = changes_between(*runs), (run.verdict for run in runs)
    text = f"{names[0]}: {one}; {names[1]}: {other}. {page.counted(len(changes), 'difference')} between them."
    sheet = [page.sheet_of("differences", changes, one=names[0], other=names[1])] if changes else []
    head = page.Head("two runs", f"{one} → {other}", page.TONE[other], text)
    return page.as_html(head, [page.Section("changes", "What changed", "What is not listed is equal.", sheet)])
