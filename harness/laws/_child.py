"""The process in which laws meet somebody else's decoder: one law after the other, each answered in one line of JSON.

Promise: a law ends when its time is over; code that hears no signal ends its process. Started by `harness.laws._apart`,
which is the other side of the conversation.
"""

import faulthandler
import json
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import torch

from harness.decoders import OutOfTimeError, load_factory
from harness.errors import InputError
from harness.laws._apart import DEAF_S, LawJob, answer_of, late_answer
from harness.laws._engine import try_law
from harness.laws._law import Law, Subject


def serve(job: str, device: str, conversation: str) -> None:
    """Hold one conversation about a `LawJob`; `job` and `conversation` are descriptors."""
    with open(f"/dev/fd/{job}", "rb") as stream:
        work: LawJob = pickle.load(stream)
    os.close(int(job))
    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # who asked has gone
        _serve(work, device, int(conversation))


def _serve(job: LawJob, device: str, conversation: int) -> None:
    job.surroundings.restore()
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(torch.device(device))
    if job.limits is not None:
        job.limits.bound_memory()
    with os.fdopen(os.dup(conversation), "rb") as questions, os.fdopen(conversation, "wb") as replies:
        try:
            factory = pickle.loads(job.factory) if isinstance(job.factory, bytes) else load_factory(job.factory)
        except InputError as error:
            _say(replies, json.dumps([error.name, str(error.value), error.rule, error.remedy]).encode() + b"\n")
            return
        _say(replies, b"[]\n")
        subject, seconds = Subject(factory, job.options), job.limits.timeout_s if job.limits is not None else 0.0
        while True:
            law: Law = pickle.load(questions)
            try:
                with in_time(seconds):
                    answer = answer_of(try_law(law, subject, job.source))
            except OutOfTimeError as error:
                answer = late_answer(str(error))
            _say(replies, answer)


def _say(replies: BinaryIO, line: bytes) -> None:
    replies.write(line)
    replies.flush()


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in what takes longer; code that hears no signal ends its process. 0 = no limit.

    Effects: the alarm of this process, which must be one of its own.
    """
    if not seconds:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise OutOfTimeError(f"no answer within {seconds:g} s (timeout)")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + DEAF_S, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.cancel_dump_traceback_later()
