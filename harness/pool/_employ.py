"""Who does the work: this process, processes of this machine, or the workers of a Dask cluster, on other machines.

Promise: one answer for everything that is spread, verifications, hunts and benches alike. Dask moves the weights to
every worker once, takes a task from a worker that dies to another one, and gives it up after three (its
`allowed-failures`), which is `Died` here. Where no worker has been at work for `STALL_S`, since all are gone, paused or
stopped, the work ends and says so. Whoever reaches a cluster can have it run anything: what it answers is unpickled
here. How one is started, watched and scaled is Dask's own documentation's to say; docs/runs.md shows it.
"""

import hashlib
import io
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.decoders import Surroundings
from harness.errors import InputError, check_installed
from harness.pool._workers import MOST_DEATHS, Alone, Died, Opened, Pool, Processes, Work, WorkerError, WorkerJob

CONNECT_S = 30.0
STALL_S = 300.0  # without any worker at work
SILENT_S, LOOK_S = 60.0, 5.0  # after which a worker that says nothing is gone; between two looks
_OPENED: dict[str, Opened] = {}  # of this process, when it is a worker: one work at a time
_LOCK = threading.Lock()  # a Dask worker may have threads; a device has one user
_LOST = object()  # no answer, and nobody's fault


class Cluster:
    """The workers of a cluster, each on its first device; `address` may be a scheduler file, too.

    Raises `InputError` where dask.distributed is not installed, or nobody answers there, and as `work.open` does.
    Effects: a connection; `close` cancels what is not done and ends it.
    """

    def __init__(self, work: Work, address: str, device: str) -> None:
        check_installed("distributed", "cluster", "cluster", address, "needs dask.distributed")
        import distributed  # noqa: PLC0415  # an extra

        stream = io.BytesIO()
        machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
        torch.save(WorkerJob(work, Surroundings.here(), machine), stream)
        self._bytes, self._device = stream.getvalue(), device.partition(":")[0]
        try:
            place = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
            self._client = distributed.Client(**place, timeout=CONNECT_S)
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except Exception as error:  # whatever Dask makes of an address, a file, or certificates that are not there
            rule = f"cannot be reached, or has no worker ({type(error).__name__}: {error})"
            raise InputError("cluster", address, rule, "start one as docs/runs.md says") from None
        self._distributed, self._address = distributed, address
        self._digest = hashlib.blake2b(self._bytes, digest_size=16).hexdigest()
        self._job = self._sent()
        self._heard = time.monotonic()  # when a worker was at work last
        opened = self._client.submit(about, self._job, self._digest, self._device, pure=False)
        (self.about,) = (self._answer(future) for future in self._done({opened: None}))
        self.name = f"{len(self._client.scheduler_info()['workers'])} workers of {address}"

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        tries: dict[int, int] = {}  # by id of the task
        futures = {self._submit(task): task for task in tasks}
        for future in self._done(futures):
            task = futures.pop(future)
            answer = self._answer(future)
            if answer is _LOST:
                tries[id(task)] = tries.get(id(task), 0) + 1
                if tries[id(task)] < MOST_DEATHS:
                    self._job = self._sent()  # the last worker that held the weights may be the one that died
                    again = self._submit(task)
                    futures[again] = task
                    continue
                answer = Died("the cluster lost it again and again")
            yield task, answer

    def _done(self, futures: dict[Any, Any]) -> Iterator[Any]:
        """Yield futures as they are done, those added meanwhile, too. Raises `WorkerError` where nobody works."""
        done, asked = queue.SimpleQueue[Any](), set[Any]()
        while futures:
            for future in futures.keys() - asked:
                asked.add(future)
                future.add_done_callback(done.put)
            try:
                future = done.get(timeout=LOOK_S)
            except queue.Empty:
                self._check_at_work()
                continue
            self._heard = time.monotonic()
            yield future
            futures.pop(future, None)

    def _check_at_work(self) -> None:
        """Give up where no worker has been at work for too long. Raises `WorkerError`."""
        workers: Iterable[Any] = ()  # that the scheduler knows; none where nobody answers there
        if self._client.status == "running":
            try:
                workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
            except TypeError:  # of an older version, which tells all of them
                workers = self._client.scheduler_info()["workers"].values()
        silent, words = time.time() - SILENT_S, {"running": "at work"}
        states = [
            "silent" if each["last_seen"] < silent else words.get(each["status"], each["status"]) for each in workers
        ]
        if "at work" in states:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > STALL_S:
            kinds = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))
            raise self._stalled(f"no worker has been at work for {STALL_S:g} s ({kinds or 'none is there'})")

    def _stalled(self, rule: str) -> WorkerError:
        remedy = "what is judged is in the file of --run: start workers, and repeat the command with --resume"
        return WorkerError(f"cluster={self._address}: {rule}; {remedy}")

    def _answer(self, future: Any) -> Any:
        """Return what came of a task, `Died`, or `_LOST` with the worker that had it, or its answer, in hand."""
        error = future.exception() if future.status == "error" else None
        if isinstance(error, self._distributed.KilledWorker):
            return Died(f"{MOST_DEATHS} workers of the cluster died of it")
        if error is not None:
            raise error
        if future.status != "finished":
            return _LOST
        try:
            return future.result()
        except CancelledError:  # done, and gone before it was fetched
            return _LOST

    def close(self) -> None:
        self._client.close()

    def _sent(self) -> Any:
        """Hand the work to the workers; one that is stopped does not hold it up. Raises `WorkerError`."""
        sent: list[Any] = []
        send = threading.Thread(target=self._send, args=(sent,), daemon=True)
        send.start()
        send.join(STALL_S)
        if not sent:
            raise self._stalled(f"no worker has taken the networks for {STALL_S:g} s")
        return sent[0]

    def _send(self, sent: list[Any]) -> None:
        with suppress(Exception):  # of whatever kind: nobody took it
            sent.append(self._client.scatter(self._bytes, hash=False))

    def _submit(self, task: Any) -> Any:
        return self._client.submit(do, self._job, self._digest, self._device, task, pure=False)


def about(job: bytes, digest: str, device: str) -> Any:
    """Open the work in a worker of the cluster; return what the one who asks must know."""
    with _LOCK:
        return _opened(job, digest, device).about


def do(job: bytes, digest: str, device: str, task: Any) -> Any:
    with _LOCK:
        return _opened(job, digest, device).do(task)


def _opened(job: bytes, digest: str, device: str) -> Opened:
    if digest not in _OPENED:
        for other in list(_OPENED):
            _OPENED.pop(other).close()
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device", device, "is not there on a worker of the cluster", "give every worker a GPU")
        worker_job: WorkerJob = torch.load(io.BytesIO(job), map_location=torch.device(device), weights_only=False)
        name = torch.cuda.get_device_name() if device == "cuda" else ""
        if worker_job.machine and name != worker_job.machine:
            rule = f"on a worker of the cluster is {name}; budgets and numbers are those of {worker_job.machine}"
            raise InputError("device", device, rule, "start the run on a machine like the workers'")
        more = [path for path in worker_job.surroundings.path if path not in sys.path]
        worker_job.surroundings.restore([*sys.path, *more])
        _OPENED[digest] = worker_job.work.open()
    return _OPENED[digest]


MOST_WORKERS = 1024


@dataclass(frozen=True)
class Parallelism:
    """How work is spread. Raises `InputError` for a number of workers that nobody has, or workers of both kinds."""

    workers: int = 1  # processes on this machine; 1 = this process alone, 0 = one a GPU that the device stands for
    cluster: str = ""  # address of a Dask scheduler whose workers do the work; empty = none
    device: str = ""  # as it was asked for, since cuda stands for every GPU; empty = where the networks lie

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError("workers", self.workers, f"must lie in 0..{MOST_WORKERS}", "pass --workers 0: one a GPU")
        if self.cluster and self.workers > 1:
            raise InputError("cluster", self.cluster, "brings its own workers", "drop --workers")


ALONE = Parallelism()  # this process does it all


@dataclass(frozen=True)
class Crew:
    devices: tuple[str, ...]  # of every worker
    cluster: str = ""  # address of a scheduler; empty = none

    @property
    def is_elsewhere(self) -> bool:
        return bool(self.cluster) or len(self.devices) > 1

    def open(self, work: Work) -> Pool:
        """Start the workers. Raises as `Processes` and `Cluster` do; `close` ends them."""
        if self.cluster:
            return Cluster(work, self.cluster, self.devices[0])
        if self.is_elsewhere:
            return Processes(work, self.devices)
        return Alone(work, self.devices[0])


def employ(parallelism: Parallelism, device: torch.device, tasks: int) -> Crew:
    """Return who does so many tasks on a device.

    A CUDA device without a number stands for all of this machine; a CPU is one device. More workers than devices share
    them, and nobody is hired who would have nothing to do. Raises `InputError` for several workers on one numbered CUDA
    device, which they would fight for.
    """
    if parallelism.cluster:
        return Crew((device.type,), parallelism.cluster)
    there = [str(device)]
    if device.type == "cuda" and device.index is None:
        there = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    elif device.type == "cuda" and parallelism.workers > 1:
        rule = f"would share {device}"
        raise InputError("workers", parallelism.workers, rule, "pass --device cuda for all GPUs, or --workers 1")
    count = max(1, min(parallelism.workers or len(there), tasks))
    return Crew((str(device),)) if count == 1 else Crew(tuple(there[k % len(there)] for k in range(count)))


@contextmanager
def one_thread() -> Iterator[int]:
    """Let PyTorch compute with one thread, and yield how many it had, and has again afterwards.

    Small tensors gain nothing from a second thread, and on a busy machine threads that wait for each other crawl.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
