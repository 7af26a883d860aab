"""The process of a worker: opens its work once, then answers task after task.

Promise: running out of memory ends it, so that another worker starts afresh; any other error of the harness travels to
the employer. That it ends when its employer does is its keeper's to see to.

Started by `harness.pool._workers`, which is the other side of the conversation.
"""

import os
import pickle
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from harness.errors import HarnessError, StopSignal
from harness.pool._workers import Opened, WorkerJob

OUT_OF_MEMORY = 137  # as a shell counts SIGKILL


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
    """Return an error that can be pickled: the harness's own as they are."""
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return HarnessError(f"{type(error).__name__} in a worker: {error}")


def _stop(number: int, frame: object) -> None:
    """End the work by what no judge of a decoder catches: `SystemExit` would be called the decoder's own."""
    raise StopSignal(number)
