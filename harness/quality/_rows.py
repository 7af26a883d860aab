"""Rows: what every set of images comes to, and KEPT, LOST or INCONCLUSIVE: what an interval says of a stated loss.

Promise: a function of samples and real data; every figure has its interval, and a loss is paired, image by image. LOST
comes wrongly with probability 5 % at most where a loss is just what is allowed (two bounds, 2.5 % each), and hardly
ever where nothing is lost; KEPT comes wrongly with 2.5 % at most (tests/unit/quality/test_simulated.py).

Two losses, because each alone can be fooled. `loss` is the published one: how much farther from real data the images
are than those of sequential decoding; where the target is too sharp, a worse network wins by it. `drift` is how much
farther from the target's own law they are than sequential decoding under the same seeds: below 0 only by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor

from harness.errors import InputError
from harness.protocol.pyramid import ScalePyramid
from harness.quality import _distances as distances
from harness.quality._distances import MOST_IMAGES, Blocks, Estimate, Jackknifed, Manifold, frechet_walk, images_for
from harness.quality._features import Real
from harness.quality._gather import ImageSet, check_enough
from harness.quality._nats import guilty_scale, loss_in_nats, nats_text

PER_FEATURE = 10  # images: with fewer the bias of finite N is no longer the 1/N that the jackknife takes out


@dataclass(frozen=True)
class QualityRow:
    """What one set of images came to; None where it does not apply or nothing tells."""

    name: str  # of the source
    contract: str  # letter of what it claims; empty for the draft
    draft_len: str  # of its settings, as text; empty for sequential decoding
    images: int  # in the set
    width: int = 0  # features that they are measured by, labels among them
    calls: float | None = None  # mean target calls an image
    seconds: float = 0.0  # of its decodes
    real: Estimate | None = None  # Fréchet distance to real data
    real_kernel: Estimate | None = None  # kernel distance to real data
    law: Estimate | None = None  # Fréchet distance to the target's law, sequential decoding under other seeds
    law_kernel: Estimate | None = None  # kernel distance to it
    loss: Estimate | None = None  # paired, to real data
    drift: Estimate | None = None  # paired, to the target's law
    accuracy: Estimate | None = None  # share of images that are recognised as what was asked for
    precision: Estimate | None = None  # share of images within the real manifold
    coverage: Estimate | None = None  # share of the real manifold that images reach
    nats: Estimate | None = None  # lost against the target's law, an image; no upper end where no law is shown
    nats_S: tuple[Estimate, ...] = ()  # by scale
    nats_open: str = ""  # why there is no upper end
    failed: str = ""  # why there is no figure
    yardstick: bool = False  # it is drawn beside every run, and claims nothing

    @property
    def losses(self) -> list[Estimate]:
        """What the verdict is on."""
        return [estimate for estimate in (self.loss, self.drift) if estimate is not None]


@dataclass(frozen=True)
class Yardstick:
    """What every row is measured against."""

    classes: int  # that are recognised, and whose labels are joined to the features; 0 = none
    law: Blocks  # sequential decoding under other seeds
    real: Real | None  # real data; None = none is known
    manifold: Manifold | None  # of the real data; None where their features are not there
    pyramid: ScalePyramid  # scales

    def walks(self, actual: Blocks) -> tuple[Jackknifed, Jackknifed | None]:
        """Return the Fréchet distances to the target's law, and to real data."""
        return frechet_walk(actual, self.law), frechet_walk(actual, self.real.law) if self.real else None


def measure_rows(
    samples: Sequence[ImageSet], real: Real | None, classes: int, pyramid: ScalePyramid, blocks: int
) -> list[QualityRow]:
    """Return a row for every sample but that of the law; of no `classes` labels are not judged.

    Samples are sequential decoding, the target's law (where there are features), and the others; blocks are of
    independent images, at least two in each. Raises `InputError`: an interval needs more, or features are others.
    """
    base, *others = samples
    check_enough(len(base.labels_N), blocks)
    width = base.features_ND.shape[1]
    for sample in samples[: 2 if width else 1]:
        if sample.failed:
            raise InputError("models", sample.source.name, f"draws no image ({sample.failed})", "run verify first")
    if not width:
        return [_begun(sample, pyramid) for sample in samples]
    law, *others = others
    cut = Blocks.cut(joined(law, classes), blocks)
    if real is not None and len(real.law.sum_D) != cut.features_ND.shape[1]:
        rule = f"has {len(real.law.sum_D)} features, and the images {cut.features_ND.shape[1]}"
        raise InputError("real", real.name, rule, "pass statistics of the same --features")
    manifold = Manifold.of(real.features_RD) if real is not None and real.features_RD is not None else None
    yardstick = Yardstick(classes, cut, real, manifold, pyramid)
    usual = yardstick.walks(Blocks(joined(base, classes), cut.edges))
    first = replace(_row(base, yardstick, usual), loss=None, drift=None)  # it is what losses are against
    return [first, *(_row(sample, yardstick, usual) for sample in others)]


def joined(sample: ImageSet, classes: int) -> Tensor:
    """Return features of a sample, joined by what was asked for where there are classes."""
    if not classes:
        return sample.features_ND
    return distances.with_labels(sample.features_ND, sample.labels_N.to(sample.features_ND.device), classes)


def _begun(sample: ImageSet, pyramid: ScalePyramid) -> QualityRow:
    """Return a row without distances."""
    source, N, nats_NX = sample.source, len(sample.labels_N), sample.nats_NX
    row = QualityRow(
        source.name, sample.contract, source.length, N, seconds=sample.seconds, failed=sample.failed,
        yardstick=not source.factory,
    )  # fmt: skip
    if sample.failed:
        return row
    if len(sample.calls_N):
        row = replace(row, calls=float(sample.calls_N.double().mean()))
    if not len(nats_NX):
        return replace(row, nats_open="it shows a law of some images alone" if source.factory else "")
    (*nats_S, nats), why = loss_in_nats(nats_NX, pyramid.draws.L)
    return replace(row, nats=nats, nats_S=tuple(nats_S), nats_open=why)


def _row(sample: ImageSet, yardstick: Yardstick, usual: tuple[Jackknifed, Jackknifed | None]) -> QualityRow:
    """Return the row of a sample; `usual` are the distances of sequential decoding."""
    row, N = _begun(sample, yardstick.pyramid), len(sample.labels_N)
    if sample.failed:
        return row
    blocks = Blocks(joined(sample, yardstick.classes), yardstick.law.edges)
    law, real = yardstick.walks(blocks)
    row = replace(
        row,
        width=blocks.features_ND.shape[1],
        law=law.estimate,
        law_kernel=distances.kernel(blocks, yardstick.law.parts),
        drift=law.minus(usual[0]).estimate,
        accuracy=distances.share(int((sample.classes_N == sample.labels_N).sum()), N) if yardstick.classes else None,
    )
    if real is not None and usual[1] is not None:
        row = replace(row, real=real.estimate, loss=real.minus(usual[1]).estimate)
    if (manifold := yardstick.manifold) is not None:
        precision, coverage = manifold.of_blocks(blocks)
        near = distances.kernel(blocks, distances.slices(manifold.features_RD, blocks))
        row = replace(row, real_kernel=near, precision=precision, coverage=coverage)
    return row


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
        return (
            Quality.LOST,
            f"{said}, above {most:g} in {row.images} images; scale {guilty_scale(row.nats_S)} loses most",
        )
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
