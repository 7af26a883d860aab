"""Decoders that attack their judge, each in one way: factories that `--implementation tests.bent:NAME` names.

All claim the tokens; all but `honest` and `informs_oddly` must be found out, whatever they do to weights, request,
trace or process.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import InputError, ModelPair, Request, SeededNoise, Settings, Trace, build_decoder

FORGED = (
    b'{"built": {"contracts": [], "moved": [], "declines": [], "lengthless": false}, "refused": null, "parts": [], '
    b'"defects": [], "so_far": "", "remarks": [], '
    b'"trace": {"rounds": [[1]]}, "tensors": [["tokens_BL", "int64", [1, 99999999999]]]}\n'
)
Attack = Callable[["Bent", Request, SeededNoise], Any]


class Bent:
    """The harness's own decoder behind an attack."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, attack: Attack) -> None:
        self.models, self.attack = models, attack
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Any:
        return self.attack(self, request, noise)


class Disguised(torch.Tensor):
    """Tokens that equal everything."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__ne__, torch.ne):
            return torch.zeros(args[0].shape, dtype=torch.bool)
        return super().__torch_function__(func, types, args, kwargs or {})


def _factory(attack: Attack) -> Callable[[ModelPair, Settings], Bent]:
    return lambda models, settings: Bent(models, settings, attack)


def _round_target(models: ModelPair) -> None:
    for weight in models.target.weights.values():
        weight.copy_(weight.bfloat16())


def _rounds_target(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    _round_target(bent.models)
    return bent.inner.decode(request, noise)


def _zeroes_codebook(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    bent.models.vae.quantizer.codebook_VC.zero_()
    return bent.inner.decode(request, noise)


def _sets_cfg(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    object.__setattr__(request, "cfg", 0.0)
    return bent.inner.decode(request, noise)


def _wrong(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    trace = bent.inner.decode(request, noise)
    trace.tokens_BL = (trace.tokens_BL + 1) % bent.models.target.config.V
    return trace


def _repairs(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Return wrong tokens, and put the right ones in their place a moment later."""
    right = bent.inner.decode(request, noise)
    wrong_BL = (right.tokens_BL + 1) % bent.models.target.config.V
    mended, right.tokens_BL = right.tokens_BL, wrong_BL.clone()
    threading.Timer(0.02, lambda: right.tokens_BL.copy_(mended)).start()
    return right


def _disguises(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    trace = _wrong(bent, request, noise)
    trace.tokens_BL = trace.tokens_BL.as_subclass(Disguised)
    return trace


def _at_exit(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Be wrong, and leave the status of success behind when the process ends."""
    atexit.register(os._exit, 0)
    threading.Timer(5.0, os._exit, (0,)).start()
    return _wrong(bent, request, noise)


def _unspeakable(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    trace = bent.inner.decode(request, noise)
    trace.draft_calls = [10**5000] * request.B  # more digits than Python writes
    return trace


def _forges(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Answer in the harness's place, on every descriptor that is open."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, FORGED)
        except OSError:
            continue
    return bent.inner.decode(request, noise)


def _floods(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    print("x" * 2**22, file=sys.stderr)
    return bent.inner.decode(request, noise)


def _own_folder() -> Path:
    return Path(os.readlink("/proc/self/fd/1")).parent


def _leaves(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Take the log, or the whole folder, away, and end."""
    shutil.rmtree(_own_folder(), ignore_errors=True)
    os._exit(3)


def _plugs(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Put a pipe that nobody writes to in the log's place, and end."""
    (_own_folder() / "decoder.log").unlink()
    os.mkfifo(_own_folder() / "decoder.log")
    os._exit(3)


def _says(words: bytes, count: int = 1) -> Attack:
    """Answer in the harness's place, and then be wrong."""

    def attack(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
        writers = (o for o in gc.get_objects() if type(o) is io.BufferedWriter and isinstance(o.name, int))
        writer = next(each for each in writers if each.name > 2)
        for _ in range(count):
            writer.write(words)
        writer.flush()
        return _wrong(bent, request, noise)

    return attack


def ends_and_then_refuses(models: ModelPair, settings: Settings) -> Any:
    mark = _own_folder() / "tmp" / "mark"
    if mark.exists():
        raise InputError("mood", "bad", "is bad today", "come back tomorrow")
    mark.touch()
    return exits(models, settings)


def ends_and_then_hangs(models: ModelPair, settings: Settings) -> Any:
    mark = _own_folder() / "tmp" / "mark"
    if mark.exists():
        time.sleep(1000)
    mark.touch()
    return exits(models, settings)


def hangs_when_built(models: ModelPair, settings: Settings) -> Any:
    time.sleep(1000)


def patches_the_checks(models: ModelPair, settings: Settings) -> Any:
    """Replace what looks for leftovers in its process, and leave some."""
    import harness.decoders._in_process as checks

    nothing_left = contextmanager(lambda: iter([[]]))
    vars(checks).update(tidied_process=nothing_left, precision_unchanged=nothing_left)
    return Bent(models, settings, lambda bent, *of: (torch.default_generator.manual_seed(3), bent.inner.decode(*of))[1])


def writes_outside(models: ModelPair, settings: Settings) -> Any:
    path = Path(str(settings.option("file")))
    return Bent(models, settings, lambda bent, *of: (path.write_text("x"), bent.inner.decode(*of))[1])


def ends_tidily(models: ModelPair, settings: Settings) -> Any:
    """Be right, and leave a thread and a function that write when the process ends."""
    path = Path(str(settings.option("file")))
    atexit.register(lambda: path.write_text(f"{path.read_text()}, exit"))

    def write() -> None:
        threading.main_thread().join()
        path.write_text("thread")

    threading.Thread(target=write).start()
    return honest(models, settings)


def _pokes(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Look for the judge's memory, as its own process sees it, and write into all of it that can be written to."""
    trace = _wrong(bent, request, noise)
    for line in Path(f"/proc/{_judge()}/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        if "w" in rights:
            with open(f"/proc/{_judge()}/mem", "r+b", buffering=0) as memory:
                memory.seek(int(span.partition("-")[0], 16))
                memory.write(b"mine")
    return trace


def _judge() -> int:
    """Return the process that is two above this one: the keeper's starter."""
    stat = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def _signals_the_judge(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    os.kill(_judge(), signal.SIGHUP)
    return _wrong(bent, request, noise)


def _connects(bent: Bent, request: Request, noise: SeededNoise) -> Trace:
    """Connect to a server of one's own, as to any other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    return bent.inner.decode(request, noise)


def rounds_target_when_built(models: ModelPair, settings: Settings) -> Any:
    _round_target(models)
    return build_decoder(models, settings)


def dies_when_built(models: ModelPair, settings: Settings) -> Any:
    os._exit(0)


honest = _factory(lambda bent, request, noise: bent.inner.decode(request, noise))
INFORMS = {"seconds": float("nan"), "peak_bytes": 2**70, "cache_bytes": {"draft": lambda: 0, "target": 7}}
informs_oddly = _factory(lambda bent, *of: replace(bent.inner.decode(*of), **INFORMS))
real_time_signal = _factory(lambda bent, *of: os.kill(os.getpid(), 40))
takes_log = _factory(_leaves)
plugs_log = _factory(_plugs)
odd_frame = _factory(_says(FORGED.replace(b'"int64"', b'["int64"]')))
huge_frame = _factory(_says(FORGED.replace(b"99999999999", b"9" * 5000)))
flood_of_frames = _factory(_says(b"x" * 2**20, 70))
stops = _factory(lambda bent, *of: os.kill(os.getpid(), signal.SIGSTOP))
pokes = _factory(_pokes)
signals_the_judge = _factory(_signals_the_judge)
connects = _factory(_connects)
rounds_target = _factory(_rounds_target)
zeroes_codebook = _factory(_zeroes_codebook)
sets_cfg = _factory(_sets_cfg)
repairs = _factory(_repairs)
disguises = _factory(_disguises)
at_exit = _factory(_at_exit)
unspeakable = _factory(_unspeakable)
forges = _factory(_forges)
floods = _factory(_floods)
exits = _factory(lambda bent, request, noise: os._exit(0))
killed = _factory(lambda bent, request, noise: os.kill(os.getpid(), signal.SIGKILL))
crashes_hard = _factory(lambda bent, request, noise: os.kill(os.getpid(), signal.SIGSEGV))
hangs = _factory(lambda bent, request, noise: time.sleep(1000))
hoards = _factory(lambda bent, request, noise: torch.zeros(10**14))  # more than any machine has
# 9 GiB of addresses that are never touched: any machine grants them
reserves = _factory(lambda bent, request, noise: (torch.empty(9 * 2**28), bent.inner.decode(request, noise))[1])
