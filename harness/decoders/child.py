"""The process of a decoder under test: builds it, decodes what it is told to, and hands traces over by value.

Promise: it holds copies of everything: weights, requests, numbers. Whatever the decoder does to them, or to this
process, the judge's side does not notice other than by what comes back.

Started by `harness.decoders.own_process`, which is the other side of the conversation: a line of JSON each way.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from harness.decoders.factory import build, load_factory
from harness.decoders.in_process import OutOfTimeError, inspect_parts, run_in_process
from harness.decoders.mailbox import Mailbox, UnreadableError
from harness.decoders.process import Limits
from harness.errors import InputError
from harness.judge.verdict import Judgement
from harness.models.pair import ModelPair
from harness.protocol.decoder import Implementation, Settings
from harness.protocol.request import Request, request_of
from harness.protocol.trace import Trace
from harness.rounding.budget import Budget
from harness.rounding.precision import set_precision, unchanged

TENSORS = ("tokens_BL", "f_hat_BCPP", "scale_writes_BS")
KEPT = "intermediates."


@dataclass(frozen=True)
class Job:
    """What the process is started with; pickled by the judge's side, which trusts itself.

    Args:
        factory: name of the factory, or the factory itself as cloudpickle's bytes.
        models: copies of the networks.
        settings: a decoder is built for each.
        mailbox: handle of the shared memory.
        tf32: the mode.
        threads: that PyTorch computes with.
        path: where modules are found.
        limits: of the process.
    """

    factory: str | bytes
    models: ModelPair
    settings: list[Settings]
    mailbox: Any
    tf32: bool
    threads: int
    path: list[str] = field(default_factory=list)
    limits: Limits = Limits()  # noqa: RUF009  # frozen


def serve(job_file: str, read: str, write: str) -> None:
    """Hold one conversation.

    Args:
        job_file: pickled `Job`.
        read: descriptor of the judge's lines.
        write: descriptor of the answers.
    """
    with suppress(BrokenPipeError):  # the judge has gone
        _serve(Path(job_file), int(read), int(write))


def _serve(job_file: Path, read: int, write: int) -> None:
    job: Job = pickle.loads(job_file.read_bytes())
    sys.path[:] = job.path
    faulthandler.enable()  # a process that dies names its own frame in the log
    set_precision(job.tf32)
    torch.set_num_threads(job.threads)
    job.limits.bound_memory()
    with os.fdopen(read, "rb") as lines, os.fdopen(write, "wb") as answers:
        mailbox, alarm = Mailbox.open(job.mailbox), _Alarm()
        try:
            factory = pickle.loads(job.factory) if isinstance(job.factory, bytes) else load_factory(job.factory)
            with unchanged() as moved:
                decoders = [build(factory, job.models, setting) for setting in job.settings]
        except InputError as error:
            _say(answers, {"refused": _refusal(error)})
            return
        _say(answers, {"contracts": [str(decoder.contract) for decoder in decoders], "moved": moved})
        for line in lines:
            question = json.loads(line)
            decoder, request = decoders[question["setting"]], request_of(question["request"])
            if "budget" in question:
                _say(answers, _inspected(decoder, request, Budget(**question["budget"])))
            else:
                with alarm.of(question["timeout_s"]):
                    answer = _decoded(decoder, job.models, request, mailbox)
                _say(answers, answer)


def _inspected(decoder: Implementation, request: Request, budget: Budget) -> dict[str, Any]:
    """Ask the decoder's parts; return the rows."""
    try:
        return {"parts": [row.as_dict() for row in inspect_parts(decoder, request, budget)]}
    except InputError as error:
        return {"refused": _refusal(error)}


def _decoded(decoder: Implementation, models: ModelPair, request: Request, mailbox: Mailbox) -> dict[str, Any]:
    """Decode once; return the answer, the tensors in the mailbox."""
    try:
        made = run_in_process(decoder, models, request)
    except InputError as error:
        return {"refused": _refusal(error)}
    if not isinstance(made, Judgement):
        return _packed(made, mailbox)
    names = ("component", "detail", "image", "scale")
    answer: dict[str, Any] = {
        "defects": [{name: getattr(defect, name) for name in names} for defect in made.defects],
        "so_far": made.so_far,
    }
    packed = _packed(made.partial, mailbox) if made.partial is not None else {}
    return answer | (packed if "tensors" in packed else {})


def _packed(trace: Trace, mailbox: Mailbox) -> dict[str, Any]:
    """Put a trace's tensors into the mailbox; return what the judge's side makes a trace of, or the defect instead."""
    tensors = {name: getattr(trace, name) for name in TENSORS}
    if trace.intermediates is not None:
        tensors |= {f"{KEPT}{name}": tensor for name, tensor in trace.intermediates.named().items()}
    try:
        return {"tensors": mailbox.put(tensors), "trace": plain(trace)}
    except (UnreadableError, TypeError, ValueError) as error:
        detail = f"the trace cannot leave the decoder's process ({error})"
        return {"defects": [{"component": "process", "detail": detail, "image": -1, "scale": -1}], "so_far": ""}


class _Alarm:
    """Ends a decode by an exception in the main thread, when the judge's side says that its time is over."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the decode that runs; 0 = none does
        signal.signal(signal.SIGUSR1, self._ring)

    def _ring(self, number: int, frame: object) -> None:
        if self.seconds:
            raise OutOfTimeError(f"no answer within {self.seconds:g} s (timeout)")

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Allow the alarm while a decode runs."""
        self.seconds = seconds
        try:
            yield
        finally:
            self.seconds = 0.0


def plain(trace: Trace) -> dict[str, Any]:
    """Return all of a trace but its tensors as JSON values. Raises `TypeError` or `ValueError` where one is none."""
    values = {f.name: getattr(trace, f.name) for f in fields(Trace) if f.name not in (*TENSORS, "intermediates")}
    values["rounds"] = [[asdict(turn) for turn in rounds] for rounds in trace.rounds]
    json.dumps(values, allow_nan=False)
    return values


def _refusal(error: InputError) -> dict[str, str]:
    return {name: str(getattr(error, name)) for name in ("name", "value", "rule", "remedy")}


def _say(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
