"""A decoder under test in a process of its own, as its judge sees it.

Promise: whatever happens there, the answer to one decode is a trace by value or a judgement with a defect of component
`process`; the next decode gets a fresh process. Nothing of that process is executed here: its answers are JSON and
bytes, and both are checked.

Why not torch.multiprocessing or pebble: both unpickle what the other side sends, which runs the accused's code in the
judge, and both import the caller's main script again. `subprocess`, pipes and shared memory do neither.
"""

from __future__ import annotations

import copy
import os
import pickle
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from harness.decoders._conversation import LONGEST, DecoderJob, DecoderQuestion, DecoderReply
from harness.decoders._factory import Factory, factory_name, pickled_factory
from harness.decoders._mailbox import Mailbox, UnreadableError, capacity
from harness.decoders._process import GRACE_S, START_S, Limits, Process, Surroundings, last_lines
from harness.errors import InputError
from harness.judge import Divergence, Judgement, PartLaw, PartVerdict, made_plain, unreadable
from harness.models import ModelPair
from harness.protocol import Request, Settings, Trace
from harness.rounding import Budget

LOG, LAST_LINES = "decoder.log", 3


class _GoneError(Exception):
    """The process gave no answer; the message says why."""


class OwnProcess:
    """One decoder a setting, in one process that is replaced when it dies; `most` images are the largest request.

    Raises:
        InputError: the factory cannot be found, refuses the settings, or its process dies while it builds.

    Effects: a process, a folder for its log, shared memory; `close` ends them.
    """

    def __init__(
        self, factory: Factory | str, models: ModelPair, settings: Sequence[Settings], most: int, limits: Limits
    ) -> None:
        self.models, self.limits = models, limits
        self.name = factory if isinstance(factory, str) else factory_name(factory)
        self.folder = Path(tempfile.mkdtemp(prefix="sdvar-harness-"))
        self.failed = False
        self.mailbox = Mailbox.make(capacity(models, most), models.device)
        # the other process works on copies: on CUDA it opens this one's memory, on a CPU the pickle holds them
        self._copies = copy.deepcopy(models) if models.device.type == "cuda" else models
        self._line: _Line | None = None
        try:
            sent = factory if isinstance(factory, str) else pickled_factory(factory, self.name)
            job = DecoderJob(sent, self._copies, list(settings), self.mailbox.handle, Surroundings.here(), limits)
            with (self.folder / "job").open("wb") as file:
                pickler = ForkingPickler if models.device.type == "cuda" else pickle.Pickler
                pickler(file, pickle.HIGHEST_PROTOCOL).dump(job)
            built = self._start()
            self.contracts, self.moved = built.contracts, built.moved
        except BaseException:
            self.close()
            raise

    def decode(self, setting: int, request: Request) -> Trace | Judgement:
        """Decode one request with the decoder of one setting. Raises `InputError` where it refuses the request."""
        try:
            reply = self._ask(DecoderQuestion(setting, request, self.limits.timeout_s))
            if not (reply.defects or reply.remarks):
                return self._trace(reply, request)
            judgement = Judgement(request.B, defects=reply.defects, so_far=reply.so_far, remarks=reply.remarks)
            partial = self._trace(reply, request) if reply.tensors is not None else None
            if isinstance(partial, Judgement):
                judgement.defects += partial.defects
            judgement.partial = partial if isinstance(partial, Trace) else None
            return judgement
        except (_GoneError, UnreadableError) as error:
            detail = self._given_up(error)
            return Judgement(request.B, defects=[Divergence("process", detail, request.seed)])

    def parts(self, setting: int, request: Request, budget: Budget) -> list[PartLaw]:
        """Ask the parts of one setting's decoder. Raises `InputError` where it is not of published code."""
        try:
            return self._ask(DecoderQuestion(setting, request, self.limits.timeout_s, budget)).parts
        except (_GoneError, UnreadableError) as error:
            detail = self._given_up(error)
            return [PartLaw("process", "process.ends", "The decoder's process answers.", PartVerdict.CRASHED, detail)]

    def close(self) -> None:
        """End the process; its log stays where a decode failed."""
        self._end()
        self.mailbox.close()
        if not self.failed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> DecoderReply:
        """Start the process and wait until its decoders are built; return what they claim."""
        self._line = _Line(self.folder, self.mailbox)
        try:
            reply = DecoderReply.of(self._line.hear(START_S, "time to build a decoder"))
        except (_GoneError, UnreadableError) as error:
            rule = f"built no decoder: {self._given_up(error)}"
            raise InputError("implementation", self.name, rule, "see docs/own-decoder.md") from None
        if reply.refused is not None:
            raise reply.refused
        return reply

    def _ask(self, question: DecoderQuestion) -> DecoderReply:
        """Return the reply to a question; who takes too long is asked to say where it is before it is ended.

        Raises `InputError` where the decoder refuses, `_GoneError` for no reply, `UnreadableError` for another form.
        """
        if self._line is None:
            self._start()
        assert self._line is not None
        self._line.tell(question)
        try:
            reply = DecoderReply.of(self._line.hear(question.timeout_s, "timeout"), question.request.seed)
        except _GoneError as gone:
            if not self._line.process.is_alive:
                raise
            self._line.process.send(signal.SIGUSR1)
            try:
                reply = DecoderReply.of(self._line.hear(GRACE_S, "timeout"), question.request.seed)
            except _GoneError:
                reply = DecoderReply()
            self._end(failed=True)  # whatever else it may still do
            if not reply.defects:
                raise gone from None
        if reply.refused is not None:
            raise reply.refused
        return reply

    def _trace(self, reply: DecoderReply, request: Request) -> Trace | Judgement:
        """Build the trace, and judge its form again, since a reply can be forged."""
        trace, _ = made_plain(reply.read_trace(self.mailbox))
        wrong = unreadable(self.models, request, trace)
        return trace if wrong is None else Judgement(request.B, defects=[wrong])

    def _given_up(self, error: Exception) -> str:
        """End the process, and keep its log; return why, with the end of the log and where it lies."""
        self._end(failed=True)
        log = self.folder / LOG
        lines = last_lines(log, LAST_LINES)
        return f"{error}; log {log}" + (f" ends: {' | '.join(lines)}"[:400] if lines else " is empty")

    def _end(self, failed: bool = False) -> None:
        """End the process and whatever it started: at once, where it failed."""
        self.failed |= failed
        if self._line is not None:
            self._line.close(0.0 if self.failed else GRACE_S)
            self._line = None


class _Line:
    """The line to one process of a decoder.

    Effects: a process; `close` ends it.
    """

    def __init__(self, folder: Path, mailbox: Mailbox) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        theirs = [to_read[0], to_write[1]]
        inherited = theirs + [mailbox.descriptor] * (mailbox.descriptor >= 0)
        words = [folder / "job", *theirs]
        self.process = Process("harness.decoders._child:serve", words, inherited, folder / LOG)
        for descriptor in theirs:
            os.close(descriptor)
        self._writer, self._reader, self._buffer = os.fdopen(to_read[1], "wb"), to_write[0], b""

    def tell(self, question: DecoderQuestion) -> None:
        """Send a question. Raises `_GoneError`."""
        try:
            pickle.dump(question, self._writer)
            self._writer.flush()
        except OSError:
            raise _GoneError(f"the decoder's process {self.process.death()} before the decode") from None

    def hear(self, seconds: float, word: str) -> bytes:
        """Return the next line. Raises `_GoneError` where none comes, `UnreadableError` where it has no end."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise _GoneError(f"no answer within {seconds:g} s ({word})")
            piece = os.read(self._reader, 2**20)
            if not piece:
                raise _GoneError(f"the decoder's process {self.process.death()}")
            self._buffer += piece
            if len(self._buffer) > LONGEST:
                raise UnreadableError(f"the decoder's process answers with more than {LONGEST} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self, grace_s: float) -> None:
        """End the process and whatever it started, once it has had so many seconds to end by itself."""
        with suppress(OSError):
            self._writer.close()
        os.close(self._reader)
        self.process.end(grace_s)
