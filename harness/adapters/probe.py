"""What the parts of a checkout are asked, and what is right: plain runs of the reference along random tokens.

Promise: every part is asked in a state that is right, whatever the other parts do, and compared with `reference/`
alone; the first wrong number of a law is reported with its rows, positions and size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.adapters.checkout import crash_of
from harness.adapters.published import Published
from harness.adapters.weights import on_device
from harness.judge.components import INPUT_ULPS
from harness.judge.part_law import Broken, PartLaw, PartVerdict, require
from harness.models.network import Network
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates
from harness.reference.sequential import sample_sequential
from harness.reference.steps import guidance_labels
from harness.rounding.budget import Budget

MOST_FIRSTS = 6  # first scales of windows; more tell nothing new
HIDDEN = -1e4  # an additive mask may hold any large negative number for -inf
MOST_ROWS = 10_000  # positions of a tag; more than any pyramid has


class Told(Exception):  # noqa: N818
    """Raised inside a question about a part: what it is, where that is no mistake."""


@dataclass(frozen=True)
class ProbeSide:
    """One network as the harness knows it, as the checkout built it, and the reference's run along the tokens."""

    network: Network
    module: Any
    run: Intermediates
    cond_RD: Tensor
    kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of every block, all positions, once they are known


@dataclass
class Probe:
    """The questions' common ground.

    Args:
        code: the checkout's modules.
        request: labels and guidance.
        budget: how far rounding may move a number.
        tokens_BL: that were made final, or are drafted: uniform over the codebook.
        draft: that side's run along them.
        target: likewise.
        threshold: `similarity_thresh` that the object was built with; None: its own default.
        rows: what was found so far.
    """

    code: Published
    request: Request
    budget: Budget
    tokens_BL: Tensor
    draft: ProbeSide
    target: ProbeSide
    threshold: float | None = None
    rows: list[PartLaw] = field(default_factory=list)

    @classmethod
    def of(cls, code: Published, request: Request, budget: Budget) -> Probe:
        """Draw tokens and run the reference along them."""
        models = code.models
        generator = torch.Generator().manual_seed(request.seed)
        shape = (request.B, models.pyramid.L)
        tokens_BL = torch.randint(models.target.config.V, shape, generator=generator).to(models.device)
        sides = []
        for network, module in ((models.draft, code.draft), (models.target, code.target)):
            run = sample_sequential(network, models.vae, request, models.noise(request), tokens_BL)
            assert run.intermediates is not None
            labels_R = guidance_labels(models.noise(request).labels(network.config.classes), network.config.classes)
            cond_RD = network.weights["class_emb.weight"][labels_R]
            sides.append(ProbeSide(network, module, run.intermediates, cond_RD))
        return cls(code, request, budget, tokens_BL, draft=sides[0], target=sides[1])

    @property
    def pyramid(self) -> Any:
        """Scales."""
        return self.code.models.pyramid

    def windows(self) -> list[tuple[int, int]]:
        """Return (first scale, number of scales): one to three scales, on large pyramids from some scales only."""
        S = self.pyramid.S
        firsts = range(S) if S <= MOST_FIRSTS else sorted({0, 1, 2, S // 2, S - 2, S - 1})
        return [(first, count) for first in firsts for count in (1, 2, 3) if first + count <= S]

    def drafted(self, first: int, count: int) -> list[Tensor]:
        """Return the tokens of a window, a tensor a scale."""
        return [self.tokens_BL[:, self.pyramid.span(si)].clone() for si in range(first, first + count)]

    def f_hat(self, done: int) -> Tensor:
        """Return f_hat after `done` scales."""
        f_hat_SBCPP = self.target.run.f_hat_SBCPP
        return f_hat_SBCPP[done - 1].clone() if done else torch.zeros_like(f_hat_SBCPP[0])

    def input_error(self, x: Tensor) -> float:
        """Return how far rounding may move an input."""
        relative = max(2 * self.budget.f_hat, INPUT_ULPS[torch.float32] * torch.finfo(torch.float32).eps)
        return relative * max(1.0, float(x.abs().max()))

    def law(self, part: str, law: str, statement: str, test: Callable[[], None]) -> None:
        """Ask one law; whatever the code does, there is a row. Effects: on `rows`."""
        verdict, found = PartVerdict.HELD, ""
        try:
            with self.code.checkout.active(), on_device(self.code.models.device), torch.no_grad():
                test()
        except Told as told:
            verdict, found = PartVerdict.TOLD, str(told)
        except Broken as broken:
            verdict, found = PartVerdict.BROKEN, str(broken)
        except Exception as error:
            verdict, found = PartVerdict.CRASHED, crash_of(error, self.code.checkout.folder)
            if where := self.code.card_asked(error):
                verdict = PartVerdict.ABSENT
                found = f"not asked: it wants a GPU by itself ({where}); pass --device cuda, on a machine that has one"
        self.rows.append(PartLaw(part, law, statement, verdict, found))

    def absent(self, part: str) -> None:
        """Say that the code has no such part."""
        found = f"models/var.py has no {part}"
        self.rows.append(PartLaw(part, "parts.there", "The part is there.", PartVerdict.ABSENT, found))


def require_tensor(value: object, shape: Sequence[int], what: str) -> Tensor:
    """Return a tensor of a shape, or raise `Broken` with what stands there."""
    require(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    assert isinstance(value, Tensor)
    require(tuple(value.shape) == tuple(shape), f"{what} is {tuple(value.shape)}, not {tuple(shape)}")
    return value


def require_close(
    actual: Tensor, due: Tensor, error: float, what: str, why: Mapping[str, Tensor] | None = None
) -> None:
    """Raise `Broken` where two tensors of one shape differ by more than `error`.

    Args:
        actual: the code's.
        due: the reference's.
        error: largest difference that rounding explains.
        what: for the message.
        why: what else the code's may equal, by a clause that explains it.
    """
    far = (actual.double() - due.double()).abs()
    if bool((far <= error).all()):  # NaN compares False
        return
    largest, count = float(far.nan_to_num(torch.inf).max()), int((~(far <= error)).sum())
    said = f"{what}: {count} of {far.numel()} numbers differ, by up to {largest:.3g} (rounding explains {error:.2g})"
    for clause, other in (why or {}).items():
        if other.shape == actual.shape and bool(((actual - other).abs() <= 2 * error).all()):
            raise Broken(f"{said}: {clause}")
    raise Broken(said)


def require_sight(mask_nm: Tensor, what: str) -> Tensor:
    """Return who sees whom by a mask (n, m), or raise `Broken` at its first entry that says neither.

    A boolean mask says it itself; of an additive one 0 is visible and `HIDDEN` or less is not.
    """
    if mask_nm.dtype is torch.bool:
        return mask_nm.cpu()
    mask_nm = mask_nm.cpu()
    neither = torch.nonzero(~((mask_nm == 0) | (mask_nm <= HIDDEN))).tolist()  # NaN compares False
    if neither:
        row, column = neither[0]
        found = f"{len(neither)} entries neither show nor hide, first (row, column) {(row, column)}"
        raise Broken(f"{what}: {found} is {float(mask_nm[row, column]):g}, not 0 or {HIDDEN:g} and less")
    return mask_nm == 0
