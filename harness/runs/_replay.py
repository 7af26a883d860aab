"""Recorded defects, repeated and reduced, and the line of code that makes one.

Promise: the answer is one of four, and says no more than was seen. `FIXED` is said of other code alone: where the code
is the recorded one and nothing fails, the defect could not be reproduced, and what is different is named. What
`shrink_case` returns was seen to fail with the component of the case that was given.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path

from harness.decoders import is_own_decoder, start_runner
from harness.errors import InputError
from harness.judge import CodeLine, Divergence, Verdict
from harness.models import ModelPair, close_pair
from harness.protocol import Settings
from harness.rounding import joint_budget
from harness.runs._case import KeptCase, unlike
from harness.runs._plan import Task
from harness.runs._result import Verification
from harness.runs._work import VerifyWork

KEEPS = (  # of a defect that is not seen again, though nothing that is known is other than it was
    "a new decoder does this batch right: the run's keeps something between decodes or settings (a cache, a counter, a "
    "global name), varies by chance, or is wrong over many decodes alone"
)


class Answer(StrEnum):
    STILL = "STILL FAILS"
    FIXED = "FIXED"
    OTHER = "OTHER DEFECT"
    CANNOT = "CANNOT REPRODUCE"

    @property
    def exit_status(self) -> int:
        """1 a defect, 0 none, 3 nothing is known."""
        return {"STILL FAILS": 1, "OTHER DEFECT": 1, "FIXED": 0, "CANNOT REPRODUCE": 3}[self.value]


@dataclass(frozen=True)
class Replayed:
    """What came of a case: the answer, why in one clause, and the defect that was met now."""

    case: KeptCase
    answer: Answer
    why: str = ""
    defect: Divergence | None = None


def replay_case(case: KeptCase, models: ModelPair, budgets: Path) -> Replayed:
    """Repeat one case on uncut networks. Effects: a process for a decoder that is not the harness's own."""
    why = unlike(case, models)
    if why:
        return Replayed(case, Answer.CANNOT, why)
    recorded, here = case.recorded, case.identity(models)
    try:
        defect = first_defect(case, models, budgets)
    except InputError as error:
        return Replayed(case, Answer.CANNOT, f"the decoder cannot be had: {error}")
    elsewhere = here.differences(recorded, ("harness", "versions", "machine"))
    if defect is not None:
        is_same = all(getattr(defect, n) == getattr(case.defect, n) for n in ("component", "seed", "image", "scale"))
        return Replayed(case, Answer.STILL if is_same else Answer.OTHER, "; ".join(elsewhere), defect)
    codes = [(side.decoder.source, side.against and side.against.source) for side in (here, recorded)]
    if codes[0] != codes[1]:  # what may have been changed in order to mend it
        return Replayed(case, Answer.FIXED, "; ".join(elsewhere))
    return Replayed(case, Answer.CANNOT, "; ".join(elsewhere) or f"{KEEPS}; or what it imports was changed")


def first_defect(case: KeptCase, models: ModelPair, budgets: Path) -> Divergence | None:
    """Judge a case again; return the first defect met, or None. Raises `InputError` where nothing can be built."""
    if case.scales:
        models = models.first_scales(case.scales)
    budget = joint_budget(models, case.settings.compiled, budgets)  # measured by numbers of its own
    models = replace(models, numbers=case.numbers)
    decoder = case.implementation, (case.settings,)
    work = VerifyWork(models, *decoder, case.request.B, budget, case.terms, (case.draft_noise,))
    with closing(work.open()) as opened:
        rows = opened.do(Task(0, case.request, (0,))).rows
    moved = [Divergence("precision", f"building changed {what}", case.defect.seed) for what in opened.about.moved]
    return next(iter(moved + [row.judgement.defects[0] for row in rows if row.judgement.defects]), None)


def locate_case(case: KeptCase, models: ModelPair) -> CodeLine | str:
    """Return the line of the decoder's code that makes a case go wrong on uncut networks, or why none is named.

    Its image is decoded alone, or with its batch where that alone shows it; plainly, whatever was compiled or recorded.
    """
    if why := _unsearched(case):
        return why
    if case.against is not None:
        (_, new), (_, old) = case.code
        line = locate_case(replace(case, against=None), models)
        if not isinstance(line, CodeLine):
            return RIGHT if line == NOT_FOUND else line
        met = _change_met(line, Path(new).resolve(), Path(old).resolve())
        return replace(line, tried="; ".join(filter(None, (line.tried, met))))
    whole, models = models, models.first_scales(case.scales) if case.scales else models
    models = models if case.draft_noise is None else close_pair(models, case.draft_noise)
    models, settings = replace(models, numbers=case.numbers), replace(case.settings, graphs=False, compiled=False)
    request, address = case.request, (case.defect.seed, case.defect.image)
    rows = [row for row, each in enumerate(request.addresses) if each == address and request.order == "image"]
    requests = [*(request.only([row]) for row in rows[:1]), request]
    try:
        for k, asked in enumerate(requests):
            # a new decoder each time: what one keeps between decodes is no fault of a batch
            with closing(start_runner(models, case.implementation, [settings], request.B, case.terms)) as runner:
                line = runner.line(0, asked, settings.greedy)
            if k and isinstance(line, CodeLine) and asked.B > 1:
                told = f"only in its batch of {asked.B}: alone the image is right"
                return replace(line, tried="; ".join(filter(None, (told, line.tried))))
            if line:
                return line
        right = first_defect(case, whole, case.terms.budgets) is None
        return NOT_FOUND if right else "not found: no value of a plain run that is recorded is wrong"
    except InputError as error:
        return f"not searched: {error}"


NEAR = 3  # lines of a change around it, as `git diff` shows them


def _change_met(line: CodeLine, new: Path, old: Path) -> str:
    """Say which change between two checkouts a line, or the innermost frame that called it, lies in."""
    for frame in line.stack:
        name, _, number = frame.partition(", in ")[0].rpartition(":")
        if not (file := Path(name).resolve()).is_relative_to(new):
            continue
        before, after = map(_lines_of, (old / file.relative_to(new), file))
        for word, _, _, begin, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if word != "equal" and begin - NEAR < int(number) <= max(end, begin + 1) + NEAR:
                return f"{file.name}:{number} lies at what was changed there, lines {begin + 1} to {end}"
    return f"none of its lines was changed: {old.name} may go wrong there, too"


def _lines_of(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.is_file() else []


LOCATE_S = 60.0  # of a search that nobody asked for, at most
DECODES = 40  # that a search takes as long as: on digits 25 to 43 (docs/locate.md)
NOT_FOUND = f"not found: {KEEPS}"
RIGHT = "not found: beside the reference this decoder does the batch right, and what it was compared with may not"
NO_DECODE = "not searched: the defect is of no decode"
NO_VALUE = "not searched: no token and no tensor of the decode is wrong"
OF_RECORDS = ("scheduling", "trace", "counts", "process", "skipped")  # components that no tensor of a decode shows


def _unsearched(case: KeptCase) -> str:
    """Return why no line of a case is searched; empty where one is."""
    if case.request.more_smooth:
        return "not searched: under more_smooth values are judged from scale to scale"
    if case.against is None:
        return ""
    (name, new), (other, old) = case.code
    return "" if name == other and new and old else "not searched: another decoder stood in the reference's place"


def take_line(
    result: Verification, models: ModelPair, asked: bool | None = None, told: Callable[[float], object] | None = None
) -> None:
    """Search the line of a run's first defect; unasked (None) that of somebody's decoder, for `LOCATE_S` at most.

    `told` is called with the seconds that a search will take, before it begins.
    """
    if asked is False or result.verdict is not Verdict.DEFECT:
        return
    case, first = result.case, result.first_case
    if case is None or first is None:
        result.line = NO_DECODE if asked else ""
        return
    found = first[0].judgement
    is_open = found.wrong_tokens or found.wrong_tensors or not found.draws  # or nothing was compared
    if first[1].component in OF_RECORDS and not (asked and is_open):
        result.line = NO_VALUE if asked else ""
        return
    # the quickest of such decodes: others met other programs, or a decoder that had yet to warm up
    alike = (row for each in result.settings for row in each.rows if row.setting == first[0].setting)
    paces = (row.seconds for row in alike if row.seconds and row.judgement.images == case.request.B)
    pace = min(paces, default=first[0].seconds)
    seconds = DECODES * pace / (case.request.B if case.request.order == "image" else 1)
    if asked or (seconds <= LOCATE_S and not is_own_decoder(case.implementation)):
        if told is not None and not _unsearched(case):
            told(seconds)
        line = locate_case(case, models)
        result.line = line if asked or isinstance(line, CodeLine) or line == NOT_FOUND else ""
    elif not is_own_decoder(case.implementation):
        result.line = f"not searched (about {math.ceil(seconds / 60)} min); --locate does it"


MOST_TRIES = 64  # decodes of a reduction, and its judgement


def shrink_case(case: KeptCase, models: ModelPair, budgets: Path) -> KeptCase:
    """Reduce a case that fails on uncut networks."""
    for reduced in (_fewer_images, _one_label, _shorter, _fewer_scales):
        for smaller in list(reduced(case, models))[:MOST_TRIES]:
            with suppress(InputError):  # a decoder that refuses a case does not fail
                defect = first_defect(smaller, models, budgets)
                if defect is not None and defect.component == smaller.defect.component:
                    case = replace(smaller, defect=defect, exhibit={})
                    break
    return case


def _fewer_images(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    """The image alone, or with as few as possible of those before and after it."""
    request, address = case.request, (case.defect.seed, case.defect.image)
    if request.order != "image" or request.B == 1:
        return
    row = request.addresses.index(address) if address in request.addresses else 0
    size = 1
    while size < request.B:
        for begin in dict.fromkeys((max(0, row - size + 1), min(row, request.B - size))):
            yield replace(case, request=request.only(list(range(begin, begin + size))))
        size *= 2


def _one_label(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    labels = case.request.labels
    if labels and len(set(labels)) > 1:
        for label in dict.fromkeys((case.defect.label, *labels)):
            if label >= 0:
                yield replace(case, request=replace(case.request, labels=(label,) * case.request.B))


def _shorter(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    length = case.settings.draft_len
    if length == "":  # published code, which is not asked for one
        return
    most = int(length) if str(length).isdigit() else models.pyramid.S + 1
    for shorter in range(1, most):
        yield case.under([s if s.draft_len == "" else replace(s, draft_len=shorter) for s in case.settings_of_both])


def _fewer_scales(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    for scales in range(1, models.pyramid.S):
        yield replace(case.under([_fitting(settings, scales) for settings in case.settings_of_both]), scales=scales)


def _fitting(settings: Settings, scales: int) -> Settings:
    """Return settings whose draft_len is no longer than the pyramid."""
    length = settings.draft_len
    return replace(settings, draft_len=min(int(length), scales)) if str(length).isdigit() else settings
