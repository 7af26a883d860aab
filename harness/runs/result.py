"""What a run found: counts and judgements by setting, and the worst verdict.

Promise: every count is a sum over judgements; nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from harness.errors import InputError
from harness.judge.verdict import Distance, Divergence, Judgement, Verdict, worst
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.rounding.budget import Allowance
from harness.runs.plan import Plan
from harness.runs.records import Coverage, JudgedRow
from harness.wording import count_of

Claims = dict[str, list[str]]  # on the quality of images: "broken" and "open", a clause each
# What a run counts, as results name it: draws = identical + ties + wrong_tokens + unclaimed.
COUNTS = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")


@dataclass(frozen=True)
class BrokenLaw:
    """A law that is broken.

    Args:
        component: what it watches.
        clause: which law, what was seen, and the line that replays it.
        seed: of its case.
    """

    component: str
    clause: str
    seed: int


@dataclass(frozen=True)
class LawsTried:
    """What was seen of laws that were tried after a run.

    Args:
        cases: in how many each was tried.
        held: how many held, and were exercised.
        broken: those that are broken.
        trivial: ids of those that no case exercised.
        refused: ids of those of which the decoder refused every case.
        why: what it said to the first of these.
        not_applicable: ids of those that say nothing about such a decoder.
        left: ids of those that nobody tried.
    """

    cases: int
    held: int
    broken: tuple[BrokenLaw, ...] = ()
    trivial: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    why: str = ""
    not_applicable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def asked(self) -> int:
        """Laws that apply and were tried."""
        return self.held + len(self.broken) + len(self.trivial) + len(self.refused)

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {**vars(self), "broken": [(law.component, law.clause, law.seed) for law in self.broken]}

    @classmethod
    def from_dict(cls, values: Any) -> LawsTried:
        """Return what `as_dict`, or JSON made of it, says."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)}
        return cls(**{**values, **lists, "broken": tuple(BrokenLaw(*law) for law in values["broken"])})


# How a result is shown; `report.notebook` puts it here, since this room knows no report.
PRESENTED: dict[str, Callable[[Verification], Any]] = {}


def _presented(form: str) -> Callable[[Verification], Any]:
    if form not in PRESENTED:
        raise InputError("result", form, "was not asked for by harness.verify", "import harness.report.notebook first")
    return PRESENTED[form]


@dataclass
class SettingResult:
    """What one setting did over all requests.

    Args:
        settings: which.
        contract: what the decoder claims.
        rows: what each request came to, in the order of the plan.
        draft: which of a design's drafts.
    """

    settings: Settings
    contract: Contract
    rows: list[JudgedRow] = field(default_factory=list)
    draft: str = ""

    @property
    def judgements(self) -> list[Judgement]:
        """The judgement on every request that was not refused."""
        return [row.judgement for row in self.rows if not row.refused]

    @property
    def refused(self) -> int:
        """Requests that the decoder refused."""
        return sum(bool(row.refused) for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of the decodes."""
        return sum(row.seconds for row in self.rows)

    @property
    def reference_seconds(self) -> float:
        """Seconds of the reference's decodes of the same requests."""
        return sum(row.reference_seconds for row in self.rows)

    def total(self, name: str) -> int:
        """Return the sum of a count of `Judgement` over all judgements."""
        return sum(judgement.count(name) for judgement in self.judgements)

    def counted(self, name: str) -> list[Any]:
        """Return a list of `Counts`, of every image."""
        return list(chain.from_iterable(getattr(row.counts, name) for row in self.rows if row.counts))

    @property
    def target_calls(self) -> list[int]:
        """Target forward passes of every image."""
        return self.counted("target_calls")

    @property
    def target_rows(self) -> list[int]:
        """Positions that the target computed, of every image."""
        return self.counted("target_rows")

    @property
    def rounds(self) -> list[int]:
        """Number of rounds of every image."""
        return [len(accepted) for accepted in self.accepted_scales]

    @property
    def accepted_scales(self) -> list[list[int]]:
        """Accepted scales of every round of every image."""
        return self.counted("accepted_scales")

    @property
    def first(self) -> tuple[JudgedRow, Divergence] | None:
        """The first defect, else the first tie: that of the earliest scale, whatever batches the run was cut into."""
        for name in ("defects", "ties"):
            found = [(row, listed[0]) for row in self.rows if (listed := getattr(row.judgement, name))]
            if found:
                return min(found, key=lambda of: of[1].scale)
        return None

    @property
    def distances(self) -> list[Distance]:
        """Distance of every image from the sequential one, where tokens are not claimed."""
        return list(chain.from_iterable(judgement.distances for judgement in self.judgements))

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the requests."""
        return worst([judgement.verdict for judgement in self.judgements])


@dataclass
class Verification:
    """The result of a whole run; `harness.verify` returns one that shows itself in a notebook."""

    settings: list[SettingResult]
    budget: Allowance | None  # the widest of the run: of the last scale, under the largest guidance value met
    device: torch.device
    dtype: torch.dtype
    draft_dtype: torch.dtype
    models: str
    early: list[Divergence] = field(default_factory=list)  # defects of the run as a whole, of no decode
    decode_seconds: float = 0.0  # of every decode, reference and decoder under test, the device's work included
    seconds: float = 0.0  # of all decodes and their judgement, summed over the workers
    wall_seconds: float = 0.0  # from the first task to the last
    stopped: int = 0  # signal that ended the run before its end
    unfinished: int = 0  # tasks that nobody has judged, in the file of a run that goes on or was killed
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    about: dict[str, Any] = field(default_factory=dict)  # identity, recipe, workers: what repeats the run
    covers: bool = False  # a covering design: what was never exercised is a reason to be inconclusive
    reasons: list[str] = field(default_factory=list)  # why the run as a whole proves nothing
    against: str = ""  # the other decoder, where one stood in the reference's place
    laws: LawsTried | None = None  # what was seen of laws that were tried after the run

    def take(self, claims: Claims) -> None:
        """Count claims on the images as a whole: a broken one is a defect, an open one a reason to be inconclusive."""
        seed = self.plan.tasks[0].request.seed
        self.early += [Divergence("quality", text, seed) for text in claims["broken"]]
        self.reasons += [f"quality of {text}" for text in claims["open"]]

    def take_laws(self, tried: LawsTried) -> None:
        """Count what was tried after the run: every broken law is a defect of the component that it watches.

        A decoder that refuses most laws, or laws that nobody tried, are a reason to be inconclusive.
        """
        self.laws, self.about["laws"] = tried, tried.as_dict()
        self.early += [Divergence(law.component, law.clause, law.seed) for law in tried.broken]
        if 2 * len(tried.refused) > tried.asked:
            self.reasons.append(f"the decoder refused {len(tried.refused)} of {tried.asked} laws: {tried.why}")
        if tried.left:
            self.reasons.append(f"{count_of(len(tried.left), 'law')} not tried")

    def _repr_html_(self) -> str | None:
        shown: str | None = PRESENTED["html"](self) if PRESENTED else None
        return shown

    def to_json(self) -> str:
        """Return the document that ``verify --json`` writes (docs/runs.md)."""
        return str(_presented("json")(self))

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame`, a row a setting and request. Raises `InputError` where pandas is not there."""
        return _presented("frame")(self)

    @cached_property
    def coverage(self) -> Coverage:
        """What the decodes exercised; asked for when the run is over."""
        found = Coverage(refused=sum(setting.refused for setting in self.settings))
        for setting in self.settings:
            found.add([row.counts.covered for row in setting.rows if row.counts])
        return found

    @property
    def contract(self) -> str:
        """What the decoder claims."""
        return " / ".join(sorted({setting.contract for setting in self.settings})) or "unknown"

    @property
    def overhead(self) -> float:
        """Time of judging as a share of the time of the decodes; NaN where nothing was decoded."""
        return self.seconds / self.decode_seconds - 1 if self.decode_seconds else float("nan")

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the settings; INCONCLUSIVE at best where the run as a whole proves nothing."""
        found = [setting.verdict for setting in self.settings] + [Verdict.INCONCLUSIVE] * bool(self.reasons)
        return Verdict.DEFECT if self.early else worst(found)

    @property
    def first_case(self) -> tuple[JudgedRow, Divergence] | None:
        """The first defect of the first setting that has one, else the first tie, with its row."""
        found = [setting.first for setting in self.settings if setting.first]
        defects = [case for case in found if case[1] in case[0].judgement.defects]
        return next(iter(defects + found), None)

    @property
    def first_divergence(self) -> Divergence | None:
        """The first defect, else the first tie, else None."""
        if self.early:
            return self.early[0]
        return self.first_case[1] if self.first_case else None

    @property
    def images(self) -> int:
        """Decodes that were judged."""
        return sum(setting.total("images") for setting in self.settings)

    @property
    def is_whole(self) -> bool:
        """Whether the run came to its end; settings whose process keeps dying are left alone, and no interruption."""
        return not (self.stopped or self.unfinished)

    @property
    def compared(self) -> list[str]:
        """What every decode that was judged showed and had compared with the reference's."""
        judged = [set(j.compared) for s in self.settings for j in s.judgements if j.draws]
        return sorted(set.intersection(*judged)) if judged else []

    @property
    def not_compared(self) -> dict[str, str]:
        """What some decode did not show, and why."""
        found: dict[str, str] = {}
        for judgement in (j for s in self.settings for j in s.judgements):
            found |= judgement.not_compared
        return found

    @property
    def changes(self) -> list[str]:
        """Counts that are others than those of the other decoder, where one stood in the reference's place."""
        return [change for setting in self.settings for row in setting.rows for change in row.changes]

    @property
    def so_far(self) -> list[str]:
        """How far every decode came that did not end well."""
        return [j.so_far for s in self.settings for j in s.judgements if j.so_far]

    @property
    def inconclusive(self) -> list[str]:
        """Every distinct reason why the run proves nothing."""
        return sorted({reason for s in self.settings for j in s.judgements for reason in j.inconclusive}) + self.reasons
