"""A single decode judged, for tests of one's own."""

from __future__ import annotations

from dataclasses import replace

from harness.decoders.in_process import run_in_process
from harness.errors import InputError
from harness.judge.decode import judge
from harness.judge.evidence import Evidence
from harness.judge.verdict import Judgement, Verdict
from harness.judge.weights import weigh_run
from harness.models.pair import ModelPair, pair_checksums
from harness.plugin.checking import Unproven, WrongOnDigits
from harness.protocol.contract import Contract
from harness.protocol.decoder import Implementation
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.rounding.measure import budget_for


def reference(models: ModelPair, request: Request) -> Trace:
    """Return the sequential decode of a request."""
    return sequential.sample(models.target, models.vae, request, models.noise(request))


def judged(
    models: ModelPair, made: Implementation | Trace, request: Request, contract: str = "", drafts: bool = True
) -> Judgement:
    """Judge one decode.

    Args:
        models: networks of both sides.
        made: a decoder, which decodes the request here, or the trace that one returned.
        request: what was drawn.
        contract: what is claimed; empty = the decoder's own claim, and token-identical of a trace.
        drafts: False for a decoder that drafts nothing, and need not.

    Raises:
        WrongOnDigits: a defect; the message begins with the first one.
        Unproven: nothing was compared or drafted.
        InputError: the decoder refuses the request; a contract that there is none.
    """
    __tracebackhide__ = True
    claim = _claim(made, contract)
    budget = budget_for(models)  # before the decoder runs, which may change what is process-wide
    free, before = reference(models, request), pair_checksums(models)
    trace = made if isinstance(made, Trace) else run_in_process(made, models, replace(request), by_value=True)
    changed = [name for name, value in pair_checksums(models).items() if value != before[name]]
    if changed:
        raise WrongOnDigits(f"component weights: the decoder wrote into {', '.join(changed[:3])}")
    found = trace
    if isinstance(found, Trace):
        found = judge(Evidence(models, request, found, free, budget), claim, drafts)
        allowed = [budget.guided(request.cfg, models.pyramid.ramp(si)) for si in models.pyramid]
        weigh_run([(request, found)], lambda request: allowed, 1)
    if found.verdict is Verdict.DEFECT:
        more = found.count("defects") - 1
        raise WrongOnDigits(f"{found.defects[0]}{f'; {more} more' if more else ''}")
    if found.verdict is Verdict.INCONCLUSIVE:
        raise Unproven("; ".join(found.inconclusive) or "nothing was compared")
    return found


def _claim(made: Implementation | Trace, demanded: str) -> Contract:
    """Return what is judged: the claim that is demanded, else the decoder's own. Raises `InputError`."""
    own = Contract.TOKENS if isinstance(made, Trace) else Contract.of(made.contract)
    if demanded and not isinstance(made, Trace) and not own.entails(Contract.of(demanded)):
        raise InputError("contract", demanded, f"is demanded, and the decoder claims {own.value}", "drop it")
    return Contract.of(demanded) if demanded else own
