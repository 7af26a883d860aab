"""Judge a recording: run every case again, teacher-forced from the recorded tokens, and compare everything in it.

Promise: missing and extra tensors, another dtype or shape, NaN and tokens outside 0..V-1 are all told apart before
anything is run. A recorded token that is not the draw made here is a tie only if float64 on the recorded prefix cannot
tell the two apart within an allowance that was never derived from the difference met; all else is a defect.

Source: spec §7, §8; design §5, §6.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden._cases import Allowances, CaseResult, FileResult, Ground, RecordedCase, allowances, parse
from harness.golden._infinity import AnyStated, InfinityCase, InfinityStated, judge_infinity, parse_infinity
from harness.golden._metadata import GoldenCase
from harness.golden._smooth import judge_smooth
from harness.golden._store import Recording, read_recording, unverified
from harness.judge import Divergence
from harness.pool import one_thread
from harness.protocol import Trace

AnyCase = RecordedCase | InfinityCase
DRAWN = ("tokens", "bits", "forced")  # begin the names of what has V values


@contextmanager
def one_case_a_core(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Give every core a case of its own; on CUDA one at a time. Effects: PyTorch computes with one thread meanwhile.

    The passes of one small case are too short to be shared out: on two busy cores the recorded cases took 274 s of
    processor time with two threads a case, 78 s with one.
    """
    with one_thread() as cores, ThreadPoolExecutor(cores if device.type == "cpu" else 1) as pool:
        yield pool


def structure(case: AnyCase, recorded: Mapping[str, Tensor]) -> list[str]:
    """List what is wrong with the form of a case's tensors; empty when nothing is."""
    shapes, V = case.shapes(), case.models.vae.config.V
    with_rounds = {"rounds"} if case.sampler == "speculative" else set()
    wrong = [f"tensor {name} is missing" for name in sorted((shapes.keys() | with_rounds) - recorded.keys())]
    wrong += [f"tensor {name} is not expected" for name in sorted(recorded.keys() - shapes.keys() - with_rounds)]
    for name in sorted(recorded.keys() & shapes.keys()):
        tensor, (dtype, shape) = recorded[name], shapes[name]
        if tensor.dtype != dtype:
            wrong.append(f"{name} has dtype {tensor.dtype}, expected {dtype}")
        elif tuple(tensor.shape) != shape:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        elif dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{name} holds NaN or infinity")
        elif name.partition("/")[0] in DRAWN and bool(((tensor < 0) | (tensor >= V)).any()):
            wrong.append(f"{name} lie outside 0..{V - 1}")
    if with_rounds and "rounds" in recorded:
        dtype, shape = recorded["rounds"].dtype, tuple(recorded["rounds"].shape)
        if dtype != torch.int32 or len(shape) != 2 or shape[1] != 7:
            wrong.append(f"rounds has dtype {dtype} and shape {shape}, expected torch.int32 and (any number, 7)")
    return wrong


SWAPPED = 0.95  # share of tokens drawn here that another case of the file holds


def read_recordings(paths: Sequence[Path]) -> list[Recording]:
    """Read the files to be judged. Raises `InputError`: none is named, one is named twice, or one cannot be read."""
    if not paths:
        raise InputError("files", [], "name nothing to check", "pass at least one recording")
    seen: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise InputError("files", str(path), "is named twice", "name every file once")
        seen.add(real)
    return [read_recording(path) for path in paths]


def understood(stated: AnyStated, models: str, device: torch.device) -> AnyCase:
    """Fit one case of either family to its networks. Raises `InputError` as the family does."""
    return parse_infinity(stated, device) if isinstance(stated, InfinityStated) else parse(stated, models, device)


def recorded_cases(recording: Recording, device: torch.device) -> list[AnyCase]:
    """Return every case, understood. Raises `InputError` for one that is not, or for two of one id."""
    models, cases = recording.metadata.get("models", ""), list[AnyCase]()
    for stated in recording.cases:
        if isinstance(stated, GoldenCase) and stated.count is None:
            tokens = recording.tensors.get(f"{stated.id}/tokens")
            # drawn labels: the tensors tell how many
            stated = replace(stated, count=len(tokens) if tokens is not None and tokens.dim() else 1)  # noqa: PLW2901
        case = understood(stated, models, device)
        if case.id in {other.id for other in cases}:
            raise InputError("golden", str(recording.path), f"case {case.id} is listed twice", "record it again")
        cases.append(case)
    return cases


def check_recording(
    recording: Recording, cases: Sequence[AnyCase], device: torch.device, progress: Callable[[], None] = lambda: None
) -> FileResult:
    """Judge a whole file and its cases (`recorded_cases`); UNVERIFIED where it is of another platform."""
    result = FileResult(str(recording.path), unverified=unverified(recording, device))
    if result.unverified:
        return result
    result.defects = [f"tensor {name} is not expected: it belongs to no case" for name in recording.strays()]
    with one_case_a_core(device) as pool:
        for judged in pool.map(lambda case: check_case(case, recording), cases):
            result.cases.append(judged)
            progress()
    return result


@torch.inference_mode()
def check_case(case: AnyCase, recording: Recording) -> CaseResult:
    recorded = {name: tensor.to(case.models.device) for name, tensor in recording.of(case.id).items()}
    result = CaseResult(case.id, case.request)
    for line in structure(case, recorded):
        result.defect("form", line)
    if result.defects:
        return result
    if isinstance(case, InfinityCase):
        judge_infinity(case, recorded, result)
        return result
    tokens_BL = recorded["tokens"].long()
    result.run = free = case.run()
    result.free_run = torch.equal(free.tokens_BL, tokens_BL)
    if case.request.more_smooth:
        judge_smooth(case, recorded, free, result)
    else:
        _judge_plain(case, recorded, free, result)
    if any(defect.component == "token" for defect in result.defects):
        _name_swapped(case, recording, free.tokens_BL, result)
    if case.sampler == "speculative" and result.free_run and not torch.equal(rounds(free), recorded["rounds"].cpu()):
        result.defect("scheduling", "rounds differ: other scales were drafted, accepted or corrected")
    free.intermediates = None  # large, and judged
    return result


def rounds(trace: Trace) -> Tensor:
    """Return a speculative decode's rounds, int32 (N, 7): image, first, drafted, accepted, corrected, bonus, rows."""
    rows = [
        (b, turn.first, turn.drafted, turn.accepted, int(turn.corrected), int(turn.bonus), turn.target_rows)
        for b, turns in enumerate(trace.rounds)
        for turn in turns
    ]
    return torch.tensor(rows, dtype=torch.int32).view(-1, 7)


def _judge_plain(case: RecordedCase, recorded: dict[str, Tensor], free: Trace, result: CaseResult) -> None:
    """Judge a case whose f_hat is a function of its tokens, from the recorded ones. Effects: on `result`."""
    tokens_BL, pyramid = recorded["tokens"].long(), case.models.pyramid
    forced = free if result.free_run else case.run(tokens_BL)
    allowed = allowances(case, forced)
    result.draws = tokens_BL.numel()
    result.identical = int((forced.tokens_BL == tokens_BL).sum())
    if not torch.equal(forced.tokens_BL, tokens_BL):
        exact, moved_L = case.exact(tokens_BL), [allowed.logits_S[si] for si in pyramid.levels()]
        moved_BL = exact.shown.guided_BLV.new_tensor(moved_L).expand(tokens_BL.shape)
        judged_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
        Ground(exact, moved_BL, moved_BL, judged_BL).judge_tokens(case, tokens_BL, forced, result)
    _judge_tensors(case, recorded, forced, allowed, result)


def _name_swapped(case: RecordedCase, recording: Recording, free_BL: Tensor, result: CaseResult) -> None:
    """Say so, first of all, if another case of the file holds what was drawn here. Effects: on `result`."""
    for other in recording.cases:
        theirs = recording.tensors.get(f"{other.id}/tokens")
        if other.id == case.id or theirs is None or theirs.shape != free_BL.shape:
            continue
        if float((free_BL.cpu() == theirs).double().mean()) > SWAPPED:
            detail = f"case {other.id} holds the tokens drawn here: two cases are swapped"
            result.defects.insert(0, Divergence("swapped", detail, case.request.seed))
            return


def _judge_tensors(
    case: RecordedCase, recorded: dict[str, Tensor], run: Trace, allowed: Allowances, result: CaseResult
) -> None:
    last, deltas = case.models.pyramid.S - 1, defaultdict[str, list[float]](list)
    if case.f_hats and not torch.equal(recorded[f"f_hat/{last}"], recorded["f_hat"]):
        result.defect("f_hat", f"f_hat is not f_hat/{last}", last)
    for name, made in case.tensors(run).items():
        kind, _, scale = name.partition("/")
        si = int(scale or last)
        most = {"logits": 2 * allowed.logits_S[si], "f_hat": allowed.f_hat, "image": allowed.image}[kind]
        deltas[kind].append(result.compare(name, made, recorded[name], most, -1 if kind == "image" else si))
    for kind, each in deltas.items():
        setattr(result, f"delta_{kind}", max(each))
