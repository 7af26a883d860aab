"""A verification on digits, a case at a time: some requests of the covering design under one setting, or all.

Promise: `runs.decodes` decides the verdict; a case passes where `verify` with its settings would exit with 0.
"""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from harness.adapters.factories import PREFIX, default_settings
from harness.decoders.factory import DEFAULT
from harness.decoders.terms import Terms
from harness.plugin.asked import Asked
from harness.plugin.digits import USUAL, DigitsCase, design, pair
from harness.report.terminal import show
from harness.runs.cover import requests_for
from harness.runs.decodes import Decodes, verify_decodes
from harness.runs.keep import RunStore
from harness.runs.plan import Plan, Task
from harness.runs.result import Verification

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
