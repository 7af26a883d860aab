"""Verdicts on the terminal: of a verification, of the parts of a decoder, of repeated defects.

Promise: a table first, then what went wrong, the verdict, and what to do next; no control character of a decoder or
file reaches it.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.errors import one_line, shortened
from harness.files import compact, write_whole
from harness.judge import PartLaw, PartVerdict, Verdict
from harness.provenance import versions
from harness.report._next import AFTER, ASK, next_steps
from harness.report._tables import columns_of, name_column, print_table, wrapped
from harness.runs import COUNTS, Answer, KeptCase, LawsTried, Replayed, SettingResult, Verification, repeat_line
from harness.wording import count_of, spelled

COLOURS = {0: "green", 1: "bold red", 3: "yellow"}  # by the exit status of a verdict
ANSWERS = {Answer.STILL: "bold red", Answer.OTHER: "bold red", Answer.FIXED: "green", Answer.CANNOT: "yellow"}
WRONG_PARTS = (PartVerdict.BROKEN, PartVerdict.CRASHED)
COLUMNS = dict(zip(COUNTS, columns_of("counts"), strict=True))
MOST_CHANGES = 4
LONG_S = 30.0  # of judging, which searches the cause of every wrong image: some seconds of a core each
MOST_NAMED = 6  # of broken laws; of what was not exercised, where a verdict is one line
VERDICT_LINES = 3  # of a terminal, for the verdict and what was not exercised
LINES = 24  # nothing asks how high it is
PIPE_WIDTH = 144  # rich takes 80 where there is no terminal; a log has no edge
MOST_SHOWN = 2000  # characters of a line: the message of somebody else's crash may have any length
ACCIDENTS = "accidents only"  # where the system keeps a decoder's process from nothing else, the line says so


def plain_console() -> Console:
    """Return the console of results: as wide as the terminal, or `PIPE_WIDTH` when piped; text means itself alone.

    Where nobody looks on, a line of prose stays one line (`soft_wrap`), so that it can be searched.
    """
    on_screen = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_screen else PIPE_WIDTH
    # of a dumb terminal rich takes 80 columns, unless it is told both
    return Console(width=width, height=LINES, soft_wrap=not on_screen, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, word: str = "", style: str = "", whole: bool = False) -> None:
    """Print a paragraph, broken between words on a terminal; no control character of a decoder or file reaches it.

    A `word` in its own `style` stands before the text; a `whole` text is a command line, and copied.
    """
    line = spelled(f"{word}{' ' if word else ''}{shortened(one_line(text), MOST_SHOWN)}", console.encoding)
    lines = [line] if whole or console.soft_wrap else wrapped(line, console.width)
    shown = Text("\n".join(lines))
    shown.stylize(style, 0, len(word))
    console.print(shown, soft_wrap=True)


def write_asked(paths: Mapping[str, Path], quiet: bool = False, **contents: Callable[[], bytes]) -> None:
    """Make and write outputs, by option, at the paths of `check_outputs`, and say where. Raises as `write_whole`."""
    for name, made in contents.items():
        if name in paths:
            write_whole(paths[name], made())
            if not quiet:
                say(plain_console(), f"wrote {paths[name]}", whole=True)


def show_verification(
    result: Verification, console: Console, quiet: bool, verbose: bool = False, asks_more: bool = True
) -> None:
    """Print a verification: a table, laws, the first defect, the verdict, and what to do next.

    `quiet` leaves the verdict's line only; `verbose` adds a row for every setting that passed, and how it was judged;
    `asks_more`: the command has the options of `verify`, and those that ask what was not are named.
    """
    is_empty = not (result.is_whole or result.images or result.first_divergence)
    if not (quiet or is_empty):
        measured = columns_of("stated" if result.is_its_word else "measured")
        columns = [name_column("setting"), *(COLUMNS[count] for count in _counted(result)), *measured]
        rows = _rows(result, verbose)
        known = [k for k in range(len(columns)) if any(row[k] != "-" for row in rows)]
        columns, rows = [columns[k] for k in known], [[row[k] for k in known] for row in rows]
        print_table(console, _title(result), columns, rows)
        for text in _details(result) if verbose else ():
            say(console, text)
        if result.laws is not None:
            say(console, laws_line(result.laws))
            _say_broken(result, console)
        if result.record and ACCIDENTS in result.record.isolation:
            say(console, f"isolation: {result.record.isolation}")
        for text in result.changes[:MOST_CHANGES]:
            say(console, f"changed: {text}")
        for name, why in result.not_compared.items():
            say(console, f"not compared: {name} ({why})")
        _say_first_divergence(result, console)
        searched = result.seconds - result.decode_seconds
        if result.verdict is Verdict.DEFECT and searched > LONG_S:
            tip = "--fail-fast stops at the first batch with a defect"
            say(console, f"the search for what is wrong took {searched:.0f} s, image after image; {tip}")
    if not result.is_whole:
        word = "interrupted" if result.stopped else "not finished"
        lost = f"; {result.tried} were decoded, and a request is kept once all its settings are judged"
        lost *= result.tried > result.images
        if result.met and not result.first_divergence:
            lost += f"; their first defect: {result.met}"
        say(console, f"{word}: {result.images} of {count_of(result.plan.images, 'image')} judged{lost}")
    steps = [] if quiet else next_steps(result)
    is_said = any(what == ASK for what, _ in steps)  # one command is enough
    hint = "" if is_said or not asks_more else result.exercised.hint(result.covers)
    so_far = " so far" * (not result.is_whole and not is_empty and result.verdict is not Verdict.DEFECT)
    label = result.verdict.value + so_far
    text = "nothing was judged" if is_empty else _verdict_text(result, console, hint, label)
    say(console, text, label, COLOURS[result.verdict.exit_status])
    for word, step in zip(("next:", "then:"), steps, strict=False):
        say(console, ": ".join(filter(None, step)), word, whole=True)


def say_after(
    console: Console, command: str, status: int, quiet: bool, verify: str = "sdvar-harness verify", more: str = ""
) -> None:
    """Print what to do after a command that ended so; nothing where `quiet`, or where no verdict was reached.

    `verify` is the command line that asks the decoder which was under test, `more` what else the command can do.
    """
    if not quiet and status in AFTER[command]:
        say(console, AFTER[command][status].format(verify=verify, more=more), "next:", whole=True)


def _details(result: Verification) -> list[str]:
    """Return how it was judged, a line each: budget, cost, batches, what was compared, what the rounds exercised."""
    lines = []
    if (budget := result.budget) is not None:
        numbers = f"logits {budget.logits:.2g} (rms {budget.logits_rms:.2g}), f_hat {budget.f_hat:.2g}"
        lines.append(f"error budget: {numbers} = {budget.source}")
    if result.decode_seconds and result.seconds:  # a run file keeps no time of judging
        overhead = result.seconds / result.decode_seconds - 1
        lines.append(f"judging: {overhead:.1%} on top of {result.decode_seconds:.1f} s of decodes")
    if result.wall_seconds and result.images:
        largest, record = max(task.request.B for task in result.plan.tasks), result.record
        batches = f"batches of {count_of(largest, 'image')}{f' ({result.batches})' * bool(result.batches)}"
        who, certified = (record.workers, record.certifying) if record else ("", "")
        rate = f"{result.images / result.wall_seconds:.1f} images a second"
        lines.append(f"{batches}; {who or 'this process'}; ties certified in {certified or '-'}; {rate}")
    if result.compared:
        sides = f"compared with {result.against or 'the reference'}"
        lines.append(f"{f'{result.tested} ' * bool(result.tested)}{sides}: {', '.join(result.compared)}")
    if result.coverage.rounds:
        word = " (as the decoder says: nothing confirms its rounds and calls)" if result.is_its_word else ""
        lines.append(f"covered{word}: {result.coverage}")
    return lines


def _verdict_text(result: Verification, console: Console, hint: str, label: str) -> str:
    """Return counts and what was not exercised; on a terminal in the most words that need no more than three lines."""
    exercised, head = result.exercised, len(label) + 1
    most, brief = MOST_NAMED if console.soft_wrap else len(exercised.words), exercised.brief(hint)
    pairs = (result.summary, exercised.first_of(most, hint)), (result.summary, brief), (result.short_summary, brief)
    texts = ["; ".join(filter(None, pair)) for pair in pairs]
    if console.soft_wrap:
        return texts[0]
    fits = (text for text in texts if len(wrapped("x" * head + text, console.width)) <= VERDICT_LINES)
    return next(fits, texts[-1])


def _say_broken(result: Verification, console: Console) -> None:
    """Print the broken laws by their names, unless the first defect's line says all."""
    broken, first = result.laws.broken if result.laws else (), result.first_divergence
    if first is None or all(law.clause == first.detail for law in broken):
        return
    for law in broken[:MOST_NAMED]:
        say(console, f"{law.clause.removeprefix('law ')}")
    if (more := len(broken) - MOST_NAMED) > 0:
        say(console, f"and {more} more: --json has all")


def laws_line(tried: LawsTried) -> str:
    few = f"not put to the test in so few (--laws {6 * tried.cases} tries more)"
    counted = ((tried.broken, "broken"), (tried.trivial, few), (tried.refused, "refused"),
               (tried.not_applicable, "not applicable"), (tried.late, "too slow"),
               (tried.left, "not tried"))  # fmt: skip
    words = [f"{tried.held} held", *(f"{len(some)} {word}" for some, word in counted if some)]
    where = f" {tried.pyramid}" * bool(tried.pyramid)
    return f"laws, in {count_of(tried.cases, 'case')} each{where}: {', '.join(words)}"


def _say_first_divergence(result: Verification, console: Console) -> None:
    for setting in (setting for setting in result.settings if setting.distances):
        count, names = len(setting.distances), ("tokens", "f_hat", "pixels")
        tokens, f_hat, pixels = (sum(getattr(each, name) for each in setting.distances) / count for name in names)
        differ = f"of all tokens of an image {tokens:.1%} are others than in sequential decoding of the same seed"
        say(console, f"{setting.settings}: {differ}, mean |Δf_hat| {f_hat:.3g}, mean |Δpixel| {pixels:.3g}")
    for reason in result.inconclusive if result.verdict is not Verdict.DEFECT else ():  # a defect proves enough
        say(console, f"inconclusive: {reason}")
    for remark, count in result.remarks.items():
        say(console, f"remark: {remark} ({count_of(count, 'decode')}; no defect by itself)")
    if (first := result.first_divergence) is not None:
        say(console, f"{result.first_word}: {first}")
        if before := result.before_the_crash:
            say(console, f"before it: {before}")
    if result.line:
        say(console, f"line: {result.line}")
    for text in result.so_far[:1]:
        say(console, f"so far: {text}")


def _title(result: Verification) -> str:
    dtype, draft = result.modes
    return f"{one_line(result.models)} on {result.device}, {dtype}" + ("" if draft == dtype else f" (draft {draft})")


def _counted(result: Verification) -> list[str]:
    """Return the counts that the table shows: those that are not 0 everywhere, which the verdict says, too."""
    return [count for count in COUNTS if any(setting.total(count) for setting in result.settings)]


def _rows(result: Verification, verbose: bool) -> list[list[str]]:
    """Return a row a setting; those that passed share one, the last, unless all are asked for."""
    passed = [setting for setting in result.settings if not setting.verdict.exit_status]
    if verbose or len(passed) < 2:
        passed = []
    counted = _counted(result)
    # a decoder that never drafts is asked one length, of which it makes nothing
    is_sequential = result.record is not None and result.record.terms.sequential and not result.coverage.judged
    idle = is_sequential and len(result.settings) == 1
    shown = (each for each in result.settings if each not in passed)
    rows = [_row("sequential" if idle else setting_name(each), [each], counted) for each in shown]
    if passed:
        words = sorted({setting.verdict.value for setting in passed})
        rows.append(_row(f"{len(passed)} settings {', '.join(words)}", passed, counted))
    return rows


def setting_name(setting: SettingResult) -> str:
    return one_line(f"{setting.settings}{f', {setting.draft} draft' if setting.draft else ''}")


def rounds_of(settings: Sequence[SettingResult], none: str = "-") -> list[str]:
    """Return target calls, mean and range, and the mean of accepted scales a round, as words."""
    calls = [count for setting in settings for count in setting.target_calls]
    accepted = [count for setting in settings for rounds in setting.accepted_scales for count in rounds]
    ranged = f"{sum(calls) / len(calls):.2f} ({min(calls)}-{max(calls)})" if calls else none
    return [ranged, f"{sum(accepted) / len(accepted):.2f}" if accepted else none]


def _row(words: str, settings: list[SettingResult], counted: list[str]) -> list[str]:
    """Return what one setting came to, or several of them together."""
    counts = [str(sum(setting.total(count) for setting in settings)) for count in counted]
    # decoded once for all settings, the reference counts for each of them: the same images on both sides
    ours, theirs = (sum(getattr(each, name) for each in settings) for name in ("seconds", "reference_seconds"))
    return [words, *counts, *rounds_of(settings), f"{ours:.1f}", f"{theirs:.1f}"]


def parts_verdict(rows: Sequence[PartLaw]) -> Verdict:
    """DEFECT where a law is broken or its part crashes, INCONCLUSIVE where a part could not be asked."""
    verdicts = {row.verdict for row in rows}
    if verdicts & set(WRONG_PARTS):
        return Verdict.DEFECT
    is_whole = PartVerdict.HELD in verdicts and not verdicts & {PartVerdict.ABSENT, PartVerdict.UNPROVEN}
    return Verdict.CONSISTENT if is_whole else Verdict.INCONCLUSIVE


def show_parts(rows: Sequence[PartLaw], verdict: Verdict, console: Console, quiet: bool, verbose: bool = False) -> None:
    """Print the parts of a decoder; `quiet` leaves the verdict only.

    Laws that held share a line, and so do those that could not be asked for one reason, unless `verbose`.
    """
    counts = Counter(row.verdict for row in rows)
    wrong = list(dict.fromkeys(one_line(row.part) for row in rows if row.verdict in WRONG_PARTS))
    absent = Counter(row.found for row in rows if row.verdict == PartVerdict.ABSENT and not verbose)
    if not quiet:
        cells = [
            [one_line(f"{row.part} {row.place}"), row.law, row.verdict, shortened(one_line(row.found), MOST_SHOWN)]
            for row in rows
            if verbose or (row.verdict != PartVerdict.HELD and absent[row.found] < 2)
        ]
        print_table(console, "", columns_of("parts"), cells)
        for found, count in absent.items():
            if count > 1:
                say(console, f"not there: {count_of(count, 'law')} of parts ({one_line(found)})")
        held = dict.fromkeys(one_line(row.part) for row in rows if row.verdict == PartVerdict.HELD)
        if held and not verbose:
            other = {one_line(row.part) for row in rows if row.verdict in (*WRONG_PARTS, PartVerdict.UNPROVEN)}
            right = ", ".join(part for part in held if part not in other)
            said = f", all that were asked of {right}" * bool(right)
            say(console, f"held: {count_of(counts[PartVerdict.HELD], 'law')}{said}")
    order = (PartVerdict.HELD, *WRONG_PARTS, PartVerdict.UNPROVEN, PartVerdict.ABSENT)
    clauses = [f"{counts[word]} {word.lower()}" for word in order if counts[word] or word is PartVerdict.HELD]
    text = f"{count_of(len(rows), 'law')} of parts: {', '.join(clauses)}"
    say(console, text + (f"; wrong: {', '.join(wrong)}" if wrong else ""), verdict.value, COLOURS[verdict.exit_status])


def parts_json(rows: Sequence[PartLaw], verdict: Verdict) -> bytes:
    return compact({"verdict": verdict.value, "parts": [vars(row) for row in rows], "versions": versions()})


def say_replayed(console: Console, replayed: Replayed) -> None:
    """Print what came of a case: a line, its answer first."""
    case, why = replayed.case, f" ({replayed.why})" if replayed.why else ""
    text = f"(was: {case})" if replayed.answer is Answer.FIXED else str(case)
    say(console, f"case {case.number}{why}: {text}", replayed.answer.value, ANSWERS[replayed.answer])
    if replayed.answer is Answer.OTHER:
        say(console, f"  now: {replayed.defect}")


def say_smallest(console: Console, case: KeptCase) -> None:
    """Print the smallest case, and the command line that shows it; of cut networks a bundle alone can."""
    say(console, f"  smallest: {case}")
    if case.record.recipe is not None:
        note = " (with all scales; --bundle keeps the cut)" if case.scales else ""
        say(console, f"  alone{note}: {repeat_line(case)}", whole=True)
