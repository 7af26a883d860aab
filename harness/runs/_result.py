"""What a run found: counts and judgements by setting, and the worst verdict.

Promise: every count is a sum over judgements; a verdict is the worst one met, and a claim on the run as a whole (laws,
quality, what was never exercised) can only make it worse. A result is complete in itself: as JSON, as a table, in a
notebook. One long class, since every property of it is a fact of one run, a few lines each.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from harness.decoders import MOVED
from harness.errors import InputError, one_line
from harness.files import compact
from harness.judge import ACCEPTED, CALLS_AND_ROWS, UNEXPLAINED, CodeLine, Divergence, Verdict, worst_verdict
from harness.protocol import Contract, Request, declined
from harness.rounding import Allowance
from harness.runs._case import KeptCase, repeat_line
from harness.runs._exercised import Decode, Exercised, exercised, why_untested
from harness.runs._identity import DECODER, RunHeader
from harness.runs._plan import Plan
from harness.runs._records import Coverage, JudgedRow, LawsTried, QualityClaims, QualityFigures
from harness.runs._setting import COUNTS, SettingResult, counted, document, fragment, row_values
from harness.wording import count_of

ONLY_FILTERED = "guided logits agree, and tokens are wrong where a filter is asked for, and nowhere else"
NO_BONUS = "bonus scales were asked for, and no draft that was accepted whole is followed by one; drop --bonus"
UNTESTED = "contract B claims the target's law, and {}; pass other --seeds, or --laws 2 to try it on small networks"


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
    # read from a file, or `verify` was asked to keep it in one: nothing of what was found
    is_kept: bool = field(default=False, compare=False, repr=False)
    tried: int = 0  # decodes of such a run, those among them that were not kept
    met: Divergence | None = None  # the first defect of these decodes
    unfinished: int = 0  # tasks that nobody has judged: of a run that goes on, was killed, or ended at its first defect
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    record: RunHeader | None = None  # what repeats the run; None where nothing was decoded
    covers: bool = False  # a covering design: what was never exercised is a reason to be inconclusive
    reasons: list[str] = field(default_factory=list)  # why the run as a whole proves nothing
    # the decoder under test and the other one, each with its commit, where one stood in the reference's place
    tested: str = ""
    against: str = ""
    laws: LawsTried | None = None  # what was seen of laws that were tried after the run
    claims: QualityClaims | None = None  # on the quality of images
    quality: QualityFigures | None = None  # what was measured of the quality of images
    sealed: str = ""  # what the last seal of the run's file is called, as its writer holds it
    batches: str = ""  # why batches are as large as they are
    line: CodeLine | str = ""  # of the decoder that makes the first defect, or why none is named; empty: nobody asked

    def take_quality(self, claims: QualityClaims, figures: QualityFigures | None = None) -> None:
        """Count claims on the images as a whole: a broken one is a defect, an open one a reason to be inconclusive."""
        seed = self.plan.tasks[0].request.seed
        self.claims, self.quality = claims, figures
        self.early += [Divergence("quality", text, seed) for text in claims.broken]
        self.reasons += [f"quality of {text}" for text in claims.open]

    def take_laws(self, tried: LawsTried) -> None:
        """Count what was tried after the run: a broken law is a defect, most refused or some left open inconclusive."""
        self.laws = tried
        self.early += [Divergence(law.component, law.clause, law.seed) for law in tried.broken]
        # in a covering design the decodes say how much of the decoder was refused
        if 2 * len(tried.refused) > tried.asked and not self.covers:
            self.reasons.append(f"the decoder refused {len(tried.refused)} of {tried.asked} laws: {tried.why}")
        self.reasons += [f"law {each}" for each in tried.late]
        if tried.left:
            self.reasons.append(f"{count_of(len(tried.left), 'law')} not tried")

    def take_design(self, unasked: int) -> None:
        """Name the drafts of a covering design, count the refusals, and say what proves nothing.

        `unasked` are decodes that are not in the plan, since the decoder cannot be built for them.
        """
        for number, setting in enumerate(self.settings):  # none where nothing could be decoded
            setting.draft = "own" if self.plan.drafts[number] is None else "close"
        self.covers = True
        self.coverage.refused += unasked
        if self.settings:
            reasons = why_untested(self.decoded, unasked)
            reasons += [f"never exercised: {word}" for word in self.exercised.claims]
            self.reasons += reasons if self.is_whole else ["it ended before all was exercised"] * bool(reasons)

    @property
    def modes(self) -> tuple[str, str]:
        """Modes of the target and of the draft, as the command line names them."""
        if self.record is not None:
            return self.record.networks.dtype, self.record.networks.draft_dtype
        return str(self.dtype).removeprefix("torch."), str(self.draft_dtype).removeprefix("torch.")

    @property
    def _requests(self) -> dict[int, Request]:
        return {task.number: task.request for task in self.plan.tasks}

    @property
    def decoded(self) -> list[Decode]:
        """What was asked of the decoder, in the plan's order, as far as the run came."""
        requests = self._requests
        declines = self.record.declines if self.record else ()
        decodes = []
        for number, setting in enumerate(self.settings):
            words = declines[number] if number < len(declines) else ()
            for row in setting.rows:
                word = declined(words, setting.settings, requests[row.task])
                decodes.append(Decode(setting.settings, requests[row.task], bool(row.refused and not word), word))
        return decodes

    @property
    def exercised(self) -> Exercised:
        """What was asked of this decoder, what it does not do, and what nobody asked."""
        return exercised(self)

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
    def verdict(self) -> Verdict:
        """The worst verdict of the settings; INCONCLUSIVE at best where the run as a whole proves nothing."""
        found = [setting.verdict for setting in self.settings] + [Verdict.INCONCLUSIVE] * bool(self.open)
        return Verdict.DEFECT if self.early else worst_verdict(found)

    @property
    def first_case(self) -> tuple[JudgedRow, Divergence] | None:
        """The first defect of the first setting that has one, a crash before all others, else the first tie."""
        found = [setting.first for setting in self.settings if setting.first]
        defects = [case for case in found if case[1] in case[0].judgement.defects]
        crashes = [case for case in defects if case[1].component == "crash"]
        return next(iter(crashes + defects + found), None)

    @property
    def before_the_crash(self) -> Divergence | None:
        """What was wrong in the same decode before it crashed, where a crash is the first defect."""
        case = None if self.early else self.first_case
        if case is None or case[1].component != "crash":
            return None
        return next((each for each in case[0].judgement.defects if each.component != "crash"), None)

    @property
    def first_divergence(self) -> Divergence | None:
        """The first defect, else the first tie, else None."""
        if self.early or self.first_case is None:
            return self.early[0] if self.early else None
        row, first = self.first_case
        named = first.component, first.detail
        if named in (UNEXPLAINED, ACCEPTED) and self._is_wrong_when_filtered:
            return replace(first, component="filter", detail=ONLY_FILTERED)
        if named == UNEXPLAINED and any(MOVED in remark for remark in row.judgement.remarks):
            return replace(first, component="noise", detail=f"guided logits agree, and decoding {MOVED}")
        return first

    @property
    def first_word(self) -> str:
        """What `first_divergence` is called."""
        if self.against:
            return "first difference"
        return "first tie" if self.verdict in (Verdict.TIE, Verdict.INCONCLUSIVE) else "first defect"

    @property
    def _is_wrong_when_filtered(self) -> bool:
        """Whether some decodes without a filter were judged, and defects are in those with one alone."""
        requests, wrong = self._requests, dict[bool, bool]()
        for row in (row for setting in self.settings for row in setting.rows if not row.refused):
            is_filtered = any(top_k or top_p for top_k, top_p in requests[row.task].every_filter)
            wrong[is_filtered] = wrong.get(is_filtered, False) or bool(row.judgement.defects)
        return wrong == {False: False, True: True}

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
        stated = {CALLS_AND_ROWS} if self.is_its_word else set()
        return sorted(set.intersection(*judged) - stated) if judged else []

    @property
    def not_compared(self) -> dict[str, str]:
        """What some decode did not show, and why."""
        return {name: why for s in self.settings for j in s.judgements for name, why in j.not_compared.items()}

    @property
    def changes(self) -> list[str]:
        """Counts that are others than those of the other decoder, where one stood in the reference's place."""
        return [change for setting in self.settings for row in setting.rows for change in row.changes]

    @property
    def so_far(self) -> list[str]:
        """How far every decode came that did not end well."""
        return [j.so_far for s in self.settings for j in s.judgements if j.so_far]

    @property
    def is_its_word(self) -> bool:
        """Whether calls, rows, rounds and accepted scales are what the decoder states, and nothing confirms."""
        return self.record is not None and self.record.counted_by == DECODER

    @property
    def remarks(self) -> dict[str, int]:
        """What decodes left changed, showed otherwise than asked, or cannot show, and in how many: no defects."""
        found = Counter(each for s in self.settings for j in s.judgements for each in dict.fromkeys(j.remarks))
        made = (one.request for one in self.decoded if not (one.refused or one.declared))
        guided = [request for request in made if request.is_guided]
        last = self.record.networks.classes if self.record else 0  # 0 where conditions are texts
        if last and guided and all({*(request.labels or ())} == {last} for request in guided):
            found[f"label {last} alone, the unconditional one: guidance changes nothing"] = len(guided)
        return dict(found)

    @property
    def is_law_untested(self) -> bool:
        """Whether a decoder claims the target's law, and nobody compared what it draws with that law."""
        claims = [setting for setting in self.settings if setting.contract is Contract.LAW and not self.against]
        tested = self.laws is not None and self.laws.tested_the_law
        # whether a setting's own tokens would have shown another law than the target's, had there been one
        shown = (any(wealth.verdict is Verdict.CONSISTENT for wealth in setting.bets) for setting in claims)
        return not tested and not all(shown)

    @property
    def open(self) -> list[str]:
        """Why the run as a whole proves nothing: what was noted, and a law that is claimed and was not tested."""
        reasons = [*self.reasons, *[NO_BONUS] * self.is_without_bonus]
        if not self.is_law_untested:
            return reasons
        bets = [wealth for setting in self.settings for wealth in setting.bets]
        says = max(bets, key=lambda wealth: wealth.images).says() if bets else "nobody tested it"
        return [*reasons, UNTESTED.format(says)]

    @property
    def is_without_bonus(self) -> bool:
        """Whether settings ask for bonus scales, and a decoder went on after drafts accepted whole without any.

        A covering design says it of its own; under contract C a rule may leave it at what it accepts.
        """
        asked = [one for one in self.settings if one.settings.bonus and one.contract is not Contract.QUALITY]
        covered = [row.counts.covered for setting in asked for row in setting.rows if row.counts]
        return not self.covers and any(one.passed for one in covered) and not any(one.bonus for one in covered)

    @property
    def inconclusive(self) -> list[str]:
        """Every distinct reason why the run proves nothing."""
        return sorted({reason for s in self.settings for j in s.judgements for reason in j.inconclusive}) + self.open

    @property
    def summary(self) -> str:
        """The clause that follows the verdict."""
        return f"contract {self._claim}: {counted(self.totals)}"

    @property
    def short_summary(self) -> str:
        """The same clause without what is 0."""
        totals = self.totals
        words = (("identical", "identical"), ("ties", "tied"), ("wrong_tokens", "wrong"), ("unclaimed", "not claimed"))
        counts = [f"{totals[name]} {word}" for name, word in words if totals[name]]
        texts = [count_of(totals["draws"], "draw"), *counts, count_of(totals["defects"], "defect")]
        return f"contract {self._claim}: {', '.join(texts)}"

    @property
    def _claim(self) -> str:
        """Contract, and from which scale on tokens may differ."""
        free = self.record.terms.may_differ_from if self.record else None
        return self.contract if free is None else f"{self.contract} from scale {free} on, token-identical before"

    @property
    def totals(self) -> dict[str, int]:
        """Every count of `COUNTS` over all settings, defects of the run as a whole among them."""
        totals = {name: sum(setting.total(name) for setting in self.settings) for name in COUNTS}
        return totals | {"defects": totals["defects"] + len(self.early)}

    @property
    def alone(self) -> str:
        """The command line that shows the first divergence alone; empty where none made the run, or could ask it."""
        case = self.case
        if case is None or case.record.recipe is None or case.request.filters or case.request.more_smooth:
            return ""
        return repeat_line(case)

    @property
    def case(self) -> KeptCase | None:
        """The first divergence as one that can be repeated; None where there is none."""
        first, record, plan = self.first_case, self.record, self.plan
        if first is None or record is None or self.early:
            return None
        row, divergence = first
        request = self._requests[row.task]
        return KeptCase(
            0, record, plan.settings[row.setting], request, divergence, draft_noise=plan.drafts[row.setting],
            against=record.against(row.setting), is_own=True, in_process=record.terms.in_process,
        )  # fmt: skip

    def to_json(self) -> str:
        """Return the document that ``verify --json`` writes (docs/runs.md): counts are totals, lists of images."""
        return compact(document(self)).decode()

    def to_records(self) -> list[dict[str, object]]:
        """Return plain values, a record a setting and request."""
        requests = self._requests
        return [
            {"setting": str(setting.settings), "contract": str(setting.contract), **row_values(row, requests[row.task])}
            for setting in self.settings
            for row in setting.rows
        ]

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame` of `to_records`. Raises `InputError` where pandas is not installed."""
        try:
            import pandas  # noqa: PLC0415  # no dependency: whoever works with frames has it
        except ImportError:
            rule, remedy = "is not installed", "pip install pandas, or take to_json()"
            raise InputError("to_frame", "pandas", rule, remedy) from None
        return pandas.DataFrame.from_records(self.to_records())

    def __str__(self) -> str:
        text = "; ".join(filter(None, (f"{self.verdict.value} {self.summary}", self.exercised.clause)))
        first = self.first_divergence if self.verdict is Verdict.DEFECT else None
        return text if first is None else f"{self.first_word}: {one_line(str(first))}\n{text}"

    def _repr_html_(self) -> str:
        return fragment(self)
