"""The workers of a Dask cluster: the same work, on other machines.

Promise: Dask moves the weights to every worker once, takes a task from a worker that dies to another one, and gives it
up after three (its `allowed-failures`), which is `Died` here. How a cluster is started, watched and scaled is Dask's
own documentation's to say; docs/runs.md shows it.
"""

from __future__ import annotations

import hashlib
import io
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import torch

from harness.decoders import Surroundings
from harness.errors import InputError
from harness.pool._workers import MOST_DEATHS, Died, Opened, Work, WorkerJob

CONNECT_S = 30.0
_OPENED: dict[str, Opened] = {}  # of this process, when it is a worker: one work at a time
_LOCK = threading.Lock()  # a Dask worker may have threads; a device has one user
_LOST = object()  # no answer, and nobody's fault


class Cluster:
    """The workers of a cluster, each on its first device; `address` may be a scheduler file, too.

    Raises:
        InputError: dask.distributed is not installed, nobody answers there, or what `work.open` refuses.

    Effects: a connection; `close` cancels what is not done and ends it.
    """

    def __init__(self, work: Work, address: str, device: str) -> None:
        distributed = _distributed(address)
        stream = io.BytesIO()
        machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
        torch.save(WorkerJob(work, Surroundings.here(), machine), stream)
        self._bytes, self._device = stream.getvalue(), device.partition(":")[0]
        try:
            file = Path(address)
            place = {"scheduler_file": address} if file.is_file() else {"address": address}
            self._client = distributed.Client(**place, timeout=CONNECT_S)
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except (OSError, ValueError, TimeoutError) as error:
            rule = f"cannot be reached, or has no worker ({type(error).__name__}: {error})"
            raise InputError("cluster", address, rule, "start one as docs/runs.md says") from None
        self._distributed = distributed
        self._digest = hashlib.blake2b(self._bytes, digest_size=16).hexdigest()
        self._job = self._sent()
        self.about = self._client.submit(about, self._job, self._digest, self._device, pure=False).result()
        self.name = f"{len(self._client.scheduler_info()['workers'])} workers of {address}"

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield every task with its result as they are done."""
        tries: dict[int, int] = {}  # by id of the task
        futures = {self._submit(task): task for task in tasks}
        done = self._distributed.as_completed(list(futures))
        for future in done:
            task = futures.pop(future)
            answer = self._answer(future)
            if answer is _LOST:
                tries[id(task)] = tries.get(id(task), 0) + 1
                if tries[id(task)] < MOST_DEATHS:
                    self._job = self._sent()  # the last worker that held the weights may be the one that died
                    again = self._submit(task)
                    futures[again] = task
                    done.add(again)
                    continue
                answer = Died("the cluster lost it again and again")
            yield task, answer

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
        """Cancel what is not done, and let go of the cluster."""
        self._client.close()

    def _sent(self) -> Any:
        return self._client.scatter(self._bytes, broadcast=True, hash=False)

    def _submit(self, task: Any) -> Any:
        return self._client.submit(do, self._job, self._digest, self._device, task, pure=False)


def about(job: bytes, digest: str, device: str) -> Any:
    """Open the work in a worker of the cluster; return what the one who asks must know."""
    with _LOCK:
        return _opened(job, digest, device).about


def do(job: bytes, digest: str, device: str, task: Any) -> Any:
    """Do one task in a worker of the cluster."""
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


def _distributed(address: str) -> Any:
    try:
        import distributed  # noqa: PLC0415  # an extra
    except ImportError:
        rule = "needs dask.distributed, which is not installed"
        raise InputError("cluster", address, rule, 'pip install "sdvar-harness[cluster]"') from None
    return distributed
