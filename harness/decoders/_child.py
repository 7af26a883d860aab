"""The process of a decoder under test: builds it, decodes what it is asked to, and hands traces over by value.

Promise: it holds copies of everything: weights, requests, numbers. Whatever the decoder does to them, or to this
process, the judge's side does not notice other than by what comes back. What this process says of itself (what a decode
left behind, numbers read, bytes of a cache) is its own word: the harness's functions here are compared with what they
were before any code of the decoder's was loaded, which finds a decoder that replaced one, and no more.

Started by `harness.decoders._runner`, which is the other side of the conversation.
"""

import atexit
import faulthandler
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, BinaryIO

import torch

from harness.decoders._conversation import DecoderJob, DecoderQuestion, DecoderReply, Mailbox
from harness.decoders._factory import OutOfTimeError, load_factory
from harness.decoders._in_process import InProcess, Watched
from harness.errors import InputError
from harness.judge import Divergence, Judgement
from harness.processes import given


def serve(device: str, conversation: str) -> None:
    """Hold one conversation about a `DecoderJob`, over a descriptor; wait for it with the device at hand."""
    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # the judge has gone
        if device.startswith("cuda"):
            with suppress(Exception):  # of a device that is not there the judge knows better
                torch.cuda.synchronize(device)  # starts CUDA here while the judge is still busy with its own
        job, *mailbox = given(int(conversation))
        _serve(_read(job), mailbox, int(conversation))
    # what a decoder wants done at the end is done, but Python and PyTorch are not taken apart
    threading._shutdown()  # type: ignore[attr-defined]  # as Python begins its own end, and multiprocessing does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the decoder may have put anything there
            stream.flush()
    os._exit(0)


def _read(descriptor: int) -> DecoderJob:
    """Return what the judge's side has sealed: tensors on a CPU are its pages, copied where this process writes."""
    place = f"/dev/fd/{descriptor}"
    with open(place, "rb") as stream:
        is_archive = stream.read(2) == b"PK"
        stream.seek(0)
        job: DecoderJob = torch.load(place, weights_only=False, mmap=True) if is_archive else pickle.load(stream)
    os.close(descriptor)
    return job


def _serve(job: DecoderJob, mailbox: list[int], conversation: int) -> None:
    faulthandler.enable()  # a process that dies names its own frame in the log
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # between decodes, that none is over
    job.surroundings.restore()
    job.limits.bound_memory()
    with os.fdopen(os.dup(conversation), "rb") as questions, os.fdopen(conversation, "wb") as replies:
        memory, watched = Mailbox.open(job.mailbox, *mailbox), Watched(job.models)
        untouched = own_functions()
        _say(replies, DecoderReply())
        try:
            factory = pickle.loads(job.factory) if isinstance(job.factory, bytes) else load_factory(job.factory)
            decoders = InProcess(factory, job.models, job.settings, watched=False)
        except InputError as error:
            _say(replies, DecoderReply(refused=error))
            return
        _say(replies, DecoderReply(decoders.built))
        while True:
            question: DecoderQuestion = pickle.load(questions)
            with _within(question.timeout_s):
                reply = _answer(question, decoders, watched, memory)
            patched = [
                f"{module}.{dotted}"
                for (module, dotted), (owner, name, value, code) in untouched.items()
                if vars(owner).get(name) is not value or getattr(value, "__code__", None) is not code
            ]
            if patched and reply.refused is None:
                detail = f"the decoder left {', '.join(patched[:3])} of the harness patched in its process"
                defects = [*reply.defects, Divergence("environment", detail, question.request.seed)]
                reply = replace(reply, defects=defects)
            _say(replies, reply)


def _answer(question: DecoderQuestion, decoders: InProcess, watched: Watched, mailbox: Mailbox) -> DecoderReply:
    """Decode once, the tensors into the mailbox, or ask the decoder's parts, or for the line that goes wrong."""
    asked = question.setting, question.request
    try:
        if question.budget is not None:
            return DecoderReply(parts=decoders.parts(*asked, question.budget))
        if question.greedy is not None:
            return DecoderReply(code_line=decoders.line(*asked, question.greedy))
        outcome = decoders.decode(*asked, question.times)
    except InputError as error:
        return DecoderReply(refused=error)
    ended = outcome if isinstance(outcome, Judgement) else Judgement(question.request.B, partial=outcome)
    shown = DecoderReply() if ended.partial is None else DecoderReply.with_trace(ended.partial, mailbox)
    defects = [*watched.written(question.request), *ended.defects, *shown.defects]
    return replace(shown, defects=defects, so_far=ended.so_far, ending=ended.ending, remarks=ended.remarks)


def _say(replies: BinaryIO, reply: DecoderReply) -> None:
    replies.write(reply.line())
    replies.flush()


Functions = dict[tuple[str, str], tuple[Any, str, Any, Any]]  # (module, dotted name) -> owner, name, value, its code


def own_functions() -> Functions:
    """Return every function of the harness that is loaded, of its classes, too: nothing of a decoder's is there yet."""
    found: Functions = {}
    for module in [each for name, each in sys.modules.items() if name.partition(".")[0] == "harness"]:
        owners = [("", module), *((f"{n}.", c) for n, c in vars(module).items() if isinstance(c, type))]
        for prefix, owner in owners:
            if prefix and owner.__module__.partition(".")[0] != "harness":
                continue
            for name, value in vars(owner).items():
                if callable(value) and not name.startswith("__"):
                    found[module.__name__, prefix + name] = owner, name, value, getattr(value, "__code__", None)
    return found


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """End what runs by an exception in the main thread, when the judge's side says that its time is over."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTimeError(f"no answer within {seconds:g} s (timeout)")

    signal.signal(signal.SIGUSR1, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
