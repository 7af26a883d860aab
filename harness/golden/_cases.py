"""One recorded case on its networks, the run of the sampler that it names, and the judgement on it, number by number.

Promise: a case fits its networks or is refused by name; nothing in it is guessed. The same sizes on the same device are
the same networks, so that nothing is built or calibrated twice. Nothing compared is INCONCLUSIVE; the worst of the
parts is the verdict. A token that differs is a tie only if float64 on the same prefix cannot tell the two apart within
what is allowed; where nothing is allowed to be said (`judged_BL`), it is not judged, and counted so. An allowance is
measured on the plain samplers against float64 and capped, or is a stated number; it is never derived from the
difference that it is to judge, and a wrong plain sampler cannot widen it far.

Source: the recordings' README, "Networks without weights files".
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden._metadata import GoldenCase, Recipe, check_batch, check_fit, check_weights, naming
from harness.judge import Divergence, Verdict, exponentials, margins_of_differing_tokens, worst_verdict
from harness.models import ModelPair, Network, TransformerConfig, load_digits, var_config
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_shapes
from harness.models.var.sizes import count_scalars, filled_weights
from harness.models.var.transformer import Transformer, transformer_shapes
from harness.protocol import Request, ScalePyramid, Trace
from harness.reference import HandOff, sample_handoff, sample_sequential
from harness.rounding import BUDGET_MARGIN, Budget, quick_budget
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from harness.wording import count_of

CPU = torch.device("cpu")
LOGITS_STEP, LOGITS_DENSE = 16, 5  # digits: from scale 5 on every 16th position is kept
Stated = TypeVar("Stated")
TensorShapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def recorded_networks(case: GoldenCase, models_name: str, device: torch.device = CPU) -> ModelPair:
    """Return the float32 networks of a case, cached. Raises `InputError`, and `KeyError` where it lacks sizes."""
    if models_name == "digits":
        return _digits(device)
    if models_name != "filled":
        raise InputError("models", models_name, "must be digits or filled", "pass a recording of known networks")
    return filled(_needed("patch_nums", case.recipe), device)


@cache
def _digits(device: torch.device) -> ModelPair:
    return load_digits().to(device)


@cache
def filled(recipe: Recipe, device: torch.device) -> ModelPair:
    target = TransformerConfig(
        ScalePyramid(recipe.patch_nums), recipe.depth, recipe.D, recipe.H, recipe.V, recipe.C, recipe.classes,
        recipe.shared_adaln, recipe.l2_norm,
    )  # fmt: skip
    draft = replace(
        target, depth=recipe.draft_depth or target.depth, D=recipe.draft_D or target.D, H=recipe.draft_H or target.H
    )
    if recipe.phi == "one a scale":
        phi, layout = target.pyramid.S, "per-scale"
    else:
        phi = int(recipe.phi.removesuffix(" shared"))
        layout = "one" if phi == 1 else "shared"
    vae = AutoencoderConfig(recipe.V, recipe.C, recipe.vae_ch, recipe.vae_mult, phi=phi, phi_layout=layout)
    check_fit((draft, target), vae)
    shapes = transformer_shapes(draft), transformer_shapes(target), autoencoder_shapes(vae)
    for each in shapes:
        check_weights(count_scalars(each))
    of_draft, of_target, of_vae = map(filled_weights, shapes)
    pair = ModelPair(Transformer(draft, of_draft), Transformer(target, of_target), Autoencoder(vae, of_vae), "filled")
    return pair.to(device)


@dataclass(frozen=True)
class RecordedCase:
    """A case that fits its networks."""

    id: str  # first part of the names of its tensors
    sampler: str  # one of `SAMPLERS`
    request: Request  # what was drawn
    models: ModelPair  # networks
    network: str = "target"  # one of `SIDES` (`sequential`)
    hand_off: HandOff = field(default_factory=lambda: HandOff(0))  # of `test3`
    options: DecoderOptions = field(default_factory=DecoderOptions)  # of `speculative`
    f_hats: bool = False  # f_hat after every scale is recorded too
    logits: str = "none"  # one of `LOGITS`, "some" positions (digits)

    def run(self, forced_BL: Tensor | None = None) -> Trace:
        """Run the sampler; teacher-forced, a speculative decode becomes the sequential one that it must equal."""
        models, noise = self.models, self.models.noise(self.request)
        if self.sampler == "test3":
            return sample_handoff(models, self.request, noise, self.hand_off, forced_BL)
        if self.sampler == "speculative" and forced_BL is None:
            return SpeculativeDecoder(models, self.options).decode(self.request, noise)
        return sample_sequential(self.sides()[0], models.vae, self.request, noise, forced_BL)

    def exact(self, forced_BL: Tensor | None = None) -> Trace:
        """Run in float64, on the same numbers."""
        return replace(self, models=self.models.wide()).run(forced_BL)

    def sides(self) -> tuple[Network, ...]:
        """Networks that decide tokens."""
        if self.sampler == "test3":
            return self.models.draft, self.models.target
        return (self.models.draft if self.network == "draft" else self.models.target,)

    def logits_at(self, si: int) -> slice:
        """Positions of scale `si` whose logits are recorded."""
        span, step = self.models.pyramid.span(si), LOGITS_STEP if self.logits == "some" and si >= LOGITS_DENSE else 1
        return slice(span.start, span.stop, step)

    def tensors(self, run: Trace) -> dict[str, Tensor]:
        """Return what is recorded of a run besides its tokens and rounds, by name, in the order of its making."""
        shown, scales = run.shown, self.models.pyramid
        made = {f"logits/{si}": shown.guided_BLV[:, self.logits_at(si)] for si in scales if self.logits != "none"}
        made |= {f"f_hat/{si}": shown.f_hat_SBCPP[si] for si in scales if self.f_hats}
        return made | {"f_hat": run.f_hat_BCPP, "image": self.models.vae.decode(run.f_hat_BCPP)}

    def shapes(self) -> TensorShapes:
        """Return dtype and shape of every tensor of the case but `rounds`, whose length the decode decides."""
        pyramid, vae, B = self.models.pyramid, self.models.vqvae.config, self.request.B
        side = pyramid.P * vae.downsampling
        map_shape = (B, vae.C, pyramid.P, pyramid.P)
        shapes: TensorShapes = {
            "tokens": (torch.int16, (B, pyramid.L)),
            "f_hat": (torch.float32, map_shape),
            "image": (torch.float32, (B, 3, side, side)),
        }
        for si in pyramid:
            if self.f_hats:
                shapes[f"f_hat/{si}"] = (torch.float32, map_shape)
            if self.logits != "none":
                recorded = len(range(pyramid.L)[self.logits_at(si)])
                shapes[f"logits/{si}"] = (torch.float32, (B, recorded, vae.V))
        return shapes


def parse(case: GoldenCase, models_name: str, device: torch.device) -> RecordedCase:
    """Fit one case to its networks. Raises `InputError`, which names the case, where something is missing or unfit."""
    with naming(case.id):
        models, labels = recorded_networks(case, models_name, device), case.labels
        count = len(labels) if labels is not None else _needed("count", case.count)
        order = case.order or "batch"  # the published order
        request = Request(labels, order=order, count=count, **asdict(case.drawing))
        request.check_against(models.target.config.classes, models.target.config.V)
        check_batch(request.B, models.pyramid, var_config(models.target), models.vqvae.config.downsampling)
        filled_ones = models_name == "filled"
        logits = case.logits or ("all" if filled_ones else "some" if case.deep else "none")
        fitted = RecordedCase(case.id, case.sampler, request, models, f_hats=bool(case.deep), logits=logits)
        if case.sampler == "sequential":
            return replace(fitted, network=_needed("model", case.model or ("target" if filled_ones else None)))
        if case.sampler == "test3":
            mode: Any = case.mode or "recorded"  # the published format knows one behaviour only
            hand_off = HandOff(_needed("entry_num", case.entry_num), _needed("sd_mask", case.sd_mask), mode)
            return replace(fitted, hand_off=hand_off)
        options = DecoderOptions(_needed("draft_len", case.draft_len), _needed("bonus", case.bonus))
        SpeculativeDecoder(models, options)  # refuses what does not fit
        return replace(fitted, options=options)


def _needed(key: str, value: Stated | None) -> Stated:
    """Return what a case must state. Raises `KeyError`."""
    if value is None:
        raise KeyError(key)
    return value


NOT_RECORDED = float("nan")


@dataclass
class CaseResult:
    id: str  # of the case
    request: Request  # what was drawn
    draws: int = 0  # tokens recorded; identical + ties + wrong ones + not judged
    identical: int = 0  # recorded tokens that are the draw made here on the same prefix
    not_judged: int = 0  # tokens after a soft tie of `more_smooth`, where rounding may move more than a bound allows
    soft_ties: int = 0  # choices of `more_smooth` whose best codes lie within the budget, in units of τ
    map_positions: int = 0  # positions of f_hat, and `map_not_judged` those that are not judged, for the same reason
    map_not_judged: int = 0
    ties: list[Divergence] = field(default_factory=list)  # certified ones
    defects: list[Divergence] = field(default_factory=list)  # everything else
    delta_logits: float = NOT_RECORDED  # largest |Δ guided logits|; NaN where not recorded
    delta_f_hat: float = NOT_RECORDED  # largest |Δ f_hat|, after any recorded scale
    delta_image: float = NOT_RECORDED  # largest |Δ image|
    run: Trace | None = None  # the free run, tensors dropped, counts kept; None when nothing was run
    free_run: bool = False  # whether it reproduces every token

    @property
    def verdict(self) -> Verdict:
        """DEFECT, INCONCLUSIVE when nothing was judged, TIE or IDENTICAL."""
        if self.defects or self.draws == self.not_judged:
            return Verdict.DEFECT if self.defects else Verdict.INCONCLUSIVE
        return Verdict.TIE if self.ties else Verdict.IDENTICAL

    def defect(self, component: str, detail: str, scale: int = -1) -> None:
        """Note a defect that is no single token. Effects: on `defects`."""
        self.defects.append(Divergence(component, detail, self.request.seed, scale=scale))

    def compare(self, name: str, actual: Tensor, expected: Tensor, allowed: Tensor | float, scale: int) -> float:
        """Compare where a finite difference is allowed; return the largest there, NaN of none. Effects: `defects`."""
        delta = (actual.double() - expected.double()).abs()
        most = torch.as_tensor(allowed, dtype=delta.dtype, device=delta.device).expand(delta.shape)
        judged = most.isfinite()
        if not bool(judged.any()):
            return NOT_RECORDED
        if bool((judged & ~(delta <= most)).any()):
            where = int(torch.where(judged, delta / most, 0.0).argmax())
            rule = f"{name} is off by {float(delta.flatten()[where]):.3g}, allowed {float(most.flatten()[where]):.3g}"
            self.defect(name.partition("/")[0], rule, scale)
        return float(delta[judged].max())


@dataclass
class FileResult:
    """The judgement on one file; `unverified` says why nothing was compared."""

    path: str
    cases: list[CaseResult] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    unverified: str = ""

    @property
    def verdict(self) -> Verdict:
        own = [Verdict.DEFECT] * bool(self.defects) + [Verdict.INCONCLUSIVE] * bool(self.unverified)
        return worst_verdict(own + [case.verdict for case in self.cases])


def golden_totals(results: Sequence[FileResult]) -> str:
    """Return the last line: ``N of N cases, M draws compared``, and how many were not judged, where any was not."""
    cases = [case for result in results for case in result.cases]
    good = sum(case.verdict in (Verdict.IDENTICAL, Verdict.TIE) for case in cases)
    unjudged = sum(case.not_judged for case in cases)
    draws = count_of(sum(case.draws for case in cases) - unjudged, "draw")
    line = f"{good} of {count_of(len(cases), 'case')}, {draws} compared"
    return f"{line}, {unjudged} not judged" if unjudged else line


@dataclass(frozen=True)
class Ground:
    exact: Trace  # the float64 run on the same prefix
    margin_BL: Tensor  # how far a guided logit may be off, by position: what a margin is judged by
    error_BL: Tensor  # how far any guided logit of the float32 run may be off
    judged_BL: Tensor  # positions that are judged

    def judge_tokens(self, case: RecordedCase, tokens_BL: Tensor, run: Trace, result: CaseResult) -> None:
        """Certify every differing token as a tie, or call it a defect. Effects: on `result`."""
        models, request, noise = case.models, case.request, case.models.noise(case.request)
        labels = noise.labels(models.target.config.classes).tolist()
        at = torch.nonzero((run.tokens_BL != tokens_BL) & self.judged_BL).unbind(1)  # rows and positions
        if not len(at[0]):
            return
        allowed_N, error_N = self.margin_BL[at].double(), self.error_BL[at].double()
        E_NV = exponentials(noise, models.pyramid, *at)
        races = margins_of_differing_tokens(
            self.exact.shown.guided_BLV[at], E_NV, tokens_BL[at], request, allowed_N, [run.shown.guided_BLV[at]]
        )
        whole = torch.stack((*at, tokens_BL[at], run.tokens_BL[at]), 1).tolist()
        real = torch.stack((races.margin_N, races.bound_N, races.error_N), 1).tolist()
        for (image, draw, *tokens), reals, is_tie in zip(whole, real, races.is_tie_N(error_N).tolist(), strict=True):
            position, channel = models.pyramid.place(draw)
            divergence = Divergence(
                "tie" if is_tie else "token",
                "within the error budget of float64" if is_tie
                else "the recorded token is not the draw on its own prefix",
                request.seed, image, labels[image], models.pyramid.draws.level_of(draw), position, *tokens, *reals,
            )  # fmt: skip
            divergence = replace(divergence, channel=channel)
            (result.ties if is_tie else result.defects).append(divergence)


# Numbers that a recording is judged by: of what, and where each comes from.
LIMITS = {
    "image": 1e-5,  # absolute: the decoder of 32-pixel images rounds by 1e-6 between two CPU set-ups; ten times
    "logits cap": 1e-5,  # of the largest logit, times 1 + 2·|t|: budgets of the plain sampler reached 2.6e-6
    "f_hat cap": 4e-6,  # of the largest number in f_hat, at least 1: budgets reached 8.1e-7
    "smooth rounding": 2e-6,  # of the largest logit before guidance: digits reached 5e-7, tiny networks 9e-7
    "smooth f_hat": 2e-2,  # absolute: the recordings' README; where rounding may do more, f_hat is not judged
    "smooth margin": 0.25,  # absolute, of a race: a quarter of a nat is judgement; where rounding may do more, none
    "smooth logits": 0.5,  # absolute, of any one logit of a position: twice that margin
    "smooth ties": 0.005,  # share of a case's draws: "very few tokens" in the recordings' README
}


@dataclass(frozen=True)
class Allowances:
    logits_S: tuple[float, ...]  # largest difference of a guided logit from float64, by scale
    f_hat: float  # largest difference from the recorded f_hat, after any scale
    image: float  # largest difference from the recorded image


def allowances(case: RecordedCase, run: Trace) -> Allowances:
    """Return what a case may be off by: its own run is the cap, so that a plain sampler's error excuses nothing."""
    budgets = _budgets(case)
    worst = max(budgets, key=lambda budget: budget.rows)
    rows = min(worst.rows, LIMITS["logits cap"] * float(run.shown.rows_RLV.abs().max()))
    cap = LIMITS["f_hat cap"] * max(1.0, float(run.shown.f_hat_SBCPP.abs().max()))
    f_hat = min(cap, max(budget.f_hat for budget in budgets))
    budget, pyramid = replace(worst, rows=rows), case.models.pyramid
    logits_S = tuple(budget.guided(case.request.guidance, pyramid.ramp(si), si).logits for si in pyramid)
    return Allowances(logits_S, 2 * f_hat, LIMITS["image"])  # both sides may be off


def smooth_rounding(case: RecordedCase, run: Trace) -> float:
    """Return the root mean square of what rounding does to a logit before guidance, capped like a budget."""
    # as measured: `spread` has a factor of its own
    rms = max(budget.rows_rms for budget in _budgets(case)) / BUDGET_MARGIN
    return min(rms, LIMITS["smooth rounding"] * float(run.shown.rows_RLV.abs().max()))


def _budgets(case: RecordedCase) -> list[Budget]:
    """Of the networks that decide tokens, each on its own."""
    return [quick_budget(replace(case.models, target=network)) for network in case.sides()]
