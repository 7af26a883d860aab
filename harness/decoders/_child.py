"""The process of a decoder under test: builds it, decodes what it is asked to, and hands traces over by value.

Promise: it holds copies of everything: weights, requests, numbers. Whatever the decoder does to them, or to this
process, the judge's side does not notice other than by what comes back.

Started by `harness.decoders._own_process`, which is the other side of the conversation.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from harness.decoders._conversation import DecoderJob, DecoderQuestion, DecoderReply
from harness.decoders._factory import build_by_factory, load_factory
from harness.decoders._in_process import Watched, inspect_parts, run_in_process
from harness.decoders._mailbox import Mailbox
from harness.decoders._process import OutOfTimeError
from harness.errors import InputError
from harness.judge import Judgement
from harness.protocol import Implementation
from harness.rounding import precision_unchanged


def serve(job_file: str, read: str, write: str) -> None:
    """Hold one conversation: `job_file` is a pickled `DecoderJob`, the others are descriptors."""
    with suppress(BrokenPipeError, EOFError):  # the judge has gone
        _serve(pickle.loads(Path(job_file).read_bytes()), int(read), int(write))


def _serve(job: DecoderJob, read: int, write: int) -> None:
    faulthandler.enable()  # a process that dies names its own frame in the log
    job.surroundings.restore()
    job.limits.bound_memory()
    with os.fdopen(read, "rb") as questions, os.fdopen(write, "wb") as replies:
        mailbox, alarm, watched = Mailbox.open(job.mailbox), _Alarm(), Watched(job.models)
        try:
            factory = pickle.loads(job.factory) if isinstance(job.factory, bytes) else load_factory(job.factory)
            with precision_unchanged() as moved:
                decoders = [build_by_factory(factory, job.models, setting) for setting in job.settings]
        except InputError as error:
            _say(replies, DecoderReply(refused=error))
            return
        _say(replies, DecoderReply([str(decoder.contract) for decoder in decoders], moved))
        while True:
            question: DecoderQuestion = pickle.load(questions)
            with alarm.within(question.timeout_s):
                reply = _answer(question, decoders[question.setting], watched, mailbox)
            _say(replies, reply)


def _answer(question: DecoderQuestion, decoder: Implementation, watched: Watched, mailbox: Mailbox) -> DecoderReply:
    """Decode once, the tensors into the mailbox, or ask the decoder's parts."""
    try:
        if question.budget is not None:
            return DecoderReply(parts=inspect_parts(decoder, question.request, question.budget))
        outcome = run_in_process(decoder, watched.models, question.request)
    except InputError as error:
        return DecoderReply(refused=error)
    ended = outcome if isinstance(outcome, Judgement) else Judgement(question.request.B, partial=outcome)
    shown = DecoderReply() if ended.partial is None else DecoderReply.with_trace(ended.partial, mailbox)
    defects = [*watched.written(question.request), *ended.defects, *shown.defects]
    return replace(shown, defects=defects, so_far=ended.so_far, remarks=ended.remarks)


def _say(replies: BinaryIO, reply: DecoderReply) -> None:
    replies.write(reply.line())
    replies.flush()


class _Alarm:
    """Ends a decode by an exception in the main thread, when the judge's side says that its time is over."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the decode that runs; 0 = none does
        signal.signal(signal.SIGUSR1, self._ring)

    def _ring(self, number: int, frame: object) -> None:
        if self.seconds:
            raise OutOfTimeError(f"no answer within {self.seconds:g} s (timeout)")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Allow the alarm while a decode runs."""
        self.seconds = seconds
        try:
            yield
        finally:
            self.seconds = 0.0
