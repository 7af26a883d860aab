"""Rows: what every set of images comes to, against real data, the target's law, and sequential decoding.

Promise: a function of samples and real data; every figure has its interval, and a loss is paired, image by image.

Two losses, because each alone can be fooled. `loss` is the published one: how much farther from real data the images
are than those of sequential decoding; where the target is too sharp, a worse network wins by it. `drift` is how much
farther from the target's own law they are than sequential decoding under the same seeds: below 0 only by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from harness.errors import InputError
from harness.protocol.pyramid import ScalePyramid
from harness.quality._distances import (
    Blocks,
    Estimate,
    Jackknifed,
    Manifold,
    frechet_walk,
    kernel,
    share,
    slices,
    with_labels,
)
from harness.quality._features import Real
from harness.quality._gather import ImageSet, check_enough
from harness.quality._nats import loss_in_nats


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

    Samples are sequential decoding, the target's law (not where there are no features), and the others, features on one
    device; blocks are of independent images, at least two in each. Raises `InputError` where an interval needs more, or
    real data have other features.
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
    return with_labels(sample.features_ND, sample.labels_N.to(sample.features_ND.device), classes)


def _begun(sample: ImageSet, pyramid: ScalePyramid) -> QualityRow:
    """Return a row without distances."""
    source, N, nats_NX = sample.source, len(sample.labels_N), sample.nats_NX
    row = QualityRow(source.name, sample.contract, source.length, N, seconds=sample.seconds, failed=sample.failed)
    row = replace(row, yardstick=not source.factory)
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
        law_kernel=kernel(blocks, yardstick.law.parts),
        drift=law.minus(usual[0]).estimate,
        accuracy=share(int((sample.classes_N == sample.labels_N).sum()), N) if yardstick.classes else None,
    )
    if real is not None and usual[1] is not None:
        row = replace(row, real=real.estimate, loss=real.minus(usual[1]).estimate)
    known = yardstick.real.features_RD if yardstick.real is not None else None
    if known is not None and yardstick.manifold is not None:
        precision, coverage = yardstick.manifold.of_blocks(blocks)
        near = kernel(blocks, slices(known, blocks))
        row = replace(row, real_kernel=near, precision=precision, coverage=coverage)
    return row
