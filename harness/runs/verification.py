"""Verify a decoder over many requests and settings.

Promise: every setting sees the same requests, the reference runs once a request, and the verdict is the worst one met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from harness.clock import timed
from harness.errors import NonFiniteError
from harness.judge.decode import judge
from harness.judge.evidence import Evidence
from harness.judge.verdict import Distance, Divergence, Judgement, Verdict, worst
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Implementation, Settings
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.rounding.budget import Allowance, Budget
from harness.rounding.measure import budget_for
from harness.rounding.precision import unchanged
from harness.rounding.stored import SHIPPED
from harness.runs.factory import Factory, build
from harness.runs.here import run


@dataclass
class SettingResult:
    """What one setting did over all requests."""

    settings: Settings
    contract: str
    judgements: list[Judgement] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)  # tensors dropped, counts kept
    seconds: float = 0.0
    reference_seconds: float = 0.0

    def total(self, name: str) -> int:
        """Return the sum of a count, or of the length of a list, over all judgements."""
        values = [getattr(judgement, name) for judgement in self.judgements]
        return sum(value if isinstance(value, int) else len(value) for value in values)

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
    """The result of a whole run.

    Args:
        settings: what each of them did.
        budget: the widest allowance of the run, that of the last scale under the largest guidance value met; every
            scale of every request is judged by its own.
        device: of the target.
        dtype: of the target.
        draft_dtype: of the draft.
        models: name of the pair.
        early: defects met before anything could be decoded.
        decode_seconds: of every decode, reference and decoder under test, the device's work included.
        seconds: of all decodes and their judgement.
    """

    settings: list[SettingResult]
    budget: Allowance | None
    device: torch.device
    dtype: torch.dtype
    draft_dtype: torch.dtype
    models: str
    early: list[Divergence] = field(default_factory=list)
    decode_seconds: float = 0.0
    seconds: float = 0.0

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
        """The worst verdict of the settings."""
        return Verdict.DEFECT if self.early else worst([setting.verdict for setting in self.settings])

    @property
    def first_divergence(self) -> Divergence | None:
        """The first defect met, else the first tie, else None."""
        judgements = [judgement for setting in self.settings for judgement in setting.judgements]
        defects = self.early + [judgement.defects[0] for judgement in judgements if judgement.defects]
        ties = [judgement.ties[0] for judgement in judgements if judgement.ties]
        return next(iter(defects + ties), None)

    @property
    def inconclusive(self) -> list[str]:
        """Every distinct reason why the run proves nothing."""
        return sorted({reason for s in self.settings for j in s.judgements for reason in j.inconclusive})


def verify(
    models: ModelPair,
    factory: Factory,
    settings: Sequence[Settings],
    requests: Sequence[Request],
    progress: Callable[[], None] = lambda: None,
    budgets: Path = SHIPPED,
) -> Verification:
    """Run a decoder and the reference over all requests and settings, and judge every token.

    Args:
        models: networks of both sides.
        factory: builds the decoder for one setting.
        settings: at least one.
        requests: at least one.
        progress: called after every decode, reference included: (1 + settings) · requests times.
        budgets: file of stored error budgets; a mode that is not in it is measured.

    Raises:
        InputError: a setting or a request that the decoder or the networks refuse, or a stored budget that is too wide.
    """
    # what decides the verdict is fixed before the decoder is built
    budget, early = None, list[Divergence]()
    try:
        models.check_finite()
        budget = budget_for(models, budgets)
    except NonFiniteError as error:
        early.append(Divergence("weights", str(error), requests[0].seed))
    with unchanged() as moved:
        decoders = [build(factory, models, setting) for setting in settings]
    results = [SettingResult(setting, d.contract) for setting, d in zip(settings, decoders, strict=True)]
    early += _precision("building", moved, requests[0])
    result = Verification(results, None, models.device, models.target.dtype, models.draft.dtype, models.name, early)
    if budget is None:
        return result
    result.budget = _widest(budget, models, requests)
    start = time.perf_counter()
    for request in requests:
        free = {}
        for greedy in {setting.settings.greedy for setting in results}:
            free[greedy], seconds = timed(partial(_reference, models, request, greedy), models.device)
            free[greedy].seconds = seconds
            result.decode_seconds += seconds
        progress()
        for decoder, setting in zip(decoders, results, strict=True):
            result.decode_seconds += _decode(decoder, models, request, free[setting.settings.greedy], budget, setting)
            progress()
    result.seconds = time.perf_counter() - start
    return result


def _decode(
    decoder: Implementation, models: ModelPair, request: Request, free: Trace, budget: Budget, setting: SettingResult
) -> float:
    """Decode one request and judge it; return the seconds of the decode. Effects: on `setting`."""
    with unchanged() as moved:
        actual, seconds = timed(partial(run, decoder, models, request), models.device)
    if isinstance(actual, Judgement):
        judgement = actual
    else:
        evidence = Evidence(models, request, actual, free, budget, setting.settings.greedy)
        judgement = judge(evidence, Contract.of(decoder.contract))
        setting.traces.append(replace(actual, intermediates=None))  # they are large, and judged
        setting.seconds += seconds
    judgement.defects[:0] = _precision("decoding", moved, request)
    setting.judgements.append(judgement)
    setting.reference_seconds += free.seconds
    return seconds


def _precision(doing: str, moved: Sequence[str], request: Request) -> list[Divergence]:
    """Return a defect for every process-wide setting that somebody else's code changed."""
    return [Divergence("precision", f"{doing} changed {clause}", request.seed) for clause in moved]


def _widest(budget: Budget, models: ModelPair, requests: Sequence[Request]) -> Allowance:
    """Return the allowance of the last scale under the largest guidance value; its source says which of several."""
    pyramid, values = models.pyramid, {abs(request.cfg) for request in requests}
    allowed = budget.guided(max(values), pyramid.ramp(pyramid.S - 1))
    if len(values) == 1:
        return allowed
    return replace(allowed, source=f"{allowed.source}; the widest, at cfg {max(values):g}")


def _reference(models: ModelPair, request: Request, greedy: bool) -> Trace:
    return sequential.sample(models.target, models.vae, request, models.noise(request), greedy=greedy)
