"""Run a decoder and the reference under one noise, compare, judge.

Promise: every token of every image is judged against the reference's draw on the same prefix. The reference follows
the decoder's tokens, so one tie does not cascade, and a decoder needs no hook for it.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.budget import Budget
from harness.diagnose import Evidence, first_wrong
from harness.errors import InputError, NoiseError, NonFiniteError
from harness.implementations import Implementation
from harness.models.pair import ModelPair
from harness.noise import TOKEN, SeededNoise
from harness.reference import cachefree, sequential
from harness.reference.draw import draw, filter_logits
from harness.request import Request
from harness.trace import Trace
from harness.verdict import Divergence, Judgement, margin_bound, race_margin, unusual_ties
from harness.wellformed import malformed

Found = tuple[int, str, str]  # scale, component, detail
Wrong = dict[int, Found | None]  # by image


def new_noise(models: ModelPair, request: Request) -> SeededNoise:
    """Return fresh numbers for one run."""
    return SeededNoise(request, models.pyramid, models.target.config.V, models.device)


def run(implementation: Implementation, models: ModelPair, request: Request) -> Trace | Judgement:
    """Decode under fresh noise; a decoder that crashes, meets a non-finite tensor or returns no trace is judged, too.

    Raises:
        InputError: the decoder refuses the request.
    """
    try:
        trace = implementation.decode(request, new_noise(models, request))
        if (wrong := malformed(models, request, trace)) is None:
            return trace
        found = Divergence("trace", wrong, request.seed)
    except InputError:
        raise
    except NonFiniteError as error:
        found = Divergence("non-finite", str(error), request.seed)
    except NoiseError as error:
        found = Divergence("noise", str(error), request.seed)
    except (Exception, SystemExit) as error:  # of whatever kind: the decoder is somebody else's code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
        found = Divergence("crash", " ".join(detail.split()), request.seed)
    return Judgement(request.B, defects=[found])


def judge(
    models: ModelPair, request: Request, actual: Trace, expected: Trace, budget: Budget, greedy: bool = False
) -> Judgement:
    """Judge one decode against the reference (contract A).

    Args:
        models: as both sides used them.
        request: what was drawn.
        actual: the decoder's trace.
        expected: the reference's free run under the same noise.
        budget: how far rounding may move logits and f_hat.
        greedy: both sides take the most likely token in place of a draw.

    Returns:
        The judgement; defects in causal order.
    """
    judgement = Judgement(request.B)
    judgement.defects += structure(models, request, actual)
    if judgement.defects:
        return judgement
    if not torch.equal(actual.tokens_BL, expected.tokens_BL):
        expected = on_tokens_of(actual, models, request, greedy)
    evidence = Evidence(models, request, actual, expected, budget, greedy)
    differ_BL = actual.tokens_BL != expected.tokens_BL
    judgement.draws = differ_BL.numel()
    judgement.identical = judgement.draws - int(differ_BL.sum())
    wrong = {image: first_wrong(evidence, image) for image in range(request.B)}
    _judge_tokens(evidence, wrong, differ_BL, judgement)
    judgement.defects += judge_tensors(evidence, wrong)
    # a defect without a position (the final f_hat) comes behind the tokens that it is made of
    judgement.defects.sort(key=lambda d: (d.scale, d.image, d.position < 0, d.position))
    if not any(turn.drafted for rounds in actual.rounds for turn in rounds):
        judgement.inconclusive.append("nothing was drafted, as far as Trace.rounds shows")
    return judgement


def on_tokens_of(actual: Trace, models: ModelPair, request: Request, greedy: bool) -> Trace:
    """Return the reference's run along the decoder's own tokens; its `tokens_BL` are what it would have drawn."""
    noise = new_noise(models, request)
    return sequential.sample(models.target, models.vae, request, noise, actual.tokens_BL, greedy)


def structure(models: ModelPair, request: Request, actual: Trace) -> list[Divergence]:
    """Shapes, ranges, and that every scale was generated exactly once."""
    pyramid, V = models.pyramid, models.target.config.V
    tokens_BL, f_hat = actual.tokens_BL, actual.f_hat_BCPP
    shape = (request.B, pyramid.L)

    def defect(component: str, detail: str, image: int = -1, scale: int = -1) -> list[Divergence]:
        return [Divergence(component, detail, request.seed, image, scale=scale)]

    if tuple(tokens_BL.shape) != shape or tokens_BL.dtype != torch.int64:
        return defect("scheduling", f"tokens are {tokens_BL.dtype} {tuple(tokens_BL.shape)}, not int64 {shape}")
    for image, scale in actual.missing_scales(pyramid):
        return defect("scheduling", "a scale was not generated exactly once", image, scale)
    outside = torch.nonzero((tokens_BL < 0) | (tokens_BL >= V)).tolist()
    for image, position in outside:
        return defect("scheduling", f"token outside 0..{V - 1}", image, pyramid.level_of(position))
    if f_hat is None or not bool(torch.isfinite(f_hat).all()):
        return defect("f_hat", "f_hat is missing or not finite")
    C, P = models.target.config.C, pyramid.P
    if tuple(f_hat.shape) != (request.B, C, P, P):
        return defect("f_hat", f"f_hat is {tuple(f_hat.shape)}, not {(request.B, C, P, P)}")
    for name, tensor, expected in _kept(models, request, actual):
        if tuple(tensor.shape) != expected:
            return defect("scheduling", f"intermediates.{name} is {tuple(tensor.shape)}, not {expected}")
    for image, rounds in enumerate(actual.rounds):
        covered = [turn.first + k for turn in rounds for k in range(turn.finished)]
        if covered != list(pyramid) or any(turn.finished < 1 for turn in rounds):
            return defect("scheduling", f"rounds finish scales {covered}, not 0..{pyramid.S - 1} once each", image)
    return []


def _kept(models: ModelPair, request: Request, actual: Trace) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, tensor and required shape of the intermediates that the decoder exposes."""
    if actual.intermediates is None:
        return []
    pyramid, config, B = models.pyramid, models.target.config, request.B
    shapes = {
        "x_RLD": (2 * B, pyramid.L, config.D),
        "rows_RLV": (2 * B, pyramid.L, config.V),
        "guided_BLV": (B, pyramid.L, config.V),
        "f_hat_SBCPP": (pyramid.S, B, config.C, pyramid.P, pyramid.P),
    }
    return [(name, tensor, shapes[name]) for name, tensor in actual.intermediates.named().items()]


def _judge_tokens(evidence: Evidence, wrong: Wrong, differ_BL: Tensor, judgement: Judgement) -> None:
    """Certify every differing token as a tie against float64, or call it a defect."""
    if not bool(differ_BL.any()):
        return
    models, request = evidence.models, evidence.request
    images = torch.nonzero(differ_BL.any(1)).flatten().tolist()
    noise = new_noise(models, request)
    labels_B = noise.labels(models.target.config.classes)
    wide = models.to(models.device, torch.float64)
    for image in images:  # one by one: the attention of a large batch in float64 would fill a GPU
        one = slice(image, image + 1)
        _, exact_1LV, _ = cachefree.teacher_forced(
            wide.target, wide.vae, request.cfg, labels_B[one], evidence.actual.tokens_BL[one], models.pyramid.S
        )
        for position in torch.nonzero(differ_BL[image]).flatten().tolist():
            found = _judge_token(evidence, wrong[image], noise, image, position, exact_1LV[0, position])
            (judgement.ties if found.component == "tie" else judgement.defects).append(found)
        if len(judgement.defects) > 1000:  # a broken decoder: the first ones are what matters
            return
    for tie in unusual_ties(judgement.ties, evidence.budget):
        judgement.ties.remove(tie)
        detail = "one of many ties whose margins together are beyond rounding"
        judgement.defects.append(replace(tie, component="unknown", detail=detail))


def _judge_token(
    evidence: Evidence, wrong: Found | None, noise: SeededNoise, image: int, position: int, exact_V: Tensor
) -> Divergence:
    """Certify one differing token as a tie, or name the component that `wrong` found at or before its scale."""
    models, request, budget = evidence.models, evidence.request, evidence.budget
    si = models.pyramid.level_of(position)
    E_V = torch.ones_like(exact_V)  # greedy: a race in which nobody is slowed down
    if not evidence.greedy:
        E_V = noise.exponential(si, TOKEN, "judge")[image, position - models.pyramid.begin(si)]
    actual, expected = (int(t.tokens_BL[image, position]) for t in (evidence.actual, evidence.expected))
    margin, bound = race_margin(exact_V, E_V, actual, request, budget), margin_bound(budget)
    kept = (evidence.actual.intermediates, evidence.expected.intermediates)  # a decoder may keep none
    sides = [k.guided_BLV[image, position] for k in kept if k is not None]
    near = all(float((side.double() - exact_V).abs().max()) <= budget.logits for side in sides)
    # Where the decoder shows its logits, its own race must give its token: no budget excuses a wrong draw.
    own = draw(filter_logits(sides[0], request.top_k, request.top_p), E_V) if len(sides) == 2 else actual
    if margin <= bound and near and own == actual:
        component, detail = "tie", "within the error budget of float64"
    elif wrong is not None and wrong[0] <= si:
        _, component, detail = wrong
    elif evidence.actual.intermediates is None:
        component, detail = "unknown", "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
    else:
        component, detail = "draw", "guided logits agree, so filter, draw, noise or acceptance is wrong"
    delta_logits, delta_f_hat = _deltas(evidence, image, si, position)
    label = int(noise.labels(models.target.config.classes)[image])
    return Divergence(
        component, detail, request.seed, image, label, si, position, actual, expected,
        margin, bound, delta_logits, delta_f_hat,
    )  # fmt: skip


def judge_tensors(evidence: Evidence, wrong: Wrong) -> list[Divergence]:
    """Tensors that differ beyond rounding although the tokens may agree: the first of every image."""
    found = [_tensor_divergence(evidence, first, image) for image, first in wrong.items() if first]
    error_B = (evidence.actual.f_hat_BCPP - evidence.expected.f_hat_BCPP).abs().flatten(1).amax(1)
    for image, error in enumerate(error_B.tolist()):
        if not error <= 2 * evidence.budget.f_hat and not wrong[image]:
            last = evidence.models.pyramid.S - 1
            seed, detail = evidence.request.seed, "the final f_hat is not that of the decoder's own tokens"
            found.append(Divergence("f_hat", detail, seed, image, scale=last, delta_f_hat=error))
    return found


def _tensor_divergence(evidence: Evidence, found: Found, image: int) -> Divergence:
    """Place a wrong tensor at its scale's worst position."""
    si, component, detail = found
    a, b = evidence.actual.intermediates, evidence.expected.intermediates
    assert a is not None and b is not None
    span = evidence.models.pyramid.span(si)
    worst_l = (a.guided_BLV[image, span] - b.guided_BLV[image, span]).abs().amax(1)
    position = span.start + int(worst_l.argmax())
    labels = evidence.request.labels
    delta_logits, delta_f_hat = _deltas(evidence, image, si, position)
    return Divergence(
        component,
        detail,
        seed=evidence.request.seed,
        image=image,
        label=labels[image] if labels else -1,
        scale=si,
        position=position,
        actual=int(evidence.actual.tokens_BL[image, position]),
        expected=int(evidence.expected.tokens_BL[image, position]),
        delta_logits=delta_logits,
        delta_f_hat=delta_f_hat,
    )


def _deltas(evidence: Evidence, image: int, si: int, position: int) -> tuple[float, float]:
    """|Δ guided logits| at a position and |Δ f_hat| after its scale; NaN where the decoder exposes neither."""
    a, b = evidence.actual.intermediates, evidence.expected.intermediates
    if a is None or b is None:
        return float("nan"), float("nan")
    logits = float((a.guided_BLV[image, position] - b.guided_BLV[image, position]).abs().max())
    return logits, float((a.f_hat_SBCPP[si, image] - b.f_hat_SBCPP[si, image]).abs().max())
