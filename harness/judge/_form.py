"""What a trace must be before its numbers can be compared: the decoder is somebody else's code.

Promise: whatever a decoder returns, the answer is the first thing that is wrong with its form, or None; nothing is
raised. In order: what cannot be read at all (component ``trace``), then shapes, what was not made final exactly
once, and values that cannot be. What only informs is never wrong, and a tensor is judged by its numbers, whatever its
class (`made_plain`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from harness.judge._verdict import Divergence
from harness.models import ModelPair
from harness.protocol import Intermediates, Request, Round, ScalePyramid, Trace
from harness.wording import count_of

COUNTS = ("target_calls", "target_rows", "draft_calls", "draft_rows")
INTEGERS, REALS = "integers", "floating point"
OPTIONAL = ("law_BLV", "skipped_BSN")  # tensors of a trace that need not be there
# Every dtype that a tensor of a trace may have, by the kind of its numbers: for what is judged, and what travels.
TRACE_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    INTEGERS: (torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
    + (torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    REALS: (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}
MOST_SECONDS, MOST_COUNT = 1e12, 2**63 - 1  # what a decoder may state, and a file can keep
OF_SCALES = ("first", "drafted", "accepted", "kept")  # fields of a `Round` that count scales
FLAGS = ("corrected", "bonus")  # those that are yes or no


@dataclass(frozen=True)
class Expected:
    dtype: torch.dtype | str  # the dtype itself, or `INTEGERS` or `REALS` where the width is the decoder's
    shape: tuple[int, ...]  # its shape
    component: str = "scheduling"  # what a wrong shape points to
    anywhere: bool = False  # it may lie on another device than the networks


def expected_tensors(models: ModelPair, request: Request) -> dict[str, Expected]:
    """Return what every tensor of a trace must be, by name; intermediates and law are those that a decoder may show."""
    pyramid, config, B = models.pyramid, models.target.config, request.B
    L, S, drawn = pyramid.L, pyramid.S, pyramid.draws.L
    return {
        "tokens_BL": Expected(torch.int64, (B, drawn)),
        "f_hat_BCPP": Expected(models.vae.dtype, (B, *config.latent), "f_hat"),
        "scale_writes_BS": Expected(INTEGERS, (B, S), anywhere=True),
        "law_BLV": Expected(REALS, (B, drawn, config.V), "law"),
        "skipped_BSN": Expected(INTEGERS, (B, S, config.depth), "trace", anywhere=True),
        "intermediates.x_RLD": Expected(REALS, (request.R, L, config.D), "trace"),
        "intermediates.rows_RLV": Expected(REALS, (request.R, drawn, config.V), "trace"),
        "intermediates.guided_BLV": Expected(REALS, (B, drawn, config.V), "trace"),
        "intermediates.f_hat_SBCPP": Expected(REALS, (S, B, *config.latent), "trace"),
    }


def made_plain(trace: Trace) -> tuple[Trace, list[str]]:
    """Return a trace of plain tensors, whose seconds and bytes are numbers, and a clause on every tensor that was none.

    A tensor that computes for itself (`__torch_dispatch__`) stays what it is: its numbers are nobody's to take.
    """
    remarks: list[str] = []

    def plain(name: str, tensor: object) -> object:
        if type(tensor) is Tensor or not isinstance(tensor, Tensor):
            return tensor
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return tensor
        remarks.append(f"{name} is {_kind(tensor)}, and was taken as a plain tensor")
        with torch._C.DisableTorchFunctionSubclass():  # it answers as it likes
            return Tensor.as_subclass(Tensor.detach(tensor), Tensor)

    shown = trace.intermediates
    if isinstance(shown, Intermediates):
        tensors: dict[str, Any] = {name: plain(f"intermediates.{name}", each) for name, each in shown.named().items()}
        shown = Intermediates(**tensors)
    names = ("tokens_BL", "f_hat_BCPP", "scale_writes_BS", *OPTIONAL)
    others: dict[str, Any] = {name: plain(name, getattr(trace, name)) for name in names}
    # seconds and bytes are shown, never judged, and 0 where they are no numbers
    seconds, held = trace.seconds, trace.cache_bytes
    is_time = isinstance(seconds, int | float) and 0 <= seconds <= MOST_SECONDS
    caches = held.items() if isinstance(held, Mapping) else ()
    others["seconds"] = float(seconds) if is_time else 0.0
    others["peak_bytes"] = trace.peak_bytes if _is_bytes(trace.peak_bytes) else 0
    others["cache_bytes"] = {name: count for name, count in caches if isinstance(name, str) and _is_bytes(count)}
    others |= {name: _listed(getattr(trace, name), lambda n: int(n) if _is_count(n) else n) for name in COUNTS}
    others["rounds"] = _listed(trace.rounds, lambda turns: _listed(turns, _plain_round))
    return replace(trace, **others, intermediates=shown), remarks


def _listed(values: Any, plain: Callable[[Any], Any]) -> Any:
    """Return a list, or a tuple, as a list of plain values; anything else as it is."""
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def _plain_round(turn: object) -> object:
    """Return a round with numbers and flags of Python's own, which a file gives back as they are; else as it is."""
    if not isinstance(turn, Round):
        return turn
    values: dict[str, Any] = {each.name: getattr(turn, each.name) for each in fields(Round)}
    for name, value in values.items():
        if _is_count(value) and (name not in FLAGS or value <= 1):
            values[name] = bool(value) if name in FLAGS else int(value)
    return Round(**values)


def _is_bytes(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNT


def malformed(models: ModelPair, request: Request, trace: object) -> Divergence | None:
    """Return the first thing that is wrong with the form of what `decode` returned; None where nothing is."""
    if (wrong := unreadable(models, request, trace)) is not None:
        return wrong
    assert isinstance(trace, Trace)
    return next(_wrong_values(models, request, trace), None)


def tokens_to_consume(models: ModelPair, request: Request, trace: Trace) -> Tensor | None:
    """Return a trace's tokens where a network can run along them: one a draw, all of the codebook."""
    tokens_BL, shape = trace.tokens_BL, (request.B, models.pyramid.draws.L)
    if unreadable(models, request, trace) is not None or tokens_BL.shape != shape:
        return None
    return tokens_BL if bool(((tokens_BL >= 0) & (tokens_BL < models.target.config.V)).all()) else None


def unreadable(models: ModelPair, request: Request, trace: object) -> Divergence | None:
    """Return why nothing of a trace can be used, not even its counts; None where it can. Arguments as `malformed`."""
    detail = next(_unreadable(models, request, trace), None)
    return None if detail is None else Divergence("trace", detail, request.seed)


def _unreadable(models: ModelPair, request: Request, trace: object) -> Iterator[str]:
    """Types, devices, and lengths of lists."""
    if not isinstance(trace, Trace):
        yield f"decode returned {_kind(trace)}, not a Trace"
        return
    if not isinstance(trace.intermediates, Intermediates | None):
        yield f"intermediates is {_kind(trace.intermediates)}, not Intermediates or None"
        return
    for name, expected in expected_tensors(models, request).items():
        tensor, dtype = _tensor(trace, name), expected.dtype
        if tensor is None and (name in OPTIONAL or (trace.intermediates is None and name.startswith("intermediates"))):
            continue
        if type(tensor) is not Tensor:  # of a subclass `made_plain` takes the numbers, where it can
            yield f"{name} is {_kind(tensor)}, not a {'plain ' * isinstance(tensor, Tensor)}tensor"
        elif tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            yield f"{name} is no dense tensor"
        elif not expected.anywhere and tensor.device.type != models.device.type:
            yield f"{name} lies on {tensor.device}, not on {models.device}"
        elif tensor.dtype not in (TRACE_DTYPES[dtype] if isinstance(dtype, str) else (dtype,)):
            yield f"{name} is {tensor.dtype}, not {dtype}"
    for name in (*COUNTS, "rounds"):
        values, what = getattr(trace, name), "list" if name == "rounds" else "whole number"
        is_right: Callable[[Any], bool] = (lambda each: isinstance(each, list)) if name == "rounds" else _is_count
        if not isinstance(values, list) or len(values) not in (0, request.B) or not all(map(is_right, values)):
            yield f"{name} must be empty or a list of one {what} an image"
    if not all(_is_round(turn, 2 * models.pyramid.S) for turns in trace.rounds for turn in turns):
        yield f"rounds must hold Round records of whole numbers, of {2 * models.pyramid.S} scales at most"


def _wrong_values(models: ModelPair, request: Request, trace: Trace) -> Iterator[Divergence]:
    """Shapes, ranges, and that every scale was made final exactly once."""
    pyramid, seed = models.pyramid, request.seed
    if (wrong := wrong_shape(models, request, trace)) is not None:
        yield wrong
    for image, scale in trace.missing_scales(pyramid):
        detail = f"scale {scale} was made final {int(trace.scale_writes_BS[image, scale])} times, not once"
        yield Divergence("scheduling", detail, **request.where(image), scale=scale)
    if (outside := no_token(models, request, trace)) is not None:
        yield outside
    if trace.skipped_BSN is not None and wrong is None:
        skipped_BSN, counts_S1 = trace.skipped_BSN.long().cpu(), torch.tensor(pyramid.counts)[:, None]
        for image, scale, block in torch.nonzero((skipped_BSN < 0) | (skipped_BSN > counts_S1)).tolist():
            said = int(skipped_BSN[image, scale, block])
            detail = f"skipped_BSN says {said} of {pyramid.tokens(scale)} positions in block {block}"
            yield Divergence("trace", detail, **request.where(image), scale=scale)
    if not bool(torch.isfinite(trace.f_hat_BCPP).all()):
        yield Divergence("f_hat", "f_hat is not finite", seed)
    yield from wrong_rounds(models, request, trace)


def wrong_rounds(models: ModelPair, request: Request, trace: Trace) -> Iterator[Divergence]:
    """Yield a defect for every image whose rounds do not finish every scale once, in order."""
    pyramid = models.pyramid
    for image, rounds in enumerate(trace.rounds):
        covered = [turn.first + k for turn in rounds for k in range(turn.finished)]
        if covered != list(pyramid) or any(turn.finished < 1 for turn in rounds):
            detail = f"rounds finish scales {covered}, not 0..{pyramid.S - 1} once each"
            detail += _odd_round(rounds, pyramid.S) if rounds else ": leave rounds out where nothing is drafted"
            yield Divergence("scheduling", detail, **request.where(image))


def rounds_by_beginning(pyramid: ScalePyramid, trace: Trace) -> list[list[Round]]:
    """Return the rounds of all images as if each finished all scales before the next; empty where one is out of order.

    What a round says that it accepts may be miscounted; where the next one begins is where it ended. Whether its last
    scale was corrected nobody knows: it is not called accepted.
    """
    counted = list[list[Round]]()
    for rounds in trace.rounds:
        begins = [*(turn.first for turn in rounds), pyramid.S]
        if begins[0] or any(begin >= end for begin, end in pairwise(begins)):
            return []
        accepted = (end - begin - 1 for begin, end in pairwise(begins))
        pairs = zip(rounds, accepted, strict=True)
        counted.append([replace(turn, accepted=n, corrected=True, bonus=False) for turn, n in pairs])
    return counted


def _odd_round(rounds: list[Round], S: int) -> str:
    """Say of the first round that does not end where the next one begins how many scales it finishes."""
    if rounds[0].first:
        return f"; the first round begins at scale {rounds[0].first}"
    for n, turn in enumerate(rounds, 1):
        begin = rounds[n].first if n < len(rounds) else S
        if turn.finished < 1 or turn.first + turn.finished != begin:
            sum_of = f"accepted {turn.accepted}, corrected {turn.corrected:d}, bonus {turn.bonus:d}"
            after = f"the next round begins at scale {begin}" if n < len(rounds) else f"the pyramid has {S} scales"
            return f"; that at scale {turn.first} finishes {count_of(turn.finished, 'scale')} ({sum_of}), and {after}"
    return ""


def wrong_shape(models: ModelPair, request: Request, trace: Trace) -> Divergence | None:
    """Return the first tensor of another shape than it must have, of a trace that can be read; None where none is."""
    for name, expected in expected_tensors(models, request).items():
        tensor = _tensor(trace, name)
        if tensor is not None and tuple(tensor.shape) != expected.shape:
            detail, of_draft = f"{name} is {tuple(tensor.shape)}, not {expected.shape}", models.draft.config.D
            if name == "intermediates.x_RLD" and tuple(tensor.shape) == (*expected.shape[:2], of_draft):
                return Divergence("network", f"{detail}: inputs of the draft in place of the target's", request.seed)
            return Divergence(expected.component, detail, request.seed)
    return None


def no_token(models: ModelPair, request: Request, trace: Trace) -> Divergence | None:
    """Return the first number that is no token, of a trace of right shapes, as where nothing was drawn; None: none."""
    V = models.target.config.V
    for image, drawn in torch.nonzero((trace.tokens_BL < 0) | (trace.tokens_BL >= V))[:1].tolist():
        scale = models.pyramid.draws.level_of(drawn)
        return Divergence("scheduling", f"token outside 0..{V - 1}", **request.where(image), scale=scale)
    return None


def _tensor(trace: Trace, name: str) -> Tensor | None:
    """Return a tensor of `expected_tensors`; None for one that is not shown."""
    owner, _, field = name.rpartition(".")
    tensor: Tensor | None = getattr(getattr(trace, owner) if owner else trace, field, None)
    return tensor


def _is_round(turn: object, most: int) -> bool:
    if not isinstance(turn, Round) or not all(_is_count(getattr(turn, field.name)) for field in fields(Round)):
        return False
    # whoever reads a round goes through its scales
    bounds = dict.fromkeys(OF_SCALES, most) | dict.fromkeys(FLAGS, 1)
    return all(getattr(turn, name) <= bound for name, bound in bounds.items())


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and 0 <= int(value) <= MOST_COUNT  # NumPy's, too


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
