"""A decoder under test in this process: for the harness's own, for laws, and for a debugger.

Promise: whatever somebody else's decoder does or raises, the answer is its trace or a judgement; bad input, and a
signal that stops the harness, alone are raised. A decoder that is not the harness's own gets a request of its own,
hands its trace over by value, and is watched for writing into the networks, the VQ-VAE among them (`Watched`). What it
leaves behind in this process, `torch` patched, another default dtype or number of threads, generators moved, is put
back, and a remark: whether a result depends on it is seen by the result.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import judge
from harness.adapters import Sampler, examine_parts
from harness.decoders._crash import crash_of, line_of_crash, traceback_of
from harness.decoders._factory import (
    Built,
    Factory,
    OutOfTimeError,
    attribute_of,
    build_by_factory,
    check_refused_write,
)
from harness.errors import ImageError, InputError, NoiseError, NonFiniteError, StopSignal, one_line, text_of
from harness.models import ModelPair, checksums
from harness.protocol import Contract, Implementation, Request, SeededNoise, Settings, Trace
from harness.rounding import Budget, precision_unchanged
from harness.signals import ctrl_c_is_a_stop

MOST_LEFT = 5  # things left behind that are named
NO_SO_FAR = "the decoder has no method so_far()"

KNOWN = {NonFiniteError: "non-finite", ImageError: "image", NoiseError: "noise"}  # exceptions that name their component


class InProcess:
    """One decoder a setting, here; the harness's own need not be `watched`. Raises `InputError` as the factory does."""

    def __init__(self, factory: Factory, models: ModelPair, settings: Sequence[Settings], watched: bool = True) -> None:
        self.models = models
        self._watched = Watched(models) if watched else None
        with precision_unchanged() as moved:
            self._decoders = [build_by_factory(factory, models, setting) for setting in settings]
        self.built = Built.of(self._decoders, moved, "none: in the judge's own process" if watched else "")

    def decode(self, setting: int, request: Request, times: int = 1) -> Trace | judge.Judgement:
        by_value = self._watched is not None
        decoder, models = self._decoders[setting], self.models
        outcome = run_in_process(decoder, models, replace(request), by_value=by_value)
        for further in range(1, times):  # for the time that they take
            again = replace(request, seed=(request.seed + further) % 2**63)
            decoder.decode(again, models.noise(again))
        if times > 1 and models.device.type == "cuda":
            torch.cuda.synchronize(models.device)
        written = self._watched.written(request) if self._watched else []
        # the reference's own networks are others now: nothing can be compared with it
        return judge.Judgement(request.B, defects=written) if written else outcome

    def line(self, setting: int, request: Request, greedy: bool) -> judge.CodeLine | str:
        return search_line(self._decoders[setting], self.models, replace(request), greedy)

    def parts(self, setting: int, request: Request, budget: Budget) -> list[judge.PartLaw]:
        return inspect_parts(self._decoders[setting], request, budget)

    def close(self) -> None:
        """Nothing is left to end."""


class Watched:
    """Networks that a decoder must not write into."""

    def __init__(self, models: ModelPair) -> None:
        self.models, self._sums = models, checksums(models.named_weights())

    def written(self, request: Request) -> list[judge.Divergence]:
        """Return a defect where a weight is no longer what it was before any decoder was built."""
        changed = [name for name, value in checksums(self.models.named_weights()).items() if value != self._sums[name]]
        if not changed:
            return []
        detail = f"the decoder wrote into {', '.join(changed[:3])} of the shared networks"
        return [judge.Divergence("weights", detail, request.seed)]


def run_in_process(
    implementation: Implementation, models: ModelPair, request: Request, by_value: bool = False
) -> Trace | judge.Judgement:
    """Decode under fresh noise; a decoder that crashes, meets a non-finite tensor or returns no trace is judged, too.

    A judgement without defects is a trace (`Judgement.whole_trace`) with remarks. Raises `InputError` where the decoder
    refuses the request, or may not write what it wants to, and `StopSignal` where a signal stops the harness.

    Effects: what the decoder left behind in the process, and changed of its precision, is put back.
    """
    with precision_unchanged() as moved, tidied_process() as left_behind:
        outcome = _run(implementation, models, request, by_value)
    if moved:  # whatever came of it was computed in another mode
        changes = [judge.Divergence("precision", f"decoding changed {what}", request.seed) for what in moved]
        return judge.Judgement(request.B, defects=changes)
    outcome.remarks += [f"decoding {what}" for what in left_behind[:MOST_LEFT]]
    outcome.remarks += implementation.remarks if isinstance(implementation, Sampler) else []
    return outcome if outcome.remarks else outcome.whole_trace or outcome


def search_line(decoder: Implementation, models: ModelPair, request: Request, greedy: bool) -> judge.CodeLine | str:
    """Return the line that goes wrong, or why there is none. Raises as `run_in_process`; effects likewise."""

    def decode() -> Trace:
        trace = decoder.decode(request, models.noise(request))
        return judge.made_plain(trace)[0] if isinstance(trace, Trace) else trace

    # what PyTorch's compiler has compiled, or would compile now, runs as written: no operation is seen of it else
    plainly = torch.compiler.set_stance("force_eager")
    try:
        with precision_unchanged(), tidied_process(), ctrl_c_is_a_stop(), plainly:
            claims = decoder.contract == Contract.TOKENS
            return judge.LineSearch(judge.WrongDecode(models, request, greedy, claims, decode)).line()
    except (InputError, StopSignal):
        raise
    except BaseException as error:
        return line_of_crash(error)


def _run(implementation: Implementation, models: ModelPair, request: Request, by_value: bool) -> judge.Judgement:
    noise, remarks, ending = models.noise(request), list[str](), ""
    try:
        with ctrl_c_is_a_stop():
            trace = implementation.decode(request, noise)
            if isinstance(trace, Trace):
                trace, remarks = judge.made_plain(trace)
            defect = judge.unreadable(models, request, trace)
            if defect is None:  # what can be read is the judge's
                return judge.Judgement(request.B, partial=_by_value(trace) if by_value else trace, remarks=remarks)
    except (InputError, StopSignal):
        raise
    except BaseException as error:  # of whatever kind: the decoder is somebody else's code
        check_refused_write(error)
        defect, ending = _defect_of(error, request.seed), traceback_of(error)
    partial = _partial(implementation, models, request)
    partial = _by_value(partial) if by_value and partial is not None else partial
    lacks = defect.component == "crash" and not callable(attribute_of(implementation, "so_far", None))
    seen = f"{_seen(noise)}; {NO_SO_FAR}" if lacks else _seen(noise)
    return judge.Judgement(request.B, defects=[defect], so_far=seen, ending=ending, partial=partial)


def _defect_of(error: BaseException, seed: int) -> judge.Divergence:
    for kind, component in KNOWN.items():
        if isinstance(error, kind):
            return judge.Divergence(component, str(error), seed)
    # PyTorch has a class of its own for memory of CUDA alone
    no_memory = isinstance(error, RuntimeError) and "allocate memory" in text_of(error)
    of_the_process = no_memory or isinstance(error, OutOfTimeError | MemoryError | torch.OutOfMemoryError)
    return judge.Divergence("process" if of_the_process else "crash", crash_of(error), seed)


def _partial(implementation: Implementation, models: ModelPair, request: Request) -> Trace | None:
    """Return the trace so far of a decode that ended, where the decoder keeps one (`so_far`) of a known form."""
    so_far = attribute_of(implementation, "so_far", None)
    if not callable(so_far):
        return None
    try:
        with ctrl_c_is_a_stop():
            trace = so_far()
            trace = judge.made_plain(trace)[0] if isinstance(trace, Trace) else trace
    except StopSignal:
        raise
    except BaseException:  # it is the same code that just failed
        return None
    known = isinstance(trace, Trace) and judge.unreadable(models, request, trace) is None
    return trace if known and judge.wrong_shape(models, request, trace) is None else None


def _seen(noise: SeededNoise) -> str:
    """Say which numbers a decode read, by whom, and what it said last of where it is."""
    by: dict[str, list[int]] = {}
    for (si, _), readers in noise.ledger.readers.items():
        for reader in readers:
            by.setdefault(reader, []).append(si)
    read = ", ".join(f"{reader} {min(scales)}..{max(scales)}" for reader, scales in by.items())
    said = [f"numbers were read of scales: {read}" if read else "no number read"]
    said += [f"last seen: {one_line(str(noise.ledger.notes[-1]))[:200]}"] if noise.ledger.notes else []
    return "; ".join(said)


def _by_value(trace: Trace) -> Trace:
    """Return a copy: what the decoder still holds of its trace changes nothing any more."""

    def copies(record: object) -> Any:
        return {name: each.detach().clone() for name, each in vars(record).items() if isinstance(each, Tensor)}

    shown = trace.intermediates and replace(trace.intermediates, **copies(trace.intermediates))
    return replace(trace, **copies(trace), rounds=[list(rounds) for rounds in trace.rounds], intermediates=shown)


TORCH = str(Path(torch.__file__).parent)
MOVED = "moved PyTorch's global generator"
OWNERS: dict[str, Any] = {
    "torch": torch, "torch.Tensor": Tensor, "torch.nn.functional": F, "torch.nn.Module": torch.nn.Module,
}  # fmt: skip


@contextmanager
def tidied_process() -> Iterator[list[str]]:
    """Run somebody else's code; what it left behind is undone, and listed when it ends, one clause each."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    cards = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    generators = [("", torch.default_generator), *((f" of cuda:{k}", card) for k, card in enumerate(cards))]
    states = [(name, generator, generator.get_state()) for name, generator in generators]
    functions = {
        name: {word: value for word, value in vars(owner).items() if callable(value) and not word.startswith("__")}
        for name, owner in OWNERS.items()
    }
    changes: list[str] = []
    try:
        yield changes
    finally:
        if torch.get_default_dtype() != dtype:
            changes.append(f"left the default dtype at {torch.get_default_dtype()}, not {dtype}")
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            changes.append(f"left PyTorch with {torch.get_num_threads()} threads, not {threads}")
            torch.set_num_threads(threads)
        for name, owner in OWNERS.items():
            for word, value in functions[name].items():
                now = vars(owner).get(word)
                code = getattr(now, "__code__", None)  # PyTorch wraps `manual_seed` where `torch.compile` is used
                by_torch = code is not None and code.co_filename.startswith(TORCH) and inspect.unwrap(now) is value
                if now is not value and not by_torch:
                    changes.append(f"left {name}.{word} patched")
                    setattr(owner, word, value)
        for name, generator, state in states:
            if not torch.equal(generator.get_state(), state):
                changes.append(f"{MOVED}{name}")
                generator.set_state(state)


def inspect_parts(decoder: Implementation, request: Request, budget: Budget) -> list[judge.PartLaw]:
    if not isinstance(decoder, Sampler):
        rule = "is no decoder of published code, whose parts have the report's names"
        remedy = "pass --implementation published:sdvar-parallel"
        raise InputError("implementation", type(decoder).__name__, rule, remedy)
    return examine_parts(decoder, request, budget)
