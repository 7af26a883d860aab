"""One law, one case on digits, or one decode of somebody's own test, checked.

Promise: nothing passes by not having been tried; a case passes where `verify` with its settings would exit with 0. What
a check saw lies in its item's stash, however it ends.
"""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from harness.adapters.factories import PREFIX, default_settings
from harness.decoders.factory import DEFAULT
from harness.decoders.in_process import run_in_process
from harness.decoders.terms import Terms
from harness.errors import InputError, one_line
from harness.judge.decode import judge
from harness.judge.e_values import weigh_run
from harness.judge.evidence import Evidence
from harness.judge.verdict import Judgement, Verdict
from harness.laws.conformance import explore
from harness.laws.law import Law
from harness.laws.results import LawResult
from harness.models.pair import ModelPair, pair_checksums
from harness.plugin.digits import USUAL, DigitsCase, design, pair
from harness.plugin.options import Asked
from harness.protocol.contract import Contract
from harness.protocol.decoder import Implementation
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.report.laws import Checked
from harness.report.terminal import repeated_by, show, summary
from harness.rounding.measure import budget_for
from harness.runs.cover import requests_for
from harness.runs.decodes import Decodes, verify_decodes
from harness.runs.keep import RunStore
from harness.runs.plan import Plan, Task
from harness.runs.result import Verification

SEEN = pytest.StashKey[Checked]()
PASSED = (Verdict.IDENTICAL, Verdict.TIE, Verdict.CONSISTENT)


class Unproven(AssertionError):  # noqa: N818
    """Something was checked, and nothing follows: it was never exercised, or most of its cases were refused."""


class Struck(AssertionError):  # noqa: N818
    """What is known to fail cannot: it does not apply to this decoder."""


class WrongOnDigits(AssertionError):  # noqa: N818
    """A verification found a defect; the message is what `verify` prints."""


def check_law(law: Law, asked: Asked, stash: pytest.Stash) -> None:
    """Check a law in as many cases as were asked for.

    Raises:
        Violation: it is broken.
        Unproven: it was never exercised, or mostly refused.
        Struck: it is known to fail, and does not apply.

    Effects: skips the test where the law does not apply to the decoder; what was seen, in `stash`.
    """
    __tracebackhide__ = True
    row = explore(law, asked.subject, asked.scope_of(law), _unseen)
    stash[SEEN] = _of_law(row, asked)
    if row.violation is not None:
        raise row.violation
    if row.verdict is None:
        _strike(law.id, row.skipped, asked)
        pytest.skip(f"does not apply: {row.skipped}")
    if row.verdict is Verdict.INCONCLUSIVE:
        raise Unproven(f"law {law.id} is unproven: {_why(row)}")


def check_digits(case: DigitsCase, asked: Asked, stash: pytest.Stash) -> None:
    """Verify one setting on digits.

    Raises:
        WrongOnDigits: a defect.
        Unproven: nothing was drafted or compared.
        Struck: the case is known to fail, and is refused.
        InputError: the decoder refuses a plain draft length or a request.

    Effects: skips the test where the decoder refuses a schedule or a bonus scale; what was seen, in `stash`.
    """
    __tracebackhide__ = True
    try:
        result = verified(case, asked)
    except InputError as error:
        if not (case.may_be_refused and error.name in ("draft_len", "bonus", "settings")):
            raise
        stash[SEEN] = Checked(case.name, "digits", str(case.settings), ("decode",), "", why=str(error))
        _strike(case.name, str(error), asked)
        pytest.skip(f"refused: {error}")
    stash[SEEN] = _of_digits(case, result, asked)
    if result.verdict is Verdict.DEFECT:
        raise WrongOnDigits(told_of(result))
    if result.verdict not in PASSED:
        raise Unproven(told_of(result))


def _strike(name: str, why: str, asked: Asked) -> None:
    """Refuse what is known to fail, and cannot. Raises `Struck`."""
    if name in asked.known:
        raise Struck(f"{name} is known to fail ({asked.known[name]}), and does not apply ({why}): strike it")


def _unseen(row: LawResult) -> None:
    """Show nothing: pytest says how far it is."""


def _why(row: LawResult) -> str:
    if row.refused > row.examples:
        return f"{row.refused} cases refused, {row.examples} decoded; the last refusal: {row.why}"
    return f"{row.examples} examples, and every one was trivial: nothing was tested"


def _of_law(row: LawResult, asked: Asked) -> Checked:
    found = row.violation
    return Checked(
        row.law.id, "law", row.law.statement, row.law.watches, row.verdict.value if row.verdict else "",
        examples=row.examples, exercised=row.exercised, refused=row.refused, seconds=row.seconds,
        why=row.skipped if row.verdict is None else "" if row.verdict in PASSED or found else _why(row),
        found=one_line(found.found) if found else "", case=repr(found.case) if found else "",
        replay=found.replay if found else "", known=asked.known.get(row.law.id, ""),
    )  # fmt: skip


def _of_digits(case: DigitsCase, result: Verification, asked: Asked) -> Checked:
    first, wrong = result.first_divergence, result.verdict is Verdict.DEFECT
    return Checked(
        case.name, "digits", f"{case.settings} on digits: {summary(result)}",
        (first.component,) if first and wrong else ("decode",), result.verdict.value,
        examples=result.images, exercised=result.images, seconds=result.wall_seconds,
        why="; ".join(result.inconclusive), found=str(first) if first and wrong else "",
        replay=repeated_by(result) if wrong else "", known=asked.known.get(case.name, ""),
    )  # fmt: skip


FEW = slice(1, 3)  # requests of a usual case: five images, with filters, guidance and both orders of noise
WIDTH = 120


def cases_of(asked: Asked) -> list[DigitsCase]:
    """Return the cases that a decoder is put to; published code has settings of its own."""
    prefix, _, sampler = asked.name.partition(":")
    if prefix == PREFIX:
        every = default_settings(sampler, asked.options)
        return [DigitsCase(f"digits[{sampler}{f'-{k}' if k else ''}]", each) for k, each in enumerate(every)]
    chosen = design() if asked.cover else {name: design()[name] for name in USUAL}
    return [replace(case, settings=replace(case.settings, options=asked.options)) for case in chosen.values()]


def verified(case: DigitsCase, asked: Asked) -> Verification:
    """Decode requests of the design under one setting and judge every token: all of them where all is to be covered.

    Raises:
        InputError: the decoder refuses the setting or a request; what `verify` refuses.
    """
    models = pair(asked.scope.device)
    requests = requests_for(models) if asked.cover else requests_for(models)[FEW]
    tasks = tuple(Task(number, request, (0,)) for number, request in enumerate(requests))
    plan = Plan((case.settings,), tasks, (case.draft_noise,))
    recipe = {"implementation": asked.name} if asked.name != DEFAULT else {}
    recipe |= {"device": asked.scope.device} if asked.scope.device != "cpu" else {}
    return verify_decodes(
        models, Decodes(asked.name, plan, Terms(sequential=asked.sequential)), store=RunStore(recipe=recipe)
    )


def told_of(result: Verification) -> str:
    """Return the verdict and the first divergence on one line, then all that `verify` prints to a log."""
    text = io.StringIO()
    show(result, Console(file=text, width=WIDTH, soft_wrap=True, markup=False, emoji=False, highlight=False), False)
    first = result.first_divergence
    said = str(first) if first else "; ".join(result.inconclusive)
    return f"{result.verdict.value}: {said}\n\n{text.getvalue()}"


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
