"""KEPT, LOST or INCONCLUSIVE: what an interval says of a stated loss.

Promise: no figure is computed here but the N that would decide. LOST comes wrongly with probability 5 % at most where a
loss is just what is allowed (two bounds, 2.5 % each), and hardly ever where nothing is lost; KEPT comes wrongly with
2.5 % at most (tests/unit/quality/test_simulated.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from harness.errors import InputError
from harness.quality._distances import MOST_IMAGES, Estimate, images_for
from harness.quality._rows import QualityRow
from harness.quality._two_samples import SMALL

PER_FEATURE = 10  # images: with fewer the bias of finite N is no longer the 1/N that the jackknife takes out


class Quality(StrEnum):
    """The answers; the exit status of the command line follows from them."""

    KEPT = "KEPT"
    LOST = "LOST"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_status(self) -> int:
        """0 the claim holds, 1 it does not, 3 inconclusive."""
        return {"KEPT": 0, "LOST": 1, "INCONCLUSIVE": 3}[self.value]


def check_loss(most: float | None) -> None:
    """Refuse a loss that no number of images could show. Raises `InputError`."""
    if most is not None and not (math.isfinite(most) and most > 0):
        raise InputError("max_loss", most, "must be above 0: no interval has width 0", "pass --max-loss 0.1")


def quality_verdict(row: QualityRow, most: float) -> Quality:
    """Return whether a set of images is as good as sequential decoding's, up to a loss.

    LOST: the lower end of either loss's interval is above `most`, the decoder gave no image, or it claims the law
    (contract B) and its tokens have another one. KEPT: both upper ends are below `most`.
    """
    other_law = row.contract == "B" and row.tokens is not None and row.tokens.p < SMALL
    if row.failed or other_law:
        return Quality.LOST
    if too_few(row) or not row.losses:
        return Quality.INCONCLUSIVE
    if any(loss.low > most for loss in row.losses):
        return Quality.LOST
    return Quality.KEPT if all(loss.high < most for loss in row.losses) else Quality.INCONCLUSIVE


def too_few(row: QualityRow) -> bool:
    """Tell whether the intervals of a row rest on too few images to be believed."""
    return row.images < PER_FEATURE * row.width


def worst(verdicts: Sequence[Quality]) -> Quality:
    """Return the worst verdict: LOST, then INCONCLUSIVE, also for none, then KEPT."""
    order = (Quality.LOST, Quality.INCONCLUSIVE, Quality.KEPT)
    return next((verdict for verdict in order if verdict in verdicts), Quality.INCONCLUSIVE)


def images_to_decide(row: QualityRow, most: float) -> int:
    """Return the N at which every loss's interval would lie on one side of `most`, if the loss is what it seems."""
    return max((images_for(row.images, loss.half, abs(loss.value - most)) for loss in row.losses), default=MOST_IMAGES)


def images_to_resolve(losses: Sequence[Estimate], images: int, most: float) -> int:
    """Return the N at which a decoder that loses nothing is KEPT: its interval is half as wide as `most`."""
    return max((images_for(images, loss.half, most / 2) for loss in losses), default=MOST_IMAGES)


def why_quality(row: QualityRow, most: float) -> str:
    """Return one clause on the verdict: which figure decides, or which N would."""
    if row.failed:
        return f"it gives no image: {row.failed}"
    if row.contract == "B" and row.tokens is not None and row.tokens.p < SMALL:
        return f"its tokens have another law: {row.tokens}"
    if too_few(row):
        need = PER_FEATURE * row.width
        return f"{row.images} images are too few for {row.width} features: {need} or more would decide"
    named = [(word, loss) for word, loss in (("loss", row.loss), ("drift", row.drift)) if loss is not None]
    if not named:
        return "nothing was measured: no real data, and no law"
    over = [f"{word} {loss}" for word, loss in named if loss.low > most]
    if over:
        return f"{' and '.join(over)}, above {most:g}"
    if all(loss.high < most for _, loss in named):
        return f"{' and '.join(f'{word} {loss}' for word, loss in named)}, below {most:g}"
    need = images_to_decide(row, most)
    many = "no feasible number of" if need >= MOST_IMAGES else f"about {need}"
    undecided = [f"{word} {loss}" for word, loss in named if not loss.high < most]
    return f"{' and '.join(undecided)}, not on one side of {most:g}: {many} images would decide"
