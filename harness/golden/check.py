"""Judge a recording: run every case again, teacher-forced from the recorded tokens, and compare everything in it.

Promise: a recorded token that is not the draw made here is a tie only if float64 on the recorded prefix cannot tell
the two apart within a budget that was calibrated on the plain sampler, never on the difference met; all else is a
defect. Another platform class is UNVERIFIED: nothing is compared.

Source: spec §7, §8; design §5, §6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.budget import SAFETY, Budget, calibrate
from harness.compare import largest_difference
from harness.errors import InputError
from harness.golden.cases import Case, parse
from harness.golden.store import Recording
from harness.golden.structure import structure
from harness.models.pair import ModelPair
from harness.noise import TOKEN, SeededNoise
from harness.trace import Trace
from harness.verdict import Verdict, margin_bound, race_margin

# The decoder of 32-pixel images rounds by 7e-7 between two CPU set-ups; the next power of ten above ten times that.
IMAGE = 1e-5
# `more_smooth` amplifies rounding by 1/τ, up to 200: what the recordings' README allows.
SMOOTH_F_HAT, SMOOTH_IMAGE = 2e-2, 1e-2
SMOOTH_TIES = 0.005  # "very few tokens": share of a case's draws
SMOOTH_LOGITS = 1.0  # cap of a smooth budget, which float64 measures: beyond it nothing would be judged


@dataclass
class CaseResult:
    """The judgement on one case."""

    id: str
    draws: int = 0
    identical: int = 0
    ties: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    delta_logits: float = float("nan")  # NaN: not recorded
    delta_f_hat: float = float("nan")
    delta_image: float = float("nan")
    free_run: bool = False

    @property
    def verdict(self) -> Verdict:
        """DEFECT, INCONCLUSIVE when nothing was compared, TIE or IDENTICAL."""
        if self.defects or self.draws == 0:
            return Verdict.DEFECT if self.defects else Verdict.INCONCLUSIVE
        return Verdict.TIE if self.ties else Verdict.IDENTICAL


@dataclass
class FileResult:
    """The judgement on one file; `unverified` says why nothing was compared."""

    path: str
    cases: list[CaseResult] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    unverified: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of the file and its cases."""
        verdicts = [case.verdict for case in self.cases]
        if self.defects or Verdict.DEFECT in verdicts:
            return Verdict.DEFECT
        if self.unverified or not verdicts or Verdict.INCONCLUSIVE in verdicts:
            return Verdict.INCONCLUSIVE
        return Verdict.TIE if Verdict.TIE in verdicts else Verdict.IDENTICAL


def parse_all(recording: Recording, device: torch.device) -> list[Case]:
    """Return every case, understood. Raises `InputError` for one that is not, or for two of one id."""
    cases = []
    for plain in recording.cases:
        name = str(plain.get("id"))
        first = next(iter(recording.of(name).values()), None)
        count = len(first) if first is not None and first.dim() else 1  # drawn labels: the tensors tell how many
        models = recording.metadata.get("models", "")
        cases.append(parse({"count": count, **plain}, models, device))
        if [case.id for case in cases].count(name) > 1:
            raise InputError("golden", str(recording.path), f"case {name} is listed twice", "record it again")
    return cases


def check(recording: Recording, device: torch.device, progress: Callable[[], None] = lambda: None) -> FileResult:
    """Judge a whole file.

    Args:
        recording: what `store.read` returned.
        device: where to run; its class must be the recording's.
        progress: called after every case.

    Raises:
        InputError: a case that cannot be understood; nothing was run then.
    """
    result = FileResult(str(recording.path))
    cases = parse_all(recording, device)
    if recording.platform != device.type:
        result.unverified = f"recorded on {recording.platform}, not comparable on {device.type}"
        return result
    result.defects += [f"tensor {name} belongs to no case" for name in recording.strays()]
    budgets = Budgets()
    for case in cases:
        result.cases.append(check_case(case, recording, budgets))
        progress()
    return result


class Budgets:
    """Calibrated budgets, one for every networks, sampler side and guidance value."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Budget] = {}

    def of(self, case: Case) -> Budget:
        """Return the budget of the plain sampler for this case: the larger one of the networks that decide."""
        found = [self._of_network(case, network) for network in case.sides()]
        return max(found, key=lambda budget: budget.logits)

    def _of_network(self, case: Case, network: Any) -> Budget:
        key = (id(network), case.request.cfg)
        if key not in self._kept:
            models: ModelPair = replace(case.models, draft=network, target=network)
            self._kept[key] = calibrate(models, replace(case.request, more_smooth=False))
        return self._kept[key]


@torch.inference_mode()
def check_case(case: Case, recording: Recording, budgets: Budgets) -> CaseResult:
    """Judge one case."""
    recorded = recording.of(case.id)
    result = CaseResult(case.id)
    result.defects += structure(case, recorded)
    if result.defects:
        return result
    tokens_BL = recorded["tokens"].to(case.models.device, torch.int64)
    free = case.run()
    result.free_run = torch.equal(free.tokens_BL, tokens_BL)
    forced = free if result.free_run or case.request.more_smooth else case.run(tokens_BL)
    result.draws = tokens_BL.numel()
    result.identical = int((forced.tokens_BL == tokens_BL).sum())
    budget = _smooth_budget(case, forced) if case.request.more_smooth else budgets.of(case)
    if result.identical < result.draws:
        _judge_tokens(case, recorded, forced, budget, result)
        if result.defects:
            result.defects += _swapped(case, recording, free.tokens_BL)
    _judge_tensors(case, recorded, forced, budget, result)
    if case.sampler == "speculative" and result.free_run and not torch.equal(rounds(free), recorded["rounds"]):
        result.defects.append("rounds differ: other scales were drafted, accepted or corrected")
    return result


def rounds(trace: Trace) -> Tensor:
    """Return the rounds of a speculative decode, int32 (N, 7): image, first, drafted, accepted, corrected, bonus, rows.

    Args:
        trace: of a decoder that keeps `Trace.rounds`.
    """
    rows = [
        (b, turn.first, turn.drafted, turn.accepted, int(turn.corrected), int(turn.bonus), turn.target_rows)
        for b, turns in enumerate(trace.rounds)
        for turn in turns
    ]
    return torch.tensor(rows, dtype=torch.int32).view(-1, 7)


def kept_logits(case: Case, trace: Trace, si: int) -> Tensor:
    """Return the guided logits of one scale at the positions that are recorded."""
    assert trace.intermediates is not None
    return trace.intermediates.guided_BLV[:, case.models.pyramid.span(si)][:, case.logits_positions(si)]


def _smooth_budget(case: Case, run: Trace) -> Budget:
    """Float32 against float64 of the same free run: `more_smooth` never consumes a token, so both stay aligned."""
    exact = case.in_dtype(torch.float64).run()
    assert run.intermediates is not None and exact.intermediates is not None
    error = largest_difference(run.intermediates.guided_BLV, exact.intermediates.guided_BLV)
    return Budget(min(SAFETY * error, SMOOTH_LOGITS), SMOOTH_F_HAT / 2, "float64 free run, more_smooth")


def _judge_tokens(case: Case, recorded: dict[str, Tensor], run: Trace, budget: Budget, result: CaseResult) -> None:
    """Certify every differing token as a tie, or call it a defect. Effects: on `result`."""
    models, pyramid, smooth = case.models, case.models.pyramid, case.request.more_smooth
    tokens_BL = recorded["tokens"].to(models.device, torch.int64)
    wide, noise = case.in_dtype(torch.float64), SeededNoise(case.request, pyramid, models.vae.config.V, models.device)
    noise.labels(models.target.config.classes)
    exact = wide.run(None if smooth else tokens_BL)
    assert exact.intermediates is not None and run.intermediates is not None
    for image, position in torch.nonzero(run.tokens_BL != tokens_BL).tolist():
        si, token = pyramid.level_of(position), int(tokens_BL[image, position])
        E_V = noise.exponential(si, TOKEN, "golden")[image, position - pyramid.begin(si)]
        exact_V = exact.intermediates.guided_BLV[image, position]
        margin = race_margin(exact_V, E_V, token, case.request, budget)
        near = largest_difference(run.intermediates.guided_BLV[image, position], exact_V) <= budget.logits
        where = f"token {token} at image {image}, scale {si}, position {position}; drawn {int(run.tokens_BL[image, position])}"
        line = f"{where}, margin {margin:.3g}, bound {margin_bound(budget):.3g}"
        (result.ties if near and margin <= margin_bound(budget) else result.defects).append(line)
    if smooth and len(result.ties) > max(1, SMOOTH_TIES * result.draws):
        result.defects.append(f"{len(result.ties)} tokens differ, more than {SMOOTH_TIES:.1%} of the draws")


def _swapped(case: Case, recording: Recording, free_BL: Tensor) -> list[str]:
    """Another case of the file holds what was drawn here."""
    mine = largest_share(free_BL, recording.tensors[f"{case.id}/tokens"])
    for other in recording.cases:
        share = largest_share(free_BL, recording.tensors.get(f"{other['id']}/tokens"))
        if other["id"] != case.id and share > max(mine, 0.95):
            return [f"case {other['id']} holds the tokens drawn here: two cases are swapped"]
    return []


def largest_share(a_BL: Tensor, b_BL: Tensor | None) -> float:
    """Return the share of equal tokens; 0 for another shape."""
    if b_BL is None or a_BL.shape != b_BL.shape:
        return 0.0
    return float((a_BL == b_BL.to(a_BL.device)).double().mean())


def _judge_tensors(case: Case, recorded: dict[str, Tensor], run: Trace, budget: Budget, result: CaseResult) -> None:
    """Compare logits, f_hat and image. Effects: on `result`."""
    assert run.intermediates is not None
    pyramid, smooth, vae = case.models.pyramid, case.request.more_smooth, case.models.vae
    device = case.models.device
    f_hats = {"f_hat": run.f_hat_BCPP}
    f_hats |= {f"f_hat/{si}": run.intermediates.f_hat_SBCPP[si] for si in pyramid if case.f_hats}
    logits = {f"logits/{si}": kept_logits(case, run, si) for si in pyramid if case.logits != "none"}
    images = {"image": vae.decode(run.f_hat_BCPP)}

    def judge(made: dict[str, Tensor], allowed: float) -> float:
        deltas = {name: largest_difference(tensor, recorded[name].to(device)) for name, tensor in made.items()}
        for name, delta in deltas.items():
            if not delta <= allowed:
                result.defects.append(f"{name} is off by {delta:.3g}, allowed {allowed:.3g}")
        return max(deltas.values(), default=float("nan"))

    result.delta_logits = judge(logits, 2 * budget.logits)
    result.delta_f_hat = judge(f_hats, SMOOTH_F_HAT if smooth else 2 * budget.f_hat)
    result.delta_image = judge(images, SMOOTH_IMAGE if smooth else IMAGE)
    if smooth:  # the wide tolerances above leave room: f_hat and image must at least belong together
        delta = largest_difference(vae.decode(recorded["f_hat"].to(device)), recorded["image"].to(device))
        if not delta <= IMAGE:
            result.defects.append(f"f_hat and image do not belong together: the image is off by {delta:.3g}")


def totals(results: Sequence[FileResult]) -> str:
    """Return the last line: ``N of N cases, M draws compared``."""
    cases = [case for result in results for case in result.cases]
    good = sum(case.verdict in (Verdict.IDENTICAL, Verdict.TIE) for case in cases)
    return f"{good} of {len(cases)} cases, {sum(case.draws for case in cases)} draws compared"
