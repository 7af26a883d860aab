"""What a judgement is made from: one decode beside the reference's, and how far rounding may set them apart."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from harness.models import ModelPair
from harness.protocol import Intermediates, Request, Trace
from harness.protocol.noise import Noise, RowsOf
from harness.reference.sequential import GrowingCache, KnownScales, sample_sequential, sample_shown
from harness.rounding import Allowance, Budget

# One scale's soft codes in float32 against float64 move f_hat by some 1e-4 where τ is small; another order of the same
# operations by as much again, elsewhere (tests/unit/judge/test_smooth.py).
SMOOTH_ROUNDING = 8


Named = tuple[str, str]  # the component that made a wrong tensor, and a clause on why


@dataclass(frozen=True)
class WrongTensor:
    """A tensor that is not the reference's, and the component that made it; `detail` is a clause on why."""

    scale: int
    component: str
    detail: str
    is_f_hat: bool = False  # which is made of its scale's tokens; what else is shown comes before them


MOST_SEARCHED = 8  # of a run's wrong tensors, some seconds of a core each


@dataclass
class Searches:
    """The causes that were searched in a run; what comes before all others of its setting is always searched."""

    count: int = 0
    causes: dict[tuple[int, int], str] = field(default_factory=dict)  # component, by setting and kind of tensor
    first: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # scale, task and row, by setting

    def known(self, setting: int, kind: int, place: tuple[int, int, int]) -> str | None:
        """Return what the first tensor of a kind was searched to be, where another search would cost too much."""
        is_first = place <= self.first.get(setting, place)
        return None if is_first or self.count < MOST_SEARCHED else self.causes.get((setting, kind))

    def add(self, setting: int, kind: int, place: tuple[int, int, int], component: str) -> None:
        """Remember what a search came to."""
        self.count += 1
        self.causes.setdefault((setting, kind), component)
        self.first[setting] = min(place, self.first.get(setting, place))


@dataclass(frozen=True)
class Evidence:
    """One decode and its oracle."""

    models: ModelPair  # as both sides used them
    request: Request  # what was drawn
    actual: Trace  # the decoder's trace
    expected: Trace  # the reference's under the same noise
    budget: Budget  # how far rounding may move rows and f_hat in this mode
    greedy: bool = False  # both sides take the most likely token in place of a draw
    consumed_BL: Tensor | None = None  # tokens that `expected` ran along; None = its own ones, as a free run
    # what the draws of `expected` cost (`judge.ties.costs_of_draws`), where somebody has them already
    costs_SB3: Tensor | None = None
    # by image, scales without a target pass, which have no target tensors to check (contract C)
    unverified: tuple[frozenset[int], ...] = ()
    may_differ_from: int | None = None  # under contracts B and C the tokens of scales before this one are claimed
    searches: Searches | None = None  # of the run; None: every cause is searched
    decode: tuple[int, int] = (0, 0)  # its setting and task
    is_exact: bool = False  # rounding is known not to be what is wrong
    # the request's numbers, those that the reference read; never the decoder's copy
    noise: Noise | None = field(default=None, repr=False)
    # keys and values of `expected`, where somebody kept them: what it knows is not computed again
    cache: GrowingCache | None = field(default=None, repr=False)
    # under `more_smooth`: `expected` along it, in float64
    exact: Intermediates | None = field(default=None, repr=False)

    @property
    def numbers(self) -> Noise:
        """The request's numbers; drawn anew where the reference's are not at hand."""
        return self.noise or self.models.noise(self.request)

    def allowance(self, si: int) -> Allowance:
        """Return how far rounding may move this request's guided logits at one scale, and f_hat."""
        return self.budget.guided(self.request.guidance, self.models.pyramid.ramp(si), si)

    @property
    def f_hat_error(self) -> float:
        """How far f_hat may be from that of `expected`, absolute."""
        error, made = 2 * self.budget.f_hat, self.expected.intermediates
        if self.exact is None or made is None:
            return error
        moved = (made.f_hat_SBCPP - self.exact.f_hat_SBCPP).abs().amax()
        return error + SMOOTH_ROUNDING * float(moved)

    def along(self) -> Self:
        """Return the evidence with the reference run along the decoder's own tokens; itself where it did already.

        `expected.tokens_BL` are then what the reference draws on the decoder's prefix: one tie does not cascade.
        """
        models, noise, shown = self.models, self.numbers, self.actual.intermediates
        if self.request.more_smooth and shown is not None:
            own, named = self.expected.shown.named(), shown.named()
            # the reference's own in the place of what is not finite, so that it spoils nothing else
            finite = {name: torch.where(each.isfinite(), each, own[name].to(each)) for name, each in named.items()}
            asked = self.request, noise, Intermediates(**finite), self.greedy
            run, exact = (sample_shown(pair.target, pair.vae, *asked) for pair in (models, models.wide()))
            return replace(self, expected=run, exact=exact.intermediates, costs_SB3=None)
        consumed_BL = self.expected.tokens_BL if self.consumed_BL is None else self.consumed_BL
        differ_BL = self.actual.tokens_BL != consumed_BL
        rows = torch.nonzero(differ_BL.any(1)).flatten()
        if not len(rows):
            return self
        labels = tuple(noise.labels(models.target.config.classes)[rows].tolist())
        request = replace(self.request, labels=labels, images=None, seeds=None)
        forced_bL, numbers = self.actual.tokens_BL[rows], RowsOf(noise, rows)
        made, known = self.expected.intermediates, None
        if self.cache is not None and made is not None:  # of the first scale that differs input and logits are the same
            count = models.pyramid.draws.level_of(int(torch.nonzero(differ_BL.any(0))[0])) + 1
            known = KnownScales.of(made, self.cache, models.pyramid, count, self.request.rows_of(*rows.tolist()))
        run = sample_sequential(models.target, models.vae, request, numbers, forced_bL, self.greedy, known=known)
        if len(rows) < self.request.B:
            run = _merged(self.expected, run, rows, self.request)
        return replace(self, expected=run, consumed_BL=self.actual.tokens_BL, costs_SB3=None, cache=None)


@torch.inference_mode()
def _merged(all_of: Trace, some: Trace, rows: Tensor, request: Request) -> Trace:
    """Return a copy of a trace of which some images are another's."""
    old, new = all_of.shown, some.shown
    both = torch.tensor(request.rows_of(*rows.tolist()), device=rows.device)
    places = {"x_RLD": (0, both), "rows_RLV": (0, both), "guided_BLV": (0, rows), "f_hat_SBCPP": (1, rows)}
    others = new.named()
    merged = {name: tensor.index_copy(*places[name], others[name]) for name, tensor in old.named().items()}
    return replace(
        all_of, tokens_BL=all_of.tokens_BL.index_copy(0, rows, some.tokens_BL),
        f_hat_BCPP=all_of.f_hat_BCPP.index_copy(0, rows, some.f_hat_BCPP), intermediates=Intermediates(**merged),
    )  # fmt: skip
