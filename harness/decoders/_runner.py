"""Where the decoder under test lives, in this process or in one of its own, and on which terms it is judged.

Promise: the terms are fixed before a decoder is built. Whatever happens in a process of its own, the answer to one
decode is a trace by value or a judgement with a defect of component `process`; the next decode gets a fresh process.
Nothing of that process is executed here: its answers are JSON and bytes, and both are checked.

Why not torch.multiprocessing or pebble: both unpickle what the other side sends, which runs the accused's code in the
judge, and both import the caller's main script again. `subprocess`, pipes and shared memory do neither.
"""

import copy
import os
import pickle
import signal
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Protocol

import torch

from harness import processes
from harness.decoders._conversation import DecoderJob, DecoderQuestion, DecoderReply, Mailbox, capacity
from harness.decoders._factory import (
    Built,
    Factory,
    Limits,
    Surroundings,
    factory_name,
    is_own_decoder,
    load_factory,
    pickled_factory,
)
from harness.decoders._in_process import InProcess
from harness.errors import InputError, text_of
from harness.judge import CodeLine, Divergence, Judgement, PartLaw, PartVerdict, made_plain, unreadable
from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.rounding import SHIPPED_BUDGETS, Budget
from harness.speculative.sampler import build_decoder

ACCIDENTS = "a process of its own: accidents only (no Landlock of version 6; docs/boundary.md)"
LAST_LINES, PRINTED_LINES = 3, 20
SERVE = "harness.decoders._child:serve"


class OwnProcess:
    """One decoder a setting, in one process that is replaced when it dies; `most` images are the largest request.

    Raises `InputError`: the factory cannot be found, refuses the settings, or its process dies while it builds.
    Effects: a process, a folder that it may write to, shared memory; `close` ends them.
    """

    def __init__(
        self, factory: Factory | str, models: ModelPair, settings: Sequence[Settings], most: int, limits: Limits
    ) -> None:
        self.models, self.limits = models, limits
        self.name = factory if isinstance(factory, str) else factory_name(factory)
        sent = factory if isinstance(factory, str) else pickled_factory(factory, self.name)
        self.failed = False
        version = processes.domain_version()
        alone = "" if limits.connects else ", which connects to nobody by TCP"
        isolation = f"a process of its own, in a domain (Landlock {version}){alone}" if version else ACCIDENTS
        on_cuda = models.device.type == "cuda"
        # On CUDA the other process opens copies that this one makes there, and with them all of their allocation: a
        # pool of their own holds nothing else. On a CPU it has its own of what is sealed.
        with torch.cuda.device(models.device) if on_cuda else nullcontext():
            self._pool = torch.cuda.MemPool() if on_cuda else None
        with torch.cuda.use_mem_pool(self._pool, models.device) if self._pool is not None else nullcontext():
            self.mailbox = Mailbox.make(capacity(models, most), models.device)
            self._copies = copy.deepcopy(models) if on_cuda else models
        self._workplace = processes.workplace_for(SERVE, str(models.device), limits.allow_write, limits.connects)
        self._log = self._workplace.log
        self._line: processes.ProcessLine | None = None
        self._job = -1
        try:
            job = DecoderJob(sent, self._copies, list(settings), self.mailbox.handle, Surroundings.here(), limits)
            # on a CPU with the networks, on CUDA with handles of their copies
            self._job = processes.sealed(
                lambda file: ForkingPickler(file, pickle.HIGHEST_PROTOCOL).dump(job)
                if on_cuda else torch.save(job, file)
            )  # fmt: skip
            reply = self._start()
            if reply.refused is not None:
                raise reply.refused
            if len(reply.built.contracts) != len(settings) or len(reply.built.declines) != len(settings):
                raise processes.UnreadableError("it says what other decoders claim")
            self.built = replace(reply.built, isolation=isolation)
        except (processes.GoneError, processes.UnreadableError) as error:
            rule = f"built no decoder: {self._given_up(error)}"
            self.close()
            raise InputError("implementation", self.name, rule, "see docs/own-decoder.md") from None
        except BaseException:
            self.close()
            raise

    def decode(self, setting: int, request: Request, times: int = 1) -> Trace | Judgement:
        try:
            reply = self._ask(DecoderQuestion(setting, request, self.limits.timeout_s * times, times=times))
            outcome = self._outcome(reply, request)
        except Exception as error:  # whatever its process made us meet
            defects = [Divergence("process", self._given_up(error), request.seed)]
            return Judgement(request.B, defects=defects, ending=self._printed())
        if reply.refused is not None:
            raise reply.refused
        return outcome

    def line(self, setting: int, request: Request, greedy: bool) -> CodeLine | str:
        try:
            reply = self._ask(DecoderQuestion(setting, request, self.limits.timeout_s, greedy=greedy))
        except Exception as error:  # likewise
            return self._given_up(error)
        if reply.refused is not None:
            raise reply.refused
        return reply.code_line or "; ".join(each.detail for each in reply.defects)

    def parts(self, setting: int, request: Request, budget: Budget) -> list[PartLaw]:
        try:
            reply = self._ask(DecoderQuestion(setting, request, self.limits.timeout_s, budget))
        except Exception as error:  # likewise
            detail = self._given_up(error)
            return [PartLaw("process", "process.ends", "The decoder's process answers.", PartVerdict.CRASHED, detail)]
        if reply.refused is not None:
            raise reply.refused
        return reply.parts

    def close(self) -> None:
        """End the process; its log stays where a decode failed."""
        self._end()
        with suppress(OSError):
            self.mailbox.close()
        if self._job >= 0:
            os.close(self._job)
        self._workplace.close(keep_log=self.failed)
        if self._pool is not None:
            torch.cuda.ipc_collect()  # what that process has let go of

    def _start(self) -> DecoderReply:
        """Start the process; return what its decoders claim, or that they are refused. Raises as `ProcessLine.hear`."""
        self._line = self._workplace.line()
        self._line.give([self._job] + [self.mailbox.descriptor] * (self.mailbox.descriptor >= 0))
        # it has what it needs, and nothing of others yet
        DecoderReply.of(self._line.hear(processes.START_S, "time to start"))
        return DecoderReply.of(self._line.hear(self.limits.timeout_s, "timeout"))

    def _ask(self, question: DecoderQuestion) -> DecoderReply:
        """Return the reply; one who is late says where it is, and is ended. Raises `GoneError`, `UnreadableError`."""
        if self._line is None:
            fresh = self._start()
            if fresh.refused is not None:
                raise processes.GoneError(f"a fresh process refuses what the first one built ({fresh.refused})")
            if fresh.built.contracts != self.built.contracts:
                raise processes.GoneError(f"a fresh process claims {fresh.built.contracts}, not {self.built.contracts}")
        line, seconds, seed = self._line, question.timeout_s, question.request.seed
        assert line is not None
        line.tell(pickle.dumps(question), seconds)
        try:
            return DecoderReply.of(line.hear(seconds, "timeout"), seed)
        except processes.GoneError as gone:
            if not line.process.is_alive:
                raise
            line.process.send(signal.SIGUSR1)
            try:
                reply = DecoderReply.of(line.hear(processes.GRACE_S, "timeout"), seed)
            except processes.GoneError:
                reply = DecoderReply()
            self._end(failed=True)  # whatever else it may still do
            if not reply.defects:
                raise gone from None
            return reply

    def _outcome(self, reply: DecoderReply, request: Request) -> Trace | Judgement:
        """Return the trace, or what a reply says in its place. Raises `UnreadableError`."""
        if reply.refused is not None:
            return Judgement(request.B)
        if not (reply.defects or reply.remarks):
            return self._trace(reply, request)
        judgement = Judgement(request.B, defects=reply.defects, so_far=reply.so_far, remarks=reply.remarks)
        judgement.ending = "\n".join(filter(None, (reply.ending, self._printed()))) if reply.defects else ""
        partial = self._trace(reply, request) if reply.tensors is not None else None
        if isinstance(partial, Judgement):
            judgement.defects += partial.defects
        judgement.partial = partial if isinstance(partial, Trace) else None
        return judgement

    def _trace(self, reply: DecoderReply, request: Request) -> Trace | Judgement:
        """Build the trace, and judge its form again, since a reply can be forged."""
        trace, _ = made_plain(reply.read_trace(self.mailbox))
        wrong = unreadable(self.models, request, trace)
        return trace if wrong is None else Judgement(request.B, defects=[wrong])

    def _given_up(self, error: Exception) -> str:
        """End the process, and keep its log; return why, with the end of the log and where it lies. Raises nothing."""
        kind = "" if isinstance(error, processes.GoneError | processes.UnreadableError) else f"{type(error).__name__}: "
        why = f"{kind}{text_of(error)}"
        self._end(failed=True)
        try:
            return f"{why}; {self._log.said(LAST_LINES)}"
        except OSError as unread:
            return f"{why}; its log cannot be read ({unread})"

    def _printed(self) -> str:
        """Return what the process printed last; nothing where its log cannot be read. Raises nothing."""
        with suppress(OSError):
            lines = self._log.last_lines(PRINTED_LINES)
            return "\n".join(["Its process printed last:", *lines]) if lines else ""
        return ""

    def _end(self, failed: bool = False) -> None:
        """End the process and whatever it started: at once, where it failed. Raises nothing."""
        self.failed |= failed
        line, self._line = self._line, None
        if line is not None:
            with suppress(OSError):
                line.close(0.0 if self.failed else processes.GRACE_S)


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
    # of a decoder that claims B or C: the first scale whose tokens may be others than the reference's; None = scale 0
    may_differ_from: int | None = None


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
