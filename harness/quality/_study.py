"""A whole measurement: what images are measured by, what is asked, and the rows that come of it.

Promise: one order of things for `quality` and for `verify --max-loss`; the file of `quality --json` says what was
measured on what.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import torch

from harness.clock import timed
from harness.decoders import is_own_decoder
from harness.errors import InputError, StopSignal
from harness.files import compact, finite
from harness.models import ModelPair
from harness.protocol import Request, Settings
from harness.provenance import versions
from harness.quality._distances import BLOCKS, LEVEL, check_blocks
from harness.quality._draw import BASE, LAW, Source, portions
from harness.quality._features import Features, Real, load_features, load_real
from harness.quality._gather import USUAL, Conditions, ImageSet, check_enough, gather
from harness.quality._rows import Quality, QualityRow, check_loss, judge_quality, measure_rows, quality_verdict, worst
from harness.rounding import precision
from harness.runs import default_batch

SCHEMA = 2  # docs/quality.md describes it


@dataclass(frozen=True)
class Measured:
    models: str  # name of the pair
    device: str  # where it was drawn
    cfg: float  # guidance value
    features: str  # name of what images were measured by
    unit: str  # of a Fréchet distance
    real: str  # name of the real data; empty = none
    blocks: int  # of the intervals
    rows: list[QualityRow]  # sequential decoding first
    most: float | None = None  # loss that is allowed; None = none was stated
    most_nats: float | None = None  # in nats an image; likewise
    seconds: float = 0.0  # of the drawing
    stopped: int = 0  # signal that ended it early, or 0; the rows are of what was drawn until then

    @property
    def verdicts(self) -> list[Quality]:
        """The verdict on every row after the first; none where no loss was stated."""
        if self.most is None and self.most_nats is None:
            return []
        return [quality_verdict(row, self.most, self.most_nats) for row in self.rows[1:]]

    def why(self, row: QualityRow) -> str:
        """Return one clause on the verdict on a row."""
        return judge_quality(row, self.most, self.most_nats)[1]

    @property
    def verdict(self) -> Quality | None:
        """The worst verdict on what is under test; None where nothing is, or no loss was stated."""
        rows = zip(self.rows[1:], self.verdicts, strict=False)
        judged = [verdict for row, verdict in rows if not row.yardstick]
        return worst(judged) if judged else None

    def values(self) -> dict[str, object]:
        """Return the run as JSON values; null where there is no figure."""
        rows = [finite(asdict(row)) for row in self.rows]
        for values, verdict in zip(rows[1:], self.verdicts, strict=bool(self.verdicts)):
            values["verdict"] = verdict.value
        header = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        return {"schema": SCHEMA, **header, "level": LEVEL, "rows": rows}

    def document(self) -> bytes:
        """Return the run as JSON, with what made it."""
        return compact({**self.values(), "precision": precision(), "versions": versions()})


USUAL_IMAGES = 10_000
FEW = 256  # features: below it a GPU's eigenvalues take longer than a CPU's


@dataclass(frozen=True)
class Means:
    """What images are measured by; without real data only the target's law is known."""

    features: Features
    real: Real | None


# where distances are not asked for: nats need none
NO_MEANS = Means(Features(), None)


def digits_means() -> Means:
    """Return what ships with the package."""
    features = load_features()
    return Means(features, Real.of("held-out digits of MNIST", *load_real(), features.classes))


@dataclass(frozen=True)
class Study:
    """What is asked. Raises `InputError` for fewer images than two a block, or a loss that nothing could show."""

    others: Sequence[Source]  # sources besides sequential decoding and the target's law
    images: int = USUAL_IMAGES  # of every source
    batch: int = 0  # images a batch; 0 = as many as device and memory like
    labels: tuple[int, ...] = ()  # in turn; empty = all
    request: Request = field(default_factory=lambda: Request((0,)))  # seed, guidance and filters
    blocks: int = BLOCKS  # of the intervals
    most: float | None = None  # loss that is allowed; None = no verdict
    most_nats: float | None = None  # in nats an image; likewise

    def total(self, means: Means) -> int:
        """Return how many images are drawn."""
        return self.images * len(self.sources(means))

    def sources(self, means: Means) -> list[Source]:
        """Return what is drawn: sequential decoding, the target's law where distances are measured, and the others."""
        return [BASE, *([LAW] if means.features.D else []), *self.others]

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        check_enough(self.images, self.blocks)
        check_loss("max_loss", self.most)
        check_loss("max_nats", self.most_nats)


def decoder_sources(factory: str, settings: Sequence[Settings]) -> list[Source]:
    """Return a source for every setting of a decoder under test."""
    own, sources = is_own_decoder(factory), []
    for each in settings:
        words = [each.policy if own else factory]
        words += [f"draft_len {each.draft_len}"] if each.draft_len not in ("", 5, "5") else []
        words += [word for word in ("bonus", "graphs", "compiled") if getattr(each, word)]
        words += [f"{name}={value}" for name, value in each.options if name != "checkout"]
        sources.append(Source(" ".join(filter(None, words)), factory, each))
    return sources


def run_study(
    models: ModelPair, means: Means, study: Study, conditions: Conditions = USUAL,
    progress: Callable[[int], None] = lambda images: None,
) -> Measured:  # fmt: skip
    """Draw what is asked, and measure it; `conditions` and `progress` as of `gather`.

    Raises `InputError` for labels or filters that the networks do not have, and as `gather` and `measure_rows` do, and
    `StopSignal` where a signal came before there were enough images for an interval.
    """
    sources, features, config = study.sources(means), means.features, models.target.config
    labels = study.labels or tuple(range(models.conditions))
    check_labels(models, features, labels)
    own_process = any(source.factory and not is_own_decoder(source.factory) for source in sources)
    batch = study.batch or min(default_batch(models, own_process).images, study.images)
    requests = portions(study.images, batch, labels, models.conditioned(study.request))
    requests[0].check_for(config)

    def is_lost(samples: list[ImageSet]) -> bool:
        """Tell whether these images lose more than all may: their interval holds at every number of images."""
        images = len(samples[0].labels_N)
        if study.most_nats is None or images < 2 * study.blocks:
            return False
        rows = [row for row in measure_rows(samples, None, 0, models.pyramid, study.blocks) if not row.yardstick]
        most = study.most_nats * study.images / images
        return bool(rows) and all(quality_verdict(row, None, most) is Quality.LOST for row in rows)

    if not features.D:  # a distance wants all images
        conditions = replace(conditions, settles=is_lost)
    (samples, stopped), seconds = timed(
        lambda: gather(models, features, sources, requests, conditions, progress), torch.device("cpu")
    )
    if stopped and len(samples[0].labels_N) < 2 * study.blocks:
        raise StopSignal(stopped)
    where = models.device if features.D >= FEW else torch.device("cpu")
    samples = [replace(sample, features_ND=sample.features_ND.to(where)) for sample in samples]
    rows = measure_rows(samples, means.real, features.classes, models.pyramid, study.blocks)
    return Measured(
        models.title, str(models.device), study.request.cfg, features.name, features.unit,
        means.real.name if means.real else "", study.blocks, rows, study.most, study.most_nats, seconds, stopped,
    )  # fmt: skip


def check_labels(models: ModelPair, features: Features, labels: Sequence[int]) -> None:
    """Refuse labels that are no class, and features of other classes than the networks'. Raises `InputError`."""
    classes, known = models.conditions, features.classes
    if known not in (0, classes):
        rule = f"knows {known} classes, and the networks {classes}"
        raise InputError("features", features.name, rule, "pass --features FILE")
    for label in labels:
        if not 0 <= label < classes:
            raise InputError("labels", label, f"must lie in 0..{classes - 1}", "pass --labels all")
