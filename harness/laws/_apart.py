"""Laws of a decoder in processes of its own: whoever asks, and from `serve` on the process itself.

Promise: what comes back of a law is plain values, checked one by one, or that its process died of it and why: nothing
of a decoder's process is ever unpickled, and no wait outlives the time of a law. A law that took longer says so, and
proves nothing; a decode of few images that took half of that time hangs, and so does code that no signal interrupts.
What that process says of a law is its word: it holds the law's test and the decoder both.
"""

import faulthandler
import json
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import FrameType
from typing import Any, BinaryIO, Self

import torch

from harness import processes
from harness.decoders import Factory, Limits, OutOfTimeError, Surroundings, factory_name, load_factory, pickled_factory
from harness.errors import InputError, one_line, text_of
from harness.laws._case import Case
from harness.laws._engine import CaseSource, LawResult, try_law, unheard
from harness.laws._law import Law, Subject, Violation
from harness.pool import Died
from harness.protocol import Request
from harness.schema import record_of

DEAF_S = 10.0  # for code to see the alarm
HANGS = "no answer within"
JUDGING = ("harness.laws", "harness.reference")  # whose loops over many decodes or draws are no decode that hangs
SHARED = ("harness.models", "torch")  # called by either side
FEW = 8  # images: a decode of thousands, as some laws ask for, may take its time
NO_LIMIT_S = 10.0**6  # where nobody said how long a law may take
SERVE = "harness.laws._apart:serve"
MOST_TEXT = 2000  # characters of a clause
MOST_COUNT = 2**53

Options = tuple[tuple[str, str], ...]  # (name, value) for a factory
Told = tuple[str, Options]  # how a violation names the decoder: its factory in Python, and options


@dataclass
class LawWork:
    """What is tried, by this process or by others; once it is open it tries law after law here."""

    factory: Factory | str | bytes  # of the decoder, its name, or cloudpickle's bytes of it
    options: Options  # of the factory
    source: CaseSource  # of the cases
    limits: Limits | None = None  # of a process of the decoder's own; None = it needs none, or has no limits
    progress: Callable[[LawResult], None] = unheard  # as in `try_law`
    about: str = field(init=False, default="")  # once it is open: the decoder's name

    @cached_property
    def subject(self) -> Subject:
        factory = pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory
        return Subject(load_factory(factory) if isinstance(factory, str) else factory, self.options)

    @property
    def name(self) -> str:
        """The decoder's factory as Python names it."""
        return repr(self.factory) if isinstance(self.factory, str) else self.subject.name

    def open(self) -> Self:
        """Find the decoder's factory. Raises `InputError` where there is none."""
        self.about = self.subject.name
        return self

    def do(self, law: Law) -> LawResult:
        return try_law(law, self.subject, self.source, self.progress)

    def close(self) -> None:
        """Nothing is left to end."""


class LawProcesses:
    """Processes that try laws, one a device, which may stand there twice. Raises `InputError` for no such factory."""

    def __init__(self, work: LawWork, devices: Sequence[str]) -> None:
        factory, limits = work.factory, work.limits or Limits()
        sent = factory if isinstance(factory, str | bytes) else pickled_factory(factory, factory_name(factory))
        # they share this one's threads: more threads than cores wait for each other, five times as long
        shared = Surroundings.here(len(devices))
        job = shared, replace(work, factory=sent, progress=unheard)  # the asking side trusts itself
        self._folder = processes.OwnFolder()
        self._job = -1
        try:
            self._job = processes.sealed(lambda stream: pickle.dump(job, stream))
            place = processes.own_place(self._folder.path, limits.allow_write, limits.connects)
            self._processes = [_LawProcess((self._job, device), place, work) for device in devices]
        except BaseException:
            self.close()
            raise

    def map(self, laws: Iterable[Law]) -> Iterator[tuple[Law, LawResult | Died]]:
        """Yield every law with what came of it, as they are done. Raises `InputError` for no such factory."""
        waiting, done = queue.SimpleQueue[Law](), queue.SimpleQueue[tuple[Law, LawResult | Died | InputError]]()
        count = 0
        for law in laws:
            waiting.put(law)
            count += 1
        for process in self._processes[:count]:
            threading.Thread(target=process.try_all, args=(waiting, done), daemon=True).start()
        for _ in range(count):
            law, result = done.get()
            if isinstance(result, InputError):
                raise result
            yield law, result

    def close(self) -> None:
        for process in getattr(self, "_processes", ()):
            process.close()
        if self._job >= 0:
            os.close(self._job)
        self._folder.remove()


class _LawProcess:
    """One process, which is replaced when a law has ended it."""

    def __init__(self, begins: tuple[int, str], place: Any, work: LawWork) -> None:
        self._begins, self._place, self._told = begins, place, (work.name, work.options)
        self._seconds = work.limits.timeout_s if work.limits is not None else NO_LIMIT_S
        self._line: processes.ProcessLine | None = None
        self._log, self._closed = processes.Log(), False

    def try_all(self, waiting: queue.SimpleQueue[Law], done: queue.SimpleQueue[Any]) -> None:
        """Try laws as long as there are any, in a thread of this process."""
        with suppress(queue.Empty):
            while not self._closed:
                law = waiting.get_nowait()
                done.put((law, self._tried(law)))

    def close(self) -> None:
        self._closed = True
        self._end()
        self._log.close()

    def _tried(self, law: Law) -> LawResult | Died | InputError:
        try:
            if self._line is None and (refused := self._start()) is not None:
                return refused
            assert self._line is not None
            self._line.tell(pickle.dumps(law), self._seconds)
            return read_answer(self._line.hear(self._seconds + DEAF_S + processes.GRACE_S, "timeout"), law, self._told)
        except Exception as error:  # whatever its process made us meet
            why = text_of(error) if isinstance(error, processes.GoneError | processes.UnreadableError) else f"{error!r}"
            self._end()
            with suppress(OSError, IndexError):
                why += f": {self._log.last_lines(1)[0][:200]}"
            return Died(why)

    def _start(self) -> InputError | None:
        """Start the process; return the refusal of the factory. Raises as a line does."""
        job, device = self._begins
        self._line = processes.ProcessLine(SERVE, [job, device], [job], self._log, self._place)
        values = json.loads(self._line.hear(processes.START_S, "time to start"))
        return InputError(*(str(text)[:MOST_TEXT] for text in values)) if values else None

    def _end(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with suppress(OSError):
                line.close(0.0)


def answer_of(row: LawResult) -> bytes:
    """Return what a law came to as it is sent."""
    violation = row.violation
    values = {name: getattr(row, name) for name in (*COUNTS, *TEXTS, "not_done")} | {"seconds": row.seconds, "late": ""}
    values["broken"] = None if violation is None else [violation.found, vars(violation.case), violation.part]
    return json.dumps(values).encode() + b"\n"


COUNTS, TEXTS = ("examples", "exercised", "refused"), ("skipped", "why")


def read_answer(line: bytes, law: Law, told: Told) -> LawResult | Died:
    """Read what `answer_of` made, or what somebody forged. Raises `UnreadableError`: it has another form."""
    try:
        values = json.loads(line)
        if values["late"]:
            late = str(values["late"])[:MOST_TEXT]
            return Died(late) if values["hangs"] else LawResult(law, late=late, done=True)
        counts = {name: values[name] for name in COUNTS}
        if not all(type(count) is int and 0 <= count < MOST_COUNT for count in counts.values()):
            raise ValueError("no counts")
        row = LawResult(law, **counts, seconds=float(values["seconds"]), done=True, not_done=values["not_done"] is True)
        row.skipped, row.why = (str(values[name])[:MOST_TEXT] for name in TEXTS)
        if values["broken"] is not None:
            found, case, part = values["broken"]
            whole = record_of(Case, {each.name: case[each.name] for each in fields(Case)})
            row.violation = Violation(law, whole, str(found)[:MOST_TEXT], *told, str(part)[:MOST_TEXT])
        return row
    except (ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        raise processes.UnreadableError(
            f"its process answers with another form ({one_line(text_of(error))[:100]})"
        ) from None


def serve(job: str, device: str, conversation: str) -> None:
    """Hold one conversation about a `LawWork`; `job` and `conversation` are descriptors."""
    with open(f"/dev/fd/{job}", "rb") as stream:
        surroundings, work = pickle.load(stream)
    os.close(int(job))
    surroundings.restore()
    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # who asked has gone
        _serve(work, device, int(conversation))


def _serve(work: LawWork, device: str, conversation: int) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(torch.device(device))
    if work.limits is not None:
        work.limits.bound_memory()
    with os.fdopen(os.dup(conversation), "rb") as questions, os.fdopen(conversation, "wb") as replies:
        try:
            work.open()
        except InputError as error:
            _say(replies, json.dumps([error.name, str(error.value), error.rule, error.remedy]).encode() + b"\n")
            return
        _say(replies, b"[]\n")
        while True:
            law: Law = pickle.load(questions)
            try:
                with in_time(work.limits.timeout_s if work.limits is not None else 0.0):
                    answer = answer_of(work.do(law))
            except OutOfTimeError as error:
                answer = json.dumps({"late": str(error), "hangs": str(error).startswith(HANGS)}).encode() + b"\n"
            _say(replies, answer)


def _say(replies: BinaryIO, line: bytes) -> None:
    replies.write(line)
    replies.flush()


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in what takes longer, by this process's alarm; 0 = no limit.

    It says whether one call of the decoder for few images took half of the time. Code that no signal interrupts ends
    the process.
    """
    if not seconds:
        yield
        return
    before: list[FrameType] = []  # that were running at half time

    def ring(number: int, frame: FrameType | None) -> None:
        running = []
        while frame is not None:
            running.append(frame)
            frame = frame.f_back
        if not before:
            before.extend(running)
            return
        still = [each for each in running if each in before]
        names = (str(each.f_globals.get("__name__")) for each in still)
        within = next((name for name in names if not name.startswith(SHARED)), __name__)
        requests = (each.f_locals.get("request") for each in still)
        many = any(isinstance(each, Request) and each.B > FEW for each in requests)
        if many or within.startswith(JUDGING):
            raise OutOfTimeError(f"took longer than {seconds:g} s: pass --timeout {2 * seconds:g}")
        raise OutOfTimeError(f"{HANGS} {seconds:g} s (timeout)")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds / 2, seconds / 2)
    faulthandler.dump_traceback_later(seconds + DEAF_S, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.cancel_dump_traceback_later()
        before.clear()
