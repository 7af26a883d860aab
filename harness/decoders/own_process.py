"""A decoder under test in a process of its own, as its judge sees it.

Promise: whatever happens there, the answer to one decode is a trace by value or a judgement with a defect of component
`process`; the next decode gets a fresh process. Nothing of that process is executed here: its answers are JSON and
bytes, and both are checked.

Why not torch.multiprocessing or pebble: both unpickle what the other side sends, which runs the accused's code in the
judge, and both import the caller's main script again. `subprocess`, pipes and shared memory do neither.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from harness.adapters.probe import PartLaw
from harness.decoders.child import KEPT, TENSORS, Job
from harness.decoders.factory import Factory, name_of, pickled
from harness.decoders.in_process import died
from harness.decoders.mailbox import Mailbox, UnreadableError, capacity
from harness.decoders.process import Limits
from harness.errors import InputError
from harness.judge.form import UNREADABLE, malformed
from harness.judge.verdict import Divergence, Judgement
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Round, Trace
from harness.rounding.budget import Budget
from harness.rounding.precision import precision

START_S = 600.0  # building a decoder, its imports included
LONGEST = 2**26  # bytes of one answer; the rounds of a thousand images take some hundred KiB
LAST_LINES = 3
MOST_TEXT = 1000  # characters of a clause
GRACE_S = 5.0
SERVE = "import sys; from harness.decoders.child import serve; serve(*sys.argv[1:])"


class Gone(Exception):  # noqa: N818
    """The process gave no answer; the message says why."""


class OwnProcess:
    """One decoder a setting, in one process that is replaced when it dies.

    Args:
        factory: its name, or a factory that can be pickled.
        models: networks; the process gets copies.
        settings: at least one.
        most: images of the largest request.
        limits: time and memory.

    Raises:
        InputError: the factory cannot be found, refuses the settings, or its process dies while it builds.

    Effects: a process, a folder for its log, shared memory; `close` ends them.
    """

    def __init__(
        self, factory: Factory | str, models: ModelPair, settings: Sequence[Settings], most: int, limits: Limits
    ) -> None:
        self.models, self.settings, self.limits = models, list(settings), limits
        self.name = factory if isinstance(factory, str) else name_of(factory)
        self.folder = Path(tempfile.mkdtemp(prefix="sdvar-harness-"))
        self.log = self.folder / "decoder.log"
        self.failed = False
        self.mailbox = Mailbox.make(capacity(models, most), models.device)
        # the other process works on copies: on CUDA it opens this one's memory, on a CPU the pickle holds them
        self._copies = copy.deepcopy(models) if models.device.type == "cuda" else models
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._write_job(factory)
            built = self._start()
            self.contracts = [str(name) for name in built["contracts"]]
            self.moved = [str(clause)[:200] for clause in built["moved"]]
        except BaseException:
            self.close()
            raise

    def decode(self, setting: int, request: Request) -> Trace | Judgement:
        """Decode one request with the decoder of one setting.

        Raises:
            InputError: the decoder refuses the request.
        """
        try:
            if self._process is None:
                self._start()
            self._tell({"setting": setting, "request": asdict(request), "timeout_s": self.limits.timeout_s})
            answer = self._hear_in_time()
            if "refused" in answer:
                raise _refused(answer["refused"])
            if "defects" not in answer:
                return self._trace(answer, request)
            return self._ended(answer, request)
        except (Gone, UnreadableError) as error:
            self._end()
            self.failed = True
            detail = f"{error}{self._last_lines()}"
            return Judgement(request.B, defects=[Divergence("process", detail, request.seed)])

    def parts(self, setting: int, request: Request, budget: Budget) -> list[PartLaw]:
        """Ask the parts of one setting's decoder. Raises `InputError` where it is not of published code."""
        try:
            if self._process is None:
                self._start()
            self._tell({"setting": setting, "request": asdict(request), "budget": asdict(budget)})
            answer = self._hear(self.limits.timeout_s, "timeout")
            if "refused" in answer:
                raise _refused(answer["refused"])
            names = [f.name for f in fields(PartLaw)]
            return [PartLaw(*(str(row[name])[:MOST_TEXT] for name in names)) for row in answer["parts"]]
        except (Gone, UnreadableError, KeyError, TypeError) as error:  # the last two: an answer of another form
            self._end()
            self.failed = True
            return [died(f"{error}{self._last_lines()}")]

    def close(self) -> None:
        """End the process; its log stays where a decode failed."""
        self._end()
        self.mailbox.close()
        if not self.failed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write_job(self, factory: Factory | str) -> None:
        job = Job(
            factory=factory if isinstance(factory, str) else pickled(factory, self.name),
            models=self._copies,
            settings=self.settings,
            mailbox=self.mailbox.handle,
            tf32=precision()["tf32_matmul"],
            threads=torch.get_num_threads(),
            path=[path or str(Path.cwd()) for path in sys.path],
            limits=self.limits,
        )
        stream = io.BytesIO()
        pickler = ForkingPickler if self.models.device.type == "cuda" else pickle.Pickler
        pickler(stream, pickle.HIGHEST_PROTOCOL).dump(job)
        (self.folder / "job").write_bytes(stream.getbuffer())

    def _start(self) -> dict[str, Any]:
        """Start the process and wait until its decoders are built; return what they claim."""
        to_read, to_write = os.pipe(), os.pipe()
        inherited = [to_read[0], to_write[1]] + [self.mailbox.descriptor] * (self.mailbox.descriptor >= 0)
        command = [sys.executable, "-c", SERVE, str(self.folder / "job"), *map(str, inherited[:2])]
        package = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
        os.close(to_read[0])
        os.close(to_write[1])
        self._writer, self._reader = os.fdopen(to_read[1], "wb"), to_write[0]
        self._buffer = b""
        try:
            answer = self._hear(START_S, "time to build a decoder")
        except Gone as gone:
            self.failed = True
            rule = f"built no decoder: {gone}{self._last_lines()}"
            raise InputError("implementation", self.name, rule, "see docs/own-decoder.md") from None
        if "refused" in answer:
            raise _refused(answer["refused"])
        return answer

    def _tell(self, question: dict[str, Any]) -> None:
        try:
            self._writer.write(json.dumps(question).encode() + b"\n")
            self._writer.flush()
        except OSError:
            raise Gone(f"the decoder's process {self._death()} before the decode") from None

    def _hear(self, seconds: float, word: str) -> dict[str, Any]:
        """Return the next answer. Raises `Gone` where none comes, `UnreadableError` where it has no known form."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Gone(f"no answer within {seconds:g} s ({word})")
            piece = os.read(self._reader, 2**20)
            if not piece:
                raise Gone(f"the decoder's process {self._death()}")
            self._buffer += piece
            if len(self._buffer) > LONGEST:
                raise UnreadableError(f"the decoder's process answers with more than {LONGEST} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UnreadableError("the decoder's process answers with something that is no answer")
        return answer

    def _hear_in_time(self) -> dict[str, Any]:
        """Return the answer to a decode; one that takes too long is asked to say where it is before it is ended."""
        try:
            return self._hear(self.limits.timeout_s, "timeout")
        except Gone:
            if self._process is None or self._process.poll() is not None:
                raise
            self._process.send_signal(signal.SIGUSR1)
            try:
                answer = self._hear(GRACE_S, "timeout")
            except Gone:
                answer = {}
            self._end()  # whatever else it may still do
            self.failed = True
            if "defects" not in answer:
                raise
            return answer

    def _ended(self, answer: dict[str, Any], request: Request) -> Judgement:
        """Build the judgement on a decode that did not end well, with its trace so far where that can be read."""
        defects = answer["defects"]
        if not isinstance(defects, list) or not defects:
            raise UnreadableError("the decoder's process answers with defects of another form")
        made = Judgement(request.B, defects=[_defect(each, request) for each in defects])
        made.so_far = str(answer.get("so_far", ""))[:MOST_TEXT]
        if "tensors" in answer:
            partial = self._trace(answer, request)
            made.partial = partial if isinstance(partial, Trace) else None
        return made

    def _trace(self, answer: dict[str, Any], request: Request) -> Trace | Judgement:
        """Build the trace from plain values and the mailbox; judge its form again, since an answer can be forged."""
        tensors = self.mailbox.take(answer.get("tensors"))
        try:
            kept = {f.name: tensors[KEPT + f.name] for f in fields(Intermediates) if KEPT + f.name in tensors}
            values = dict(answer["trace"])
            values["rounds"] = [[Round(**turn) for turn in rounds] for rounds in values["rounds"]]
            made: dict[str, Any] = {name: tensors[name] for name in TENSORS}
            trace = Trace(**made, **values, intermediates=Intermediates(**kept) if kept else None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableError(f"the decoder's process answers with another form ({error})") from None
        trace.scale_writes_BS = trace.scale_writes_BS.cpu()
        wrong = malformed(self.models, request, trace)
        return trace if wrong is None or wrong.component != UNREADABLE else Judgement(request.B, defects=[wrong])

    def _death(self) -> str:
        """Say how the process ended."""
        assert self._process is not None
        try:
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"

    def _last_lines(self) -> str:
        """Return the end of the log, and where it lies."""
        text = self.log.read_bytes()[-4000:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        return f"; log {self.log}" + (f" ends: {' | '.join(lines)}"[:400] if lines else " is empty")

    def _end(self) -> None:
        """Kill the process and whatever it started."""
        if self._process is None:
            return
        with suppress(OSError):
            self._writer.close()
        os.close(self._reader)
        if not self.failed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def _refused(values: Any) -> InputError:
    words = [str(values.get(name, ""))[:1000] if isinstance(values, dict) else "" for name in ("name", "value")]
    rest = [str(values.get(name, ""))[:1000] if isinstance(values, dict) else "" for name in ("rule", "remedy")]
    return InputError(*words, *rest)


def _defect(values: Any, request: Request) -> Divergence:
    if not isinstance(values, dict):
        raise UnreadableError("a defect is described in another form")
    image, scale = (values.get(name) for name in ("image", "scale"))
    component, detail = str(values.get("component"))[:100], str(values.get("detail"))[:1000]
    where = {"image": image if type(image) is int else -1, "scale": scale if type(scale) is int else -1}
    return Divergence(component, detail, request.seed, **where)
