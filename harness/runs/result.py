"""What a run found: counts and judgements by setting, and the worst verdict.

Promise: every count is a sum over judgements; nothing is judged here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch

from harness.judge.verdict import Distance, Divergence, Judgement, Verdict, worst
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.protocol.trace import Trace
from harness.rounding.budget import Allowance
from harness.runs.coverage import Coverage

# What a run counts, as results name it: draws = identical + ties + wrong_tokens + unclaimed.
COUNTS = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")


@dataclass
class SettingResult:
    """What one setting did over all requests."""

    settings: Settings
    contract: Contract
    judgements: list[Judgement] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)  # tensors dropped, counts kept
    seconds: float = 0.0
    reference_seconds: float = 0.0
    refused: int = 0  # requests
    draft: str = ""  # which of a design's drafts

    def total(self, name: str) -> int:
        """Return the sum of a count of `Judgement` over all judgements."""
        return sum(judgement.count(name) for judgement in self.judgements)

    @property
    def target_calls(self) -> list[int]:
        """Target forward passes of every image."""
        return list(chain.from_iterable(trace.target_calls for trace in self.traces))

    @property
    def target_rows(self) -> list[int]:
        """Positions that the target computed, of every image."""
        return list(chain.from_iterable(trace.target_rows for trace in self.traces))

    @property
    def rounds(self) -> list[int]:
        """Number of rounds of every image."""
        return [len(rounds) for trace in self.traces for rounds in trace.rounds]

    @property
    def accepted_scales(self) -> list[list[int]]:
        """Accepted scales of every round of every image."""
        return [[turn.accepted for turn in rounds] for trace in self.traces for rounds in trace.rounds]

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
    """The result of a whole run."""

    settings: list[SettingResult]
    budget: Allowance | None  # the widest of the run: of the last scale, under the largest guidance value met
    device: torch.device
    dtype: torch.dtype
    draft_dtype: torch.dtype
    models: str
    early: list[Divergence] = field(default_factory=list)  # defects met before anything could be decoded
    decode_seconds: float = 0.0  # of every decode, reference and decoder under test, the device's work included
    seconds: float = 0.0  # of all decodes and their judgement
    covers: bool = False  # a covering design: what was never exercised is a reason to be inconclusive
    reasons: list[str] = field(default_factory=list)  # why the run as a whole proves nothing
    against: str = ""  # the other decoder, where one stood in the reference's place
    changes: list[str] = field(default_factory=list)  # counts that are others than its

    @cached_property
    def coverage(self) -> Coverage:
        """What the decodes exercised; asked for when the run is over."""
        found = Coverage(refused=sum(setting.refused for setting in self.settings))
        for setting in self.settings:
            found.add(setting.traces)
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
    def first_divergence(self) -> Divergence | None:
        """The first defect met, else the first tie, else None."""
        judgements = [judgement for setting in self.settings for judgement in setting.judgements]
        defects = self.early + [judgement.defects[0] for judgement in judgements if judgement.defects]
        ties = [judgement.ties[0] for judgement in judgements if judgement.ties]
        return next(iter(defects + ties), None)

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
    def so_far(self) -> list[str]:
        """How far every decode came that did not end well."""
        return [j.so_far for s in self.settings for j in s.judgements if j.so_far]

    @property
    def inconclusive(self) -> list[str]:
        """Every distinct reason why the run proves nothing."""
        return sorted({reason for s in self.settings for j in s.judgements for reason in j.inconclusive}) + self.reasons
