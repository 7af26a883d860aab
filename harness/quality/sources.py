"""What is drawn: sets of images of the same labels, by sequential decoding or a decoder under test, under chosen seeds.

Promise: image k of every set has the same label, and the same numbers where the seeds are the same; a set under other
seeds shares no number with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.errors import InputError
from harness.protocol.decoder import Settings
from harness.protocol.request import Request

ELSEWHERE = 2**32  # what other seeds are away
TARGET, DRAFT = "sequential", "the draft alone"
NONE = ""  # no factory: sequential decoding


@dataclass(frozen=True)
class Source:
    """One set of images.

    Args:
        name: for people; no two sources of a run share one.
        factory: builds the decoder, ``package.module:factory``; `NONE` = sequential decoding.
        settings: of the decoder.
        seeds: how many times `ELSEWHERE` its seed is away.
        cfg: in place of the request's guidance value.
        draft: sequential decoding by the draft.
        keeps_tokens: the two-sample test of tokens needs them.
    """

    name: str
    factory: str = NONE
    settings: Settings = Settings()  # noqa: RUF009  # frozen
    seeds: int = 0
    cfg: float | None = None
    draft: bool = False
    keeps_tokens: bool = False

    @property
    def length(self) -> str:
        """Draft length as text; empty where there is none."""
        return str(self.settings.draft_len) if self.factory else ""

    def request(self, request: Request) -> Request:
        """Return what this source draws of a request."""
        cfg = request.cfg if self.cfg is None else self.cfg
        return replace(request, seed=request.seed + self.seeds * ELSEWHERE, cfg=cfg)


# Every run draws these: sequential decoding, and the target's law as other seeds show it.
BASE = Source(TARGET)
LAW = Source("the target's law", seeds=1, keeps_tokens=True)


def control_sources(count: int) -> list[Source]:
    """Return sequential decoding under yet other seeds, so many times: decoders that lose nothing.

    Raises:
        InputError: fewer than none.
    """
    if count < 0:
        raise InputError("control", count, "must be 0 or more", "pass --control 1")
    numbered = [f"sequential, other seeds{f' {k + 1}' if count > 1 else ''}" for k in range(count)]
    return [Source(name, seeds=k + 2, keeps_tokens=True) for k, name in enumerate(numbered)]


def check_distinct(sources: Sequence[Source]) -> None:
    """Refuse two sources of one name. Raises `InputError`."""
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("policies", twice, "is asked for twice", "drop one of them")


def portions(images: int, batch: int, labels: Sequence[int], request: Request) -> list[Request]:
    """Return the batches of one set: labels in turn, every image with an address of its own.

    Args:
        images: of the set, at least 1.
        batch: images a batch.
        labels: in turn.
        request: seed and sampling; "image" order.

    Raises:
        InputError: a number below 1, or the published order, in which an image depends on its batch.
    """
    if min(images, batch) < 1:
        raise InputError("images", images, "and batch must be at least 1", "pass --images 10000")
    if request.order != "image":
        raise InputError("noise", request.order, "gives no image a stream of its own", "pass --noise image")
    requests = []
    for begin in range(0, images, batch):
        ids = tuple(range(begin, min(begin + batch, images)))
        drawn = tuple(labels[k % len(labels)] for k in ids)
        requests.append(replace(request, labels=drawn, images=ids, count=len(ids), seeds=None))
    return requests
