"""Verify a decoder over many requests and settings.

Promise: every setting sees the same requests, the reference runs once a request, and the verdict is the worst one met.
What decides the verdict (contract demanded, budget, precision mode) is fixed before the decoder is built, and a decoder
that is not the harness's own runs in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from harness.adapters.probe import PartLaw
from harness.clock import timed
from harness.errors import InputError, NonFiniteError
from harness.judge.against import changed, judge_against
from harness.judge.decode import judge
from harness.judge.evidence import Evidence
from harness.judge.many import too_many
from harness.judge.so_far import judge_so_far
from harness.judge.tokens import costs_of
from harness.judge.verdict import Divergence, Judgement
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.rounding.budget import Allowance, Budget
from harness.rounding.measure import budget_for
from harness.rounding.stored import SHIPPED
from harness.runs.apart import Apart, Limits
from harness.runs.factory import Factory, is_own, load_factory
from harness.runs.here import Here
from harness.runs.result import SettingResult, Verification
from harness.speculative.build import build_decoder

MOST_DEATHS = 3  # of one setting's process, one after the other: what is left would end as they did


@dataclass(frozen=True)
class Other:
    """Another decoder to judge against, in the reference's place.

    Args:
        name: of its factory.
        settings: one for each of the decoder's, in order.
        factory: builds it; None = by name.
    """

    name: str
    settings: tuple[Settings, ...]
    factory: Factory | None = None


@dataclass(frozen=True)
class Terms:
    """How a run is judged.

    Args:
        contract: what the decoder must keep at least; None = what it claims.
        sequential: the decoder drafts nothing, and is not asked to.
        in_process: run the decoder in this process: for a debugger.
        limits: time and memory of a process of its own.
        budgets: file of stored error budgets; a mode that is not in it is measured.
        refusals: count a request that the decoder refuses, in place of raising its error.
        first_only: stop at the first defect: for hunts.
        against: another decoder, in the reference's place: what changed, and from which scale on?
    """

    contract: Contract | None = None
    sequential: bool = False
    in_process: bool = False
    limits: Limits = field(default_factory=Limits)
    budgets: Path = SHIPPED
    refusals: bool = False
    first_only: bool = False
    against: Other | None = None


class Place(Protocol):
    """Where the decoder under test lives: a decoder for every setting."""

    contracts: list[str]  # what the decoders claim
    moved: list[str]  # process-wide settings of precision that building them changed, a clause each

    def decode(self, setting: int, request: Request) -> Trace | Judgement:
        """Decode one request with the decoder of one setting."""
        ...

    def parts(self, setting: int, request: Request, budget: Budget) -> list[PartLaw]:
        """Ask the parts of one setting's decoder, where it is made of published code."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def verify(
    models: ModelPair,
    factory: Factory | str,
    settings: Sequence[Settings],
    requests: Sequence[Request],
    progress: Callable[[], None] = lambda: None,
    terms: Terms = Terms(),
) -> Verification:
    """Run a decoder and the reference over all requests and settings, and judge every token.

    Args:
        models: networks of both sides; the decoder under test gets copies.
        factory: builds the decoder for one setting; a function, or its name ``package.module:factory``.
        settings: at least one.
        requests: at least one.
        progress: called after every decode, reference included: (1 + settings) · requests times at most.
        terms: how the run is judged.

    Raises:
        InputError: a setting or a request that the decoder or the networks refuse; a decoder that claims less than is
            demanded; a stored budget that is too wide.

    Effects: a process for a decoder that is not the harness's own; it has ended when this returns.
    """
    result = Verification([], None, models.device, models.target.dtype, models.draft.dtype, models.title)
    try:
        models.check_finite()
        budget = budget_for(models, terms.budgets)
    except NonFiniteError as error:
        result.early.append(Divergence("weights", str(error), requests[0].seed))
        return result
    result.budget = _widest(budget, models, requests)
    most = max(request.B for request in requests)
    other = None
    if terms.against is not None:
        against = terms.against
        result.against = against.name
        other = place(models, against.factory or against.name, against.settings, most, terms)
    try:
        where = place(models, factory, settings, most, terms)
    except BaseException:
        if other is not None:
            other.close()
        raise
    try:
        result.early += [Divergence("precision", f"building changed {what}", requests[0].seed) for what in where.moved]
        result.settings = [SettingResult(s, _claimed(c, terms)) for s, c in zip(settings, where.contracts, strict=True)]
        start = time.perf_counter()
        for request in requests:
            if other is None:
                _verify_request(models, where, request, (budget, terms), result, progress)
            else:
                _compare_request(models, (where, other), request, (budget, terms), result, progress)
            if terms.first_only and result.first_divergence is not None:
                break
        for setting in result.settings:
            _judge_run(setting, len(result.settings))
        result.seconds = time.perf_counter() - start
    finally:
        where.close()
        if other is not None:
            other.close()
    return result


def place(models: ModelPair, factory: Factory | str, settings: Sequence[Settings], most: int, terms: Terms) -> Place:
    """Build the decoders: in a process of their own, unless they are the harness's own or it is asked otherwise."""
    if is_own(factory):
        return Here(build_decoder, models, settings, watched=False)
    if not terms.in_process:
        return Apart(factory, models, settings, most, terms.limits)
    return Here(load_factory(factory) if isinstance(factory, str) else factory, models, settings)


def _claimed(name: str, terms: Terms) -> Contract:
    """Return the contract that a decoder claims. Raises `InputError` where it is weaker than the one demanded."""
    claimed = Contract.of(name)
    if terms.contract is not None and not claimed.entails(terms.contract):
        rule = f"is demanded, and the decoder claims {claimed.letter} ({claimed}) only"
        remedy = f"pass --contract {claimed.letter}, or a decoder that claims more"
        raise InputError("contract", terms.contract.letter, rule, remedy)
    return claimed


def _verify_request(
    models: ModelPair,
    where: Place,
    request: Request,
    by: tuple[Budget, Terms],
    result: Verification,
    progress: Callable[[], None],
) -> None:
    """Decode one request by the reference and under every setting, and judge. Effects: on `result`."""
    budget, terms = by
    free, costs = {}, {}
    for greedy in {setting.settings.greedy for setting in result.settings}:
        free[greedy], seconds = timed(partial(_reference, models, request, greedy), models.device)
        free[greedy].seconds = seconds
        result.decode_seconds += seconds
    progress()
    for number, setting in enumerate(result.settings):
        if _keeps_dying(setting):
            continue
        expected = free[setting.settings.greedy]
        try:
            actual, seconds = timed(partial(where.decode, number, request), models.device)
        except InputError:
            if not terms.refusals:
                raise
            setting.refused += 1
            progress()
            continue
        result.decode_seconds += seconds
        if isinstance(actual, Judgement):
            if actual.partial is not None:
                evidence = Evidence(models, request, actual.partial, expected, budget, setting.settings.greedy)
                actual = judge_so_far(evidence, setting.contract, not terms.sequential, actual)
            setting.judgements.append(replace(actual, partial=None))
        else:
            greedy = setting.settings.greedy
            evidence = Evidence(models, request, actual, expected, budget, greedy)
            if greedy not in costs:
                costs[greedy] = costs_of(evidence)
            evidence = replace(evidence, costs=costs[greedy])
            setting.judgements.append(judge(evidence, setting.contract, not terms.sequential))
            setting.traces.append(replace(actual, intermediates=None))  # they are large, and judged
            setting.seconds += seconds
        setting.reference_seconds += expected.seconds
        progress()
        if terms.first_only and result.first_divergence is not None:
            break


def _compare_request(
    models: ModelPair,
    places: tuple[Place, Place],
    request: Request,
    by: tuple[Budget, Terms],
    result: Verification,
    progress: Callable[[], None],
) -> None:
    """Decode one request by both decoders under every setting, and judge one against the other."""
    progress()
    for number, setting in enumerate(result.settings):
        (actual, seconds), (expected, others) = (
            timed(partial(place.decode, number, request), models.device) for place in places
        )
        result.decode_seconds += seconds + others
        setting.seconds += seconds
        setting.reference_seconds += others
        if isinstance(actual, Judgement) or isinstance(expected, Judgement):
            ended = actual if isinstance(actual, Judgement) else expected
            assert isinstance(ended, Judgement)
            if ended is expected:
                ended.defects = [replace(each, detail=f"{result.against}: {each.detail}") for each in ended.defects]
            setting.judgements.append(replace(ended, partial=None))
        else:
            evidence = Evidence(models, request, actual, expected, by[0], setting.settings.greedy)
            setting.judgements.append(judge_against(evidence, result.against))
            setting.traces.append(replace(actual, intermediates=None))
            result.changes += [f"seed {request.seed}, {each}" for each in changed(actual, expected)]
        progress()


def _judge_run(setting: SettingResult, looks: int) -> None:
    """Weigh the ties of a whole run together: what each request may excuse, all of them may not."""
    judgements = setting.judgements
    weights = [sum(of) for of in zip(*(judgement.surprise for judgement in judgements), strict=True)]
    if weights and setting.total("ties") and too_many(weights, looks):
        detail = f"the {setting.total('ties')} ties of the run together are beyond rounding"
        last = next(judgement for judgement in reversed(judgements) if judgement.ties)
        last.defects.append(replace(last.ties[0], component="unknown", detail=detail))


def _keeps_dying(setting: SettingResult) -> bool:
    """Tell whether the setting's last decodes all cost its process: the others would take as long for the same."""
    last = [judgement.defects[:1] for judgement in setting.judgements[-MOST_DEATHS:]]
    return len(last) == MOST_DEATHS and all(found and found[0].component == "process" for found in last)


def _widest(budget: Budget, models: ModelPair, requests: Sequence[Request]) -> Allowance:
    """Return the allowance of the last scale under the largest guidance value; its source says which of several."""
    pyramid, values = models.pyramid, {abs(request.cfg) for request in requests}
    allowed = budget.guided(max(values), pyramid.ramp(pyramid.S - 1))
    if len(values) == 1:
        return allowed
    return replace(allowed, source=f"{allowed.source}; the widest, at cfg {max(values):g}")


def _reference(models: ModelPair, request: Request, greedy: bool) -> Trace:
    return sequential.sample(models.target, models.vae, request, models.noise(request), greedy=greedy)
