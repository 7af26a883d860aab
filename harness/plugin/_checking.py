"""One law, one case on digits, or one decode of somebody's own test, checked.

Promise: nothing passes by not having been tried; a case passes where `verify` with its settings would exit with 0. What
a check saw lies in its item's stash, however it ends.
"""

import io
from dataclasses import replace
from typing import NoReturn

import pytest
from rich.console import Console

from harness.decoders import OWN_DECODER, Terms, run_in_process
from harness.errors import InputError, one_line
from harness.judge import Evidence, Judgement, Verdict, judge, made_plain, weigh_law, weigh_run
from harness.laws import Law, LawResult, try_law
from harness.models import ModelPair, checksums
from harness.plugin._digits import USUAL, DigitsCase, design, pair
from harness.plugin._options import PluginOptions
from harness.protocol import Contract, Implementation, Request, Settings, Trace
from harness.reference.sequential import sample_sequential
from harness.report import CheckRow, show_verification
from harness.rounding import budget_for
from harness.runs import THE_LAW, RunFileOptions, Verification, requests_for, take_line
from harness.verification import Question, answer_question, is_published, usual_settings

SEEN = pytest.StashKey[CheckRow]()
FEW = slice(1, 3)  # requests of a usual case: five images, with filters, guidance and both orders of noise
WIDTH = 120
LAW_APART = f"contract B: the decodes hold, and the law that they have is what law {THE_LAW} tests"


class Unproven(AssertionError):  # noqa: N818
    """Something was checked, and nothing follows: it was never exercised, or most of its cases were refused."""


class KnownNotApplicable(AssertionError):  # noqa: N818
    """What is known to fail cannot: it does not apply to this decoder."""


class DefectFound(AssertionError):  # noqa: N818
    """A verification, or the judgement on one decode, found a defect; the message is what `verify` prints."""


def check_law(law: Law, options: PluginOptions, stash: pytest.Stash) -> None:
    """Check a law; skip the test where it does not apply. Raises `Violation`, `Unproven` or `KnownNotApplicable`."""
    __tracebackhide__ = True
    result = try_law(law, options.subject, options.scope_of(law))
    violation = result.violation
    why = {None: result.skipped, Verdict.INCONCLUSIVE: _why_unproven(result)}.get(result.verdict, "")
    stash[SEEN] = CheckRow(
        law.id, "law", law.statement, law.watches, result.verdict,
        examples=result.examples, exercised=result.exercised, refused=result.refused, seconds=result.seconds, why=why,
        finding=one_line(violation.found) if violation else "", case=repr(violation.case) if violation else "",
        replay=violation.replay if violation else "", known=options.known.get(law.id, ""),
    )  # fmt: skip
    if violation is not None:
        raise violation
    if result.verdict is None:
        _skip(law.id, f"does not apply: {result.skipped}", result.skipped, options)
    if result.verdict is Verdict.INCONCLUSIVE:
        raise Unproven(f"law {law.id} is unproven: {_why_unproven(result)}")


def check_digits(case: DigitsCase, options: PluginOptions, stash: pytest.Stash) -> None:
    """Verify one setting on digits; skip one that may be refused. Raises as `check_law`, and `DefectFound`."""
    __tracebackhide__ = True
    try:
        result = verified(case, options)
    except InputError as error:
        # schedules, rules and a bonus scale are not for every decoder; a plain draft length is
        may_be_refused = case.settings.bonus or not isinstance(case.settings.draft_len, int)
        if not (may_be_refused and error.name in ("draft_len", "bonus", "settings")):
            raise
        stash[SEEN] = CheckRow(case.name, "digits", str(case.settings), ("decode",), None, why=str(error))
        _skip(case.name, f"refused: {error}", str(error), options)
    take_line(result, pair(options.scope.device))
    defect = result.first_divergence if result.verdict is Verdict.DEFECT else None
    stash[SEEN] = CheckRow(
        case.name, "digits", f"{case.settings} on digits: {result.summary}",
        (defect.component,) if defect else ("decode",), result.verdict,
        examples=result.images, exercised=result.images, seconds=result.wall_seconds,
        why="; ".join(result.inconclusive), finding="; line: ".join(map(str, filter(None, (defect, result.line)))),
        replay=result.alone if defect else "", known=options.known.get(case.name, ""),
    )  # fmt: skip
    if result.verdict is Verdict.DEFECT:
        raise DefectFound(_message(result))
    if result.is_law_untested and not result.reasons and result.inconclusive == result.open:
        _skip(case.name, LAW_APART, LAW_APART, options)
    if result.verdict.exit_status:
        raise Unproven(_message(result))


def _skip(name: str, reason: str, why: str, options: PluginOptions) -> NoReturn:
    """Skip what does not apply; what is known to fail, and cannot, raises `KnownNotApplicable`."""
    if name in options.known:
        known = options.known[name]
        raise KnownNotApplicable(f"{name} is known to fail ({known}), and does not apply ({why}): strike it")
    pytest.skip(reason)


def _why_unproven(result: LawResult) -> str:
    if result.refused > result.examples:
        return f"{result.refused} cases refused, {result.examples} decoded; the last refusal: {result.why}"
    return f"{result.examples} examples, and every one was trivial: nothing was tested"


def _message(result: Verification) -> str:
    """Return the verdict and the first divergence on one line, then all that `verify` prints to a log."""
    log = io.StringIO()
    console = Console(file=log, width=WIDTH, soft_wrap=True, markup=False, emoji=False, highlight=False)
    show_verification(result, console, quiet=False)
    clause = str(result.first_divergence or "; ".join(result.inconclusive))
    return f"{result.verdict.value}: {clause}\n\n{log.getvalue()}"


def cases_of(options: PluginOptions) -> list[DigitsCase]:
    """Return the cases that a decoder is put to; published code has settings of its own."""
    if is_published(options.name):
        sampler = options.name.partition(":")[2]
        every = usual_settings(options.name, Settings(1, options=options.factory_options), 1)
        return [DigitsCase(f"digits[{sampler}{f'-{k}' if k else ''}]", each) for k, each in enumerate(every)]
    names = design() if options.cover else USUAL
    cases = [design()[name] for name in names]
    return [replace(case, settings=replace(case.settings, options=options.factory_options)) for case in cases]


def verified(case: DigitsCase, options: PluginOptions) -> Verification:
    """Judge a setting on requests of the design, all where all is to be covered. Raises `InputError` as `verify`."""
    models = pair(options.scope.device)
    requests = requests_for(models) if options.cover else requests_for(models)[FEW]
    recipe = {"implementation": options.name} if options.name != OWN_DECODER else {}
    recipe |= {"device": options.scope.device} if options.scope.device != "cpu" else {}
    terms = Terms(sequential=options.sequential)
    question = Question(options.name, (case.settings,), requests, terms, drafts=(case.draft_noise,))
    return answer_question(models, question, store=RunFileOptions(recipe=recipe))


def reference(models: ModelPair, request: Request) -> Trace:
    return sample_sequential(models.target, models.vae, request, models.noise(request))


def judged(
    models: ModelPair, decoder_or_trace: Implementation | Trace, request: Request, contract: str = "",
    drafts: bool = True,
) -> Judgement:  # fmt: skip
    """Judge one decode: of a decoder, which decodes the request in this process, or the trace that one returned.

    An empty `contract` is the decoder's own claim, and token-identical of a trace; `drafts` is False for a decoder that
    drafts nothing, and need not. Raises `DefectFound`, whose message begins with the first defect, `Unproven` where
    nothing was compared or drafted, and `InputError` for a request that is refused, or a contract that there is none.
    """
    __tracebackhide__ = True
    own = Contract.TOKENS if isinstance(decoder_or_trace, Trace) else Contract.of(decoder_or_trace.contract)
    claim = Contract.of(contract) if contract else own
    if not isinstance(decoder_or_trace, Trace) and not own.entails(claim):
        raise InputError("contract", contract, f"is demanded, and the decoder claims {own.value}", "drop it")
    budget = budget_for(models)  # before the decoder runs, which may change what is process-wide
    free, before = reference(models, request), checksums(models.named_weights())
    outcome: Trace | Judgement
    if isinstance(decoder_or_trace, Trace):
        outcome = decoder_or_trace
    else:
        outcome = run_in_process(decoder_or_trace, models, replace(request), by_value=True)
    changed = [name for name, value in checksums(models.named_weights()).items() if value != before[name]]
    if changed:
        raise DefectFound(f"component weights: the decoder wrote into {', '.join(changed[:3])}")
    remarks = outcome.remarks if isinstance(outcome, Judgement) else []
    if isinstance(outcome, Judgement):
        outcome = outcome.whole_trace or outcome
    if isinstance(outcome, Trace):
        outcome, _ = made_plain(outcome)
        outcome = judge(Evidence(models, request, outcome, free, budget), claim, drafts)
        allowed = [budget.guided(request.guidance, models.pyramid.ramp(si), si) for si in models.pyramid]
        weigh_run([(request, outcome)], lambda request: allowed, 1)
        weigh_law([(request, outcome)], models.target.config.V, 1)
        outcome.remarks = remarks
    if outcome.verdict is Verdict.DEFECT:
        more = outcome.count("defects") - 1
        raise DefectFound(f"{outcome.defects[0]}{f'; {more} more' if more else ''}")
    if outcome.verdict is Verdict.INCONCLUSIVE:
        raise Unproven("; ".join(outcome.inconclusive) or "nothing was compared")
    return outcome
