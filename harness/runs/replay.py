"""Recorded defects, repeated: does the decoder still fail as it did?

Promise: the answer is one of four, and says no more than was seen. `FIXED` is said of other code alone: where the code
is the recorded one and nothing fails, the defect could not be reproduced, and what is different is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.decoders.limits import Limits
from harness.decoders.terms import Other, Terms
from harness.errors import InputError
from harness.judge.verdict import Divergence
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.protocol.noise import RecordedNumbers
from harness.protocol.request import Request
from harness.rounding.measure import joint_budget
from harness.runs.identity import Identity, differences, identity_of
from harness.runs.plan import Task
from harness.runs.records import against_of
from harness.runs.runfile import exhibit_of, read
from harness.runs.work import VerifyWork
from harness.wording import count_of

MOST_CASES = 16  # that are repeated where none is named
CODE = ("decoder", "against")  # parts of an identity: what may have been changed in order to mend it


class Answer(StrEnum):
    """What came of a replay."""

    STILL = "STILL FAILS"
    FIXED = "FIXED"
    OTHER = "OTHER DEFECT"
    CANNOT = "CANNOT REPRODUCE"

    @property
    def exit_status(self) -> int:
        """1 a defect, 0 none, 3 nothing is known."""
        return {"STILL FAILS": 1, "OTHER DEFECT": 1, "FIXED": 0, "CANNOT REPRODUCE": 3}[self.value]


@dataclass(frozen=True)
class KeptCase:
    """One recorded defect.

    Args:
        number: in its file.
        about: what the run said of itself.
        settings: of the decoder.
        request: what was drawn.
        found: the defect.
        scales: the first ones of the pyramid that the networks are cut to; 0 = all.
        numbers: those that were drawn, where they are kept; None = they are generated anew.
        exhibit: tensors around it.
        draft_noise: of the draft that the setting met, where a design chose it (`Plan.draft_of`).
        against: the decoder that stood in the reference's place, with its one setting.
    """

    number: int
    about: Mapping[str, Any]
    settings: Settings
    request: Request
    found: Divergence
    scales: int = 0
    numbers: RecordedNumbers | None = field(default=None, repr=False)
    exhibit: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    draft_noise: float | None = None
    against: Other | None = None

    @property
    def implementation(self) -> str:
        """Name of the decoder's factory."""
        return str(self.about["identity"]["decoder"]["implementation"])

    @property
    def terms(self) -> Terms:
        """How it was judged; the budget is that of the machine at hand."""
        told = self.about["terms"]
        contract = Contract.of(told["contract"]) if told["contract"] else None
        limits = Limits(**told["limits"])
        return Terms(contract, told["sequential"], told["in_process"], limits, against=self.against)

    @property
    def settings_of_both(self) -> list[Settings]:
        """Settings of the decoder, then of the one in the reference's place."""
        return [self.settings, *(self.against.settings if self.against else ())]

    def under(self, settings: Sequence[Settings]) -> KeptCase:
        """Return the case under other settings, in the order of `settings_of_both`."""
        other = replace(self.against, settings=tuple(settings[1:])) if self.against else None
        return replace(self, settings=settings[0], against=other)

    def identity(self, models: ModelPair) -> Identity:
        """Return what it is of here."""
        return identity_of(models, (self.implementation, self.settings), self.against)

    def __str__(self) -> str:
        labels = sorted(set(self.request.labels or ()))
        images = f"{count_of(self.request.B, 'image')} of label {', '.join(map(str, labels))}"
        scales = f", the first {count_of(self.scales, 'scale')}" if self.scales else ""
        return f"{images}, {self.settings}{scales}: {self.found}"


@dataclass(frozen=True)
class Replayed:
    """What came of a case: the answer, why in one clause, and the defect that was met now."""

    case: KeptCase
    answer: Answer
    why: str = ""
    found: Divergence | None = None


def cases_of(path: Path) -> list[KeptCase]:
    """Return the defects of a run file: the first of every request and setting that has one, setting by setting.

    Raises:
        InputError: it is no run file, or of a run that was not asked what it is of.
    """
    kept, rows = read(path, "file")
    if not kept.about.get("identity"):
        raise InputError("file", str(path), "does not say of what its run was", "record it with verify --run")
    requests = {task.number: task.request for task in kept.plan.tasks}
    bad = sorted((row for row in rows if row.judgement.defects), key=lambda row: (row.setting, row.task))
    return [
        KeptCase(
            number, kept.about, kept.plan.settings[row.setting], requests[row.task], row.judgement.defects[0],
            exhibit=exhibit_of(path, row) if number < MOST_CASES else {},
            draft_noise=kept.plan.draft_of(row.setting),
            against=against_of(kept.about["terms"]["against"], row.setting),
        )
        for number, row in enumerate(bad)
    ]  # fmt: skip


def of_checkouts(case: KeptCase, checkouts: Sequence[Path | None]) -> KeptCase:
    """Return the case with its published code elsewhere: the decoder's, and that in the reference's place.

    Raises:
        InputError: no such decoder has a checkout.
    """
    found = case.settings_of_both
    for side, (name, folder) in enumerate(zip(("checkout", "against_checkout"), checkouts, strict=True)):
        if folder is None:
            continue
        if side >= len(found) or not found[side].option("checkout"):
            raise InputError(name, str(folder), f"is of no use: case {case.number} was recorded without one", "drop it")
        options = tuple((n, str(folder.absolute()) if n == "checkout" else value) for n, value in found[side].options)
        found[side] = replace(found[side], options=options)
    return case.under(found)


def unlike(case: KeptCase, models: ModelPair) -> str:
    """Return why a case cannot be repeated on these networks at all; empty where it can."""
    here, there = case.identity(models), case.about["identity"]
    weights = differences({"weights": here["weights"]}, {"weights": there["weights"]})
    if weights:
        return f"other weights: {'; '.join(weights)}"
    mode = differences({"mode": here["mode"]}, {"mode": there["mode"]})
    if mode:
        return f"another mode: {'; '.join(mode)}"
    if here["machine"]["device"] != there["machine"]["device"] and case.numbers is None:
        names = [side["machine"]["name"] for side in (there, here)]
        return f"another device: recorded on {names[0]}, here {names[1]}, whose numbers are others; pass a --bundle"
    return ""


def replay(case: KeptCase, models: ModelPair, budgets: Path) -> Replayed:
    """Repeat one case.

    Args:
        case: recorded.
        models: networks on their device; uncut.
        budgets: file of stored error budgets.

    Effects: a process for a decoder that is not the harness's own.
    """
    why = unlike(case, models)
    if why:
        return Replayed(case, Answer.CANNOT, why)
    there, here = case.about["identity"], case.identity(models)
    try:
        found = first_defect(case, models, budgets)
    except InputError as error:
        return Replayed(case, Answer.CANNOT, f"the decoder cannot be had: {error}")
    elsewhere = differences(here, there, without=(*CODE, "weights", "mode"))
    if found is not None:
        is_same = all(getattr(found, n) == getattr(case.found, n) for n in ("component", "seed", "image", "scale"))
        return Replayed(case, Answer.STILL if is_same else Answer.OTHER, "; ".join(elsewhere), found)
    if any(here[side].get("source") != there[side].get("source") for side in CODE):
        return Replayed(case, Answer.FIXED, "; ".join(elsewhere))
    return Replayed(case, Answer.CANNOT, "; ".join(elsewhere) or "the same code on the same machine does not fail now")


def first_defect(case: KeptCase, models: ModelPair, budgets: Path) -> Divergence | None:
    """Judge a case again; return the first defect met, or None. Raises `InputError` where nothing can be built."""
    if case.scales:
        models = models.first_scales(case.scales)
    budget, models = (
        joint_budget(models, case.settings.compiled, budgets),
        replace(models, numbers=case.numbers),
    )  # measured by numbers of its own
    work = VerifyWork(
        models, case.implementation, (case.settings,), case.request.B, budget, case.terms, (case.draft_noise,)
    )
    opened = work.open()
    try:
        rows = opened.do(Task(0, case.request, (0,))).rows
    finally:
        opened.close()
    moved = [Divergence("precision", f"building changed {what}", case.found.seed) for what in opened.about["moved"]]
    return next(iter(moved + [row.judgement.defects[0] for row in rows if row.judgement.defects]), None)
