"""Judgements on recordings. Promise: nothing compared is INCONCLUSIVE; the worst of the parts is the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.judge.verdict import Divergence, Verdict
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.wording import count_of

NOT_RECORDED = float("nan")


@dataclass
class CaseResult:
    """The judgement on one case.

    Args:
        id: of the case.
        request: what was drawn.
        draws: tokens recorded; identical + ties + wrong ones + not judged.
        identical: recorded tokens that are the draw made here on the same prefix.
        not_judged: tokens after a soft tie of `more_smooth`, where rounding may move more than a bound allows.
        soft_ties: choices of `more_smooth` whose best codes lie within the budget, in units of τ.
        map_positions: positions of f_hat, and `map_not_judged` those that are not judged, for the same reason.
        ties: certified ones.
        defects: everything else.
        delta_logits: largest |Δ guided logits|; NaN where not recorded.
        delta_f_hat: largest |Δ f_hat|, after any recorded scale.
        delta_image: largest |Δ image|.
        run: the free run, tensors dropped, counts kept; None when nothing was run.
        free_run: whether it reproduces every token.
    """

    id: str
    request: Request
    draws: int = 0
    identical: int = 0
    not_judged: int = 0
    soft_ties: int = 0
    map_positions: int = 0
    map_not_judged: int = 0
    ties: list[Divergence] = field(default_factory=list)
    defects: list[Divergence] = field(default_factory=list)
    delta_logits: float = NOT_RECORDED
    delta_f_hat: float = NOT_RECORDED
    delta_image: float = NOT_RECORDED
    run: Trace | None = None
    free_run: bool = False

    @property
    def verdict(self) -> Verdict:
        """DEFECT, INCONCLUSIVE when nothing was judged, TIE or IDENTICAL."""
        if self.defects or self.draws == self.not_judged:
            return Verdict.DEFECT if self.defects else Verdict.INCONCLUSIVE
        return Verdict.TIE if self.ties else Verdict.IDENTICAL

    def defect(self, component: str, detail: str, scale: int = -1) -> None:
        """Note a defect that is no single token. Effects: on `defects`."""
        self.defects.append(Divergence(component, detail, self.request.seed, scale=scale))


@dataclass
class FileResult:
    """The judgement on one file; `unverified` says why nothing was compared."""

    path: str
    cases: list[CaseResult] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    unverified: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of the file and its cases."""
        verdicts = [case.verdict for case in self.cases]
        if self.defects or Verdict.DEFECT in verdicts:
            return Verdict.DEFECT
        if self.unverified or not verdicts or Verdict.INCONCLUSIVE in verdicts:
            return Verdict.INCONCLUSIVE
        return Verdict.TIE if Verdict.TIE in verdicts else Verdict.IDENTICAL


def golden_totals(results: Sequence[FileResult]) -> str:
    """Return the last line: ``N of N cases, M draws compared``, and how many were not judged, where any was not."""
    cases = [case for result in results for case in result.cases]
    good = sum(case.verdict in (Verdict.IDENTICAL, Verdict.TIE) for case in cases)
    unjudged = sum(case.not_judged for case in cases)
    draws = count_of(sum(case.draws for case in cases) - unjudged, "draw")
    line = f"{good} of {count_of(len(cases), 'case')}, {draws} compared"
    return f"{line}, {unjudged} not judged" if unjudged else line
