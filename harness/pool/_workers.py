"""Workers: processes of this machine that take tasks, each with a device of its own; from `serve` on what they do.

Promise: every task is answered once, by a result or by `Died`; a worker that dies loses the task in its hands and
nothing else, and another one takes that task. One that costs `MOST_DEATHS` workers is given up. Running out of memory
ends a worker, so that another one starts afresh; any other error of the harness travels to the employer.

Why not concurrent.futures: its pool is broken for good when one process dies. Why not multiprocessing: its processes
import the caller's main script again. The messages are pickled, since both sides are the harness; a decoder under test
has a process of its own below the worker's (`decoders.OwnProcess`). They are bytes of plain pickle: `Connection.send`
would hand tensors over as shared memory, which a process that multiprocessing did not start may not open. What they
begin with is sealed memory, which nobody else can write to, and no file of theirs has a name.
"""

import os
import pickle
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from harness.decoders import Surroundings
from harness.errors import HarnessError, StopSignal
from harness.processes import GRACE_S, START_S, Log, Place, Process, sealed

MOST_DEATHS = 3
OUT_OF_MEMORY = 137  # as a shell counts SIGKILL
CLEARS_UP_S = 2.0  # that the keepers of decoders below a worker have, once it is gone


class Opened(Protocol):
    """Work that is ready: networks loaded, decoders built."""

    about: Any  # a record of what the one who asks must know

    def do(self, task: Any) -> Any:
        """Do one task."""

    def close(self) -> None:
        """End what was started."""


class Work(Protocol):
    """What a worker gets once: data that can be pickled."""

    def open(self) -> Opened:
        """Make it ready."""


@dataclass(frozen=True)
class WorkerJob:
    work: Work  # what it does
    surroundings: Surroundings  # those of its employer
    machine: str = ""  # name of the GPU that it must have; empty = of any machine


class Pool(Protocol):
    about: Any  # that of the work, once it is open
    name: str  # e.g. "2 processes on cuda:0, cuda:1"

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield every task with its result, or with `Died`, as they are done."""

    def close(self) -> None:
        """End what was started."""


@dataclass(frozen=True)
class Died:
    """A task that nobody lived to answer; `why` is one clause on the last death."""

    why: str


class WorkerError(HarnessError):
    """Workers cannot be had; one line."""


class Alone:
    """This process alone: the serial run."""

    def __init__(self, work: Work, device: str) -> None:
        self._opened = work.open()
        self.about, self.name = self._opened.about, f"this process on {device}"

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            yield task, self._opened.do(task)

    def close(self) -> None:
        self._opened.close()


@dataclass
class _Worker:
    """One process, as its employer sees it."""

    device: str
    process: Process
    connection: Connection
    log: Log
    ready: bool = False
    task: Any = None
    since: float = field(default_factory=time.monotonic)

    def death(self) -> str:
        lines = self.log.last_lines(1)
        return f"the worker on {self.device} {self.process.death()}{f': {lines[0][:200]}' if lines else ''}"


class Processes:
    """Workers of this machine, one a device, which may stand there twice; all read the same sealed memory, the work.

    Raises `WorkerError` where they die at their start, and as `work.open` does. Effects: processes; `close` ends them.
    """

    def __init__(self, work: Work, devices: Sequence[str]) -> None:
        self.name = f"{len(devices)} processes on {', '.join(sorted(set(devices)))}"
        self._workers: list[_Worker] = []
        self._deaths = 0  # of workers that never got ready, one after the other
        self.about: Any = None
        self._job = sealed(partial(torch.save, WorkerJob(work, Surroundings.here())))
        try:
            self._workers = [self._hire(device) for device in devices]
            while not any(worker.ready for worker in self._workers):
                self._attend(deque())
        except BaseException:
            self.close()
            raise

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield every task with its result as they are done; a worker has one task at a time."""
        source, again, deaths = iter(tasks), deque[Any](), dict[int, int]()  # by id of the task
        while again or self._fill(source, again) or any(worker.task is not None for worker in self._workers):
            for task, result in self._attend(again):
                if isinstance(result, Died):
                    deaths[id(task)] = deaths.get(id(task), 0) + 1
                    if deaths[id(task)] < MOST_DEATHS:
                        again.appendleft(task)
                        continue
                yield task, result

    def close(self) -> None:
        for worker in self._workers:
            worker.process.send(signal.SIGTERM if worker.task is not None else signal.SIGCONT)
            worker.connection.close()  # one that waits for a task ends by itself
        end = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.process.end(max(0.0, end - time.monotonic()))
            worker.log.close()
        self._workers = []
        os.close(self._job)

    def _hire(self, device: str) -> _Worker:
        ours, theirs = socket.socketpair()
        log = Log()
        with theirs:
            words, place = [self._job, theirs.fileno(), device], Place(grace_s=CLEARS_UP_S)
            process = Process("harness.pool._workers:serve", words, [self._job, theirs.fileno()], log, place)
        return _Worker(device, process, Connection(ours.detach()), log)

    def _fill(self, source: Iterator[Any], waiting: deque[Any]) -> bool:
        """Take as many tasks as there are idle workers; tell whether any waits."""
        idle = sum(worker.task is None for worker in self._workers)
        waiting.extend(islice(source, max(0, idle - len(waiting))))
        return bool(waiting)

    def _attend(self, waiting: deque[Any]) -> list[tuple[Any, Any]]:
        """Hand out tasks, wait until something happens, and return what was answered; the dead are replaced."""
        for place, worker in enumerate(self._workers):
            if worker.ready and worker.task is None and waiting:
                worker.task = waiting.popleft()
                try:
                    worker.connection.send_bytes(pickle.dumps(worker.task))
                except OSError:
                    waiting.appendleft(worker.task)  # it died idle: its task is nobody's loss
                    worker.task = None
                    self._workers[place] = self._replaced(worker)
        answered = []
        ready = wait([worker.connection for worker in self._workers], timeout=1.0)
        for place, worker in enumerate(self._workers):
            if worker.connection not in ready:
                if not worker.ready and time.monotonic() - worker.since > START_S:
                    worker.process.end()
                continue
            try:
                answer = pickle.loads(worker.connection.recv_bytes())
            except (EOFError, OSError):
                if worker.task is not None:
                    answered.append((worker.task, Died(worker.death())))
                self._workers[place] = self._replaced(worker)
                continue
            if isinstance(answer, BaseException):
                raise answer
            if not worker.ready:
                worker.ready, self._deaths, self.about = True, 0, answer
            else:
                answered.append((worker.task, answer))
                worker.task = None
        return answered

    def _replaced(self, worker: _Worker) -> _Worker:
        """Return a new worker in a dead one's place. Raises `WorkerError` where they die before they are ready."""
        why = worker.death()
        worker.connection.close()
        worker.process.end()
        worker.log.close()
        if not worker.ready:
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                raise WorkerError(f"workers={self.name}: die while they start ({why}); pass fewer --workers")
        return self._hire(worker.device)


def serve(job: str, descriptor: str, device: str) -> None:
    """Hold one conversation about what `Processes` sealed; both are descriptors."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        with Connection(int(descriptor)) as connection, suppress(EOFError, BrokenPipeError, ConnectionResetError):
            _converse(connection, int(job), device)
    except StopSignal as stop:
        raise SystemExit(stop.status) from None


def _converse(connection: Connection, job: int, device: str) -> None:
    try:
        opened = _open(job, device)
    except BaseException as error:
        connection.send_bytes(pickle.dumps(_portable(error)))
        return
    try:
        connection.send_bytes(pickle.dumps(opened.about))
        while True:
            connection.send_bytes(pickle.dumps(_answer(opened, pickle.loads(connection.recv_bytes()))))
    finally:
        opened.close()


def _open(descriptor: int, device: str) -> Opened:
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    # on a CPU all workers read the same pages
    is_cpu = where.type == "cpu"
    job: WorkerJob = torch.load(f"/dev/fd/{descriptor}", map_location=where, weights_only=False, mmap=is_cpu)
    os.close(descriptor)
    job.surroundings.restore()
    return job.work.open()


def _answer(opened: Opened, task: Any) -> Any:
    try:
        return opened.do(task)
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"out of memory: {error}", file=sys.stderr, flush=True)
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        return _portable(error)


def _portable(error: BaseException) -> BaseException:
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return HarnessError(f"{type(error).__name__} in a worker: {error}")


def _stop(number: int, frame: object) -> None:
    """End the work by what no judge of a decoder catches: `SystemExit` would be called the decoder's own."""
    raise StopSignal(number)
