"""KEPT, LOST or INCONCLUSIVE: what an interval says of a stated loss.

Promise: no figure is computed here but the N that would decide. LOST comes wrongly with probability 5 % at most where a
loss is just what is allowed (two bounds, 2.5 % each), and hardly ever where nothing is lost; KEPT comes wrongly with
2.5 % at most (tests/unit/quality/test_simulated.py).
"""

import math
from collections.abc import Sequence
from enum import StrEnum

from harness.errors import InputError
from harness.quality._distances import MOST_IMAGES, Estimate, images_for
from harness.quality._nats import guilty_scale, nats_text
from harness.quality._rows import QualityRow

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


def check_loss(name: str, most: float | None) -> None:
    """Refuse a loss, by its option's name, that no number of images could show. Raises `InputError`."""
    if most is not None and not (math.isfinite(most) and most > 0):
        remedy = "pass --max-loss 0.1, --max-nats 0.5"
        raise InputError(name, most, "must be above 0: no interval has width 0", remedy)


def quality_verdict(row: QualityRow, most: float | None, most_nats: float | None = None) -> Quality:
    """Return whether images are as good as sequential decoding's, up to a loss. Arguments as `judge_quality`."""
    return judge_quality(row, most, most_nats)[0]


def judge_quality(row: QualityRow, most: float | None, most_nats: float | None = None) -> tuple[Quality, str]:
    """Return the verdict on a set of images, and one clause on it: which figure decides, or which N would.

    LOST: the lower end of an interval is above what is allowed, or the decoder gave no image. KEPT: all upper ends are
    below. Allowed are `most` squared standard deviations of loss and drift, and `most_nats` nats an image; what is None
    is not judged.
    """
    if row.failed:
        return Quality.LOST, f"it gives no image: {row.failed}"
    answers = [_judged_distances(row, most)] if most is not None else []
    answers += [_judged_nats(row, most_nats)] if most_nats is not None else []
    verdict = worst([quality for quality, _ in answers])
    return verdict, "; ".join(clause for quality, clause in answers if quality is verdict)


def _judged_distances(row: QualityRow, most: float) -> tuple[Quality, str]:
    need = PER_FEATURE * row.width
    if row.images < need:
        few = f"{row.images} images are too few for {row.width} features: {need} or more would decide"
        return Quality.INCONCLUSIVE, few
    named = [(word, loss) for word, loss in (("loss", row.loss), ("drift", row.drift)) if loss is not None]
    if not named:
        return Quality.INCONCLUSIVE, "nothing was measured: no real data, and no law"
    over = [f"{word} {loss}" for word, loss in named if loss.low > most]
    if over:
        return Quality.LOST, f"{' and '.join(over)}, above {most:g}"
    if all(loss.high < most for _, loss in named):
        return Quality.KEPT, f"{' and '.join(f'{word} {loss}' for word, loss in named)}, below {most:g}"
    undecided = [f"{word} {loss}" for word, loss in named if not loss.high < most]
    return Quality.INCONCLUSIVE, _open(" and ".join(undecided), most, images_to_decide(row.images, row.losses, most))


def _judged_nats(row: QualityRow, most: float) -> tuple[Quality, str]:
    if row.nats is None:
        is_target = not row.nats_open
        return (Quality.KEPT, "it is the target's law") if is_target else (Quality.INCONCLUSIVE, row.nats_open)
    said = f"{nats_text(row.nats)} nats"
    if row.nats.low > most:
        return Quality.LOST, f"{said}, above {most:g}; scale {guilty_scale(row.nats_S)} loses most"
    if row.nats.high < most:
        return Quality.KEPT, f"{said}, below {most:g}"
    if row.nats_open:
        return Quality.INCONCLUSIVE, f"{said}, and no upper end: {row.nats_open}"
    return Quality.INCONCLUSIVE, _open(said, most, images_to_decide(row.images, [row.nats], most))


def _open(figures: str, most: float, need: int) -> str:
    many = "no feasible number of" if need >= MOST_IMAGES else f"about {need}"
    return f"{figures}, not on one side of {most:g}: {many} images would decide"


def images_to_decide(images: int, losses: Sequence[Estimate], most: float) -> int:
    """Return the N at which every loss's interval would lie on one side of `most`, if the loss is what it seems."""
    return max((images_for(images, loss.half, abs(loss.value - most)) for loss in losses), default=MOST_IMAGES)


def worst(verdicts: Sequence[Quality]) -> Quality:
    """Return the worst verdict: LOST, then INCONCLUSIVE, also for none, then KEPT."""
    order = (Quality.LOST, Quality.INCONCLUSIVE, Quality.KEPT)
    return next((verdict for verdict in order if verdict in verdicts), Quality.INCONCLUSIVE)


def images_to_resolve(losses: Sequence[Estimate], images: int, most: float) -> int:
    """Return the N at which a decoder that loses nothing is KEPT: its interval is half as wide as `most`."""
    return max((images_for(images, loss.half, most / 2) for loss in losses), default=MOST_IMAGES)
