"""A drawing: every portion of every source, by any workers, kept in a file or not.

Promise: samples come in the order of the images, whoever drew them and in how many sittings. A portion is on the disk
when it is drawn; a file of another drawing is refused, and what differs is named.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from harness import runs
from harness.decoders import OWN_DECODER, Terms
from harness.errors import InputError, StopSignal
from harness.models import ModelPair
from harness.pool import ALONE, Died, Parallelism, WorkerError, employ
from harness.protocol import Request, request_values
from harness.quality._draw import NONE, Drawn, DrawWork, Source, check_distinct
from harness.quality._features import Features
from harness.signals import held

TENSORS = ("features_BD", "classes_B", "calls_B", "nats_BX")
TABLE = """
CREATE TABLE drawn (
    portion INTEGER NOT NULL, source INTEGER NOT NULL, seconds REAL NOT NULL, failed TEXT NOT NULL,
    tensors BLOB NOT NULL, PRIMARY KEY (portion, source)
)
"""
# a verification's mark ends with A; 2 had a column a tensor, 3 tokens, 4 losses without what rounding hides
DRAWN_FILE = runs.FileKind(application=0x5D7A5ADB, schema=5, tables=(TABLE,), command="quality")


class DrawnFile(runs.GrowingFile):
    """The file of a drawing that this process writes: what is read back is what was written, bit for bit."""

    kind = DRAWN_FILE

    @classmethod
    def open(cls, store: runs.RunFileOptions, about: Mapping[str, object]) -> Self | None:
        """Return the file of a drawing that is `about` this, new or gone on with, if any. Raises `InputError`."""
        if store.file is None:
            return None
        if not (store.resume and runs.is_begun(store.file)):
            return cls._create(store.file, about)
        here = json.loads(runs.to_json(dict(about)))
        return cls.go_on(store.file, lambda file: runs.differences(here, runs.notes_of(file.base)))

    def portions(self) -> dict[int, list[Drawn]]:
        drawn: dict[int, list[Drawn]] = {}
        with self.kind.readable(self.path):
            rows = self.base.execute("SELECT portion, seconds, failed, tensors FROM drawn ORDER BY portion, source")
            for portion, seconds, failed, tensors in rows:
                drawn.setdefault(portion, []).append(Drawn(**load(tensors), seconds=seconds, failed=failed))
        return drawn

    def write(self, portion: int, drawn: Sequence[Drawn]) -> None:
        """Add one portion of every source; all of it or nothing."""
        with self.transaction():
            for source, each in enumerate(drawn):
                tensors = save({name: getattr(each, name).contiguous() for name in TENSORS})
                self.insert("drawn", (portion, source, each.seconds, each.failed, tensors))


@dataclass(frozen=True)
class Conditions:
    parallelism: Parallelism = ALONE  # who does it
    store: runs.RunFileOptions = runs.UNKEPT  # where what is drawn is kept
    terms: Terms = runs.TERMS  # how decoders under test run
    # tells of the first images' sets whether whatever the others are changes no answer; asked as often as they double
    settles: Callable[[list["ImageSet"]], bool] | None = None


USUAL = Conditions()


@dataclass(frozen=True)
class ImageSet:
    source: Source  # which
    contract: str  # letter of what it claims; empty for the draft
    labels_N: Tensor  # what was asked for, int64
    features_ND: Tensor  # float32
    classes_N: Tensor  # what was recognised; empty where nothing is
    calls_N: Tensor  # target forward passes
    nats_NX: Tensor  # as `Drawn.nats_BX`; empty where some batches show a law and others none, too
    seconds: float  # of all decodes
    failed: str = ""  # why the decoder gave no images, the first reason met; empty = it did


def gather(
    models: ModelPair, features: Features, sources: Sequence[Source], requests: Sequence[Request],
    conditions: Conditions = USUAL, progress: Callable[[int], None] = lambda images: None,
) -> tuple[list[ImageSet], int]:  # fmt: skip
    """Draw every portion of every source; `progress` gets the images of a decode or portion, once all of a resumed run.

    Returns the sets, of what was drawn until a signal came or the answer was settled, and that signal, or 0. Raises
    `InputError` for what is refused, `WorkerError` where the workers die, `StopSignal` where a signal came before
    anything was drawn.
    """
    check_distinct(sources)
    models.check_finite()
    tasks = [runs.Task(k, request, tuple(range(len(sources)))) for k, request in enumerate(requests)]
    device = torch.device(conditions.parallelism.device or models.device)
    crew = employ(conditions.parallelism, device, len(tasks))
    heard, most = None if crew.is_elsewhere else progress, max(task.request.B for task in tasks)
    work = DrawWork(models, features, tuple(sources), most, conditions.terms, heard)
    about = about_of(models, features, sources, requests) if conditions.store.file is not None else {}
    file, stopped, looked = DrawnFile.open(conditions.store, about), 0, 0
    with closing(file) if file else nullcontext():
        drawn = file.portions() if file else {}
        if drawn:
            progress(sum(tasks[k].images for k in drawn))
        with closing(crew.open(work)) as pool:
            contracts = pool.about.contracts

            def sets() -> list[ImageSet]:
                done = [task for task in tasks if task.number in drawn]
                labels_N = torch.tensor([label for task in done for label in task.request.labels or ()])
                columns = zip(*(drawn[task.number] for task in done), strict=True)
                each = zip(sources, contracts, columns, strict=True)
                return [_set(source, contract, labels_N, portions) for source, contract, portions in each]

            try:
                for task, portion in pool.map([task for task in tasks if task.number not in drawn]):
                    if isinstance(portion, Died):
                        rule = f"{portion.why}; pass a smaller --batch, or fewer --workers"
                        raise WorkerError(f"batch={task.request.B}: {rule}")
                    with held():
                        if file:
                            file.write(task.number, portion)
                        drawn[task.number] = portion
                    if not heard:
                        progress(task.images)
                    if conditions.settles and len(drawn) >= 2 * looked and max(drawn) == len(drawn) - 1:
                        looked = len(drawn)
                        if conditions.settles(sets()):
                            break
            except StopSignal as stop:
                if not drawn:
                    raise
                stopped = stop.status - 128
    return sets(), stopped


def _set(source: Source, contract: str, labels_N: Tensor, portions: Sequence[Drawn]) -> ImageSet:
    failed = next((portion.failed for portion in portions if portion.failed), "")
    good = [portion for portion in portions if not portion.failed]
    if failed:
        good = good[:1] or [Drawn.nothing(failed)]
    if len({portion.nats_BX.ndim for portion in good}) > 1:
        good = [replace(portion, nats_BX=torch.zeros(0)) for portion in good]
    columns = (torch.cat([getattr(portion, name) for portion in good]) for name in TENSORS)
    features_ND, classes_N, calls_N, nats_NX = columns
    seconds = sum(portion.seconds for portion in portions)
    return ImageSet(source, contract, labels_N, features_ND, classes_N, calls_N, nats_NX, seconds, failed)


def about_of(
    models: ModelPair, features: Features, sources: Sequence[Source], requests: Sequence[Request]
) -> dict[str, object]:
    """Return what a drawing is of, as JSON values: two that are equal draw the same."""
    codes = [runs.code_of(s.factory, s.settings.option("checkout")) if s.factory != NONE else None for s in sources]
    drawn = [
        f"{place}: {_digest(repr((sorted(asdict(source).items()), sorted(asdict(code).items() if code else ()))))}"
        for place, (source, code) in enumerate(zip(sources, codes, strict=True))
    ]
    first = next((source for source in sources if source.factory != NONE), sources[0])
    return {
        **runs.identity_of(models, (first.factory or OWN_DECODER, first.settings)).as_dict(),
        "sources": dict(zip((source.name for source in sources), drawn, strict=True)),
        "images": {
            "number": sum(request.B for request in requests),
            "requests": _digest(repr([sorted(request_values(request).items()) for request in requests])),
        },
        "features": {"name": features.name, "unit": features.unit},
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_enough(images: int, blocks: int) -> None:
    """Refuse fewer images than blocks can be cut from. Raises `InputError`."""
    if images < 2 * blocks:
        rule = f"must be at least {2 * blocks}, two a block"
        raise InputError("images", images, rule, "pass --images 10000, or fewer --blocks")
