"""Where the decoder under test lives, in this process or in one of its own, and on which terms it is judged.

Promise: the terms are fixed before a decoder is built.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.decoders._factory import Built, Factory, Limits, is_own_decoder, load_factory
from harness.decoders._in_process import InProcess
from harness.decoders._own_process import OwnProcess
from harness.errors import InputError
from harness.judge import CodeLine, Judgement, PartLaw
from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.rounding import SHIPPED_BUDGETS, Budget
from harness.speculative.sampler import build_decoder


@dataclass(frozen=True)
class Other:
    """Another decoder to judge against, in the reference's place."""

    name: str  # of its factory
    settings: tuple[Settings, ...]  # one for each of the decoder's, in order
    factory: Factory | bytes | None = None  # builds it, or cloudpickle's bytes of one that does; None = by name


@dataclass(frozen=True)
class Terms:
    """How a run is judged."""

    contract: Contract | None = None  # what the decoder must keep at least; None = what it claims
    sequential: bool = False  # the decoder drafts nothing, and is not asked to
    in_process: bool = False  # run the decoder in the judge's process: for a debugger
    limits: Limits = field(default_factory=Limits)  # time and memory of a process of its own
    budgets: Path = SHIPPED_BUDGETS  # file of stored error budgets; a mode that is not in it is measured
    refusals: bool = False  # count a request that the decoder refuses, in place of raising its error
    first_only: bool = False  # stop at the first defect: for hunts
    against: Other | None = None  # another decoder, in the reference's place: what changed, and from which scale on?
    covers: bool = False  # the run is a covering design
    unasked: int = 0  # decodes of that design that are not in the plan, since the decoder cannot be built for them
    laws: int | None = None  # try every law in so many cases, too (`verify`); 0 = none, None = as the command line does
    strict: bool = False  # what a decoder leaves behind in its process is a defect, not a remark


class Runner(Protocol):
    """Where the decoder under test lives: a decoder for every setting."""

    built: Built  # what building them showed

    def decode(self, setting: int, request: Request, times: int = 1) -> Trace | Judgement:
        """Decode one request with the decoder of one setting. Raises `InputError` where it refuses the request.

        Of several `times` the first counts; the others, under the seeds that follow, are there to be timed.
        """

    def line(self, setting: int, request: Request, greedy: bool) -> CodeLine | str:
        """Return the line that goes wrong with the decoder of one setting, or why there is none; empty: none does."""

    def parts(self, setting: int, request: Request, budget: Budget) -> list[PartLaw]:
        """Ask the parts of one setting's decoder. Raises `InputError` where it is not of published code."""

    def close(self) -> None:
        """End what was started."""


def start_runner(
    models: ModelPair, factory: Factory | str, settings: Sequence[Settings], most: int, terms: Terms
) -> Runner:
    """Build the decoders: in a process of their own, unless they are the harness's own or it is asked otherwise."""
    if is_own_decoder(factory):
        return InProcess(build_decoder, models, settings, watched=False)
    if not terms.in_process:
        return OwnProcess(factory, models, settings, most, terms.limits)
    return InProcess(load_factory(factory) if isinstance(factory, str) else factory, models, settings)


def claimed_contract(name: str, terms: Terms) -> Contract:
    """Return the contract that a decoder claims. Raises `InputError` where it is weaker than the one demanded."""
    claimed = Contract.of(name)
    if terms.contract is not None and not claimed.entails(terms.contract):
        rule = f"is demanded, and the decoder claims {claimed.letter} ({claimed}) only"
        remedy = f"pass --contract {claimed.letter}, or a decoder that claims more"
        raise InputError("contract", terms.contract.letter, rule, remedy)
    return claimed
