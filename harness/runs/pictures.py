"""What a run keeps for people to look at: its worst images, as both sides made them, and its first divergences.

Promise: a bounded number (`MOST_PICTURES` of a run) of a bounded size (`MOST_SIDE`), the worst ones, whoever decoded
them and in whatever order; where nothing is wrong, the first ones of the plan. An exhibit, the tensors around a
divergence, is bounded, too (`MOST_BYTES`), and a plain safetensors block, so that reading it executes nothing.
"""

import io
import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from harness.judge import Distance, Divergence, Evidence, Judgement
from harness.protocol import TOKEN, Round

MOST_PICTURES, MOST_EXHIBITS = 40, 16  # of a run
MOST_BYTES = 2**21  # of an exhibit
MOST_SIDE = 256  # pixels; larger images are kept smaller
AGREES, TIE, WRONG, UNCLAIMED = "=tx."  # one letter a draw
DEFECT, SHARED = 1e6, 1e5  # what an image with a defect of its own, or of its whole batch, is worse by

Rank = tuple[float, int, int, int]


@dataclass(frozen=True)
class Picture:
    """One image of a run, as both sides made it."""

    task: int  # number in the plan
    setting: int  # index in the plan
    row: int  # in the batch
    badness: float  # 0 where nothing is to be seen; defects, then wrong tokens, then ties and distance
    seed: int  # of the image
    image: int  # its address
    label: int  # its class
    tokens: list[int]  # the decoder's
    # what the reference draws on the same prefix; the other decoder's tokens where one stood in its place
    expected: list[int]
    marks: str  # a letter a draw: agrees, tie, wrong, or not claimed
    rounds: list[Round] = field(default_factory=list)  # of the decoder, in order
    distance: Distance | None = None  # from the sequential image, where tokens are not claimed
    decoder: bytes = field(default=b"", repr=False)  # its image as PNG
    # the sequential image of the same seed as PNG; the other decoder's
    reference: bytes = field(default=b"", repr=False)

    @property
    def rank(self) -> Rank:
        """Its place among all images of a run, worst first."""
        return -self.badness, self.task, self.setting, self.row


@dataclass
class Best:
    """The first so many of what is offered: what none of a run's workers keeps is not among the run's first either."""

    most: int
    ranks: list[Rank] = field(default_factory=list)

    def takes(self, rank: Rank) -> bool:
        """Tell whether this one is among the first ones so far. Effects: remembers it."""
        if len(self.ranks) == self.most and rank > self.ranks[-1]:
            return False
        insort(self.ranks, rank)
        del self.ranks[self.most :]
        return True


@torch.inference_mode()
def pictures(
    place: tuple[int, int], along: Evidence, judgement: Judgement, others: Callable[[], Tensor], best: Best
) -> list[Picture]:
    """Return those of a decode, at `place` (task, setting), that are worth keeping.

    `others` makes the last f_hat_BCPP of the other side's own image, where it is needed.
    """
    if not judgement.draws or not best.most:  # of a trace without form nothing can be trusted to be an image
        return []
    every = [_plain(place, along, judgement, row) for row in range(along.request.B)]
    chosen = [picture for picture in every if best.takes(picture.rank)]
    if not chosen:
        return []
    sides, vae = (along.actual.f_hat_BCPP, others()), along.models.vae
    rows = torch.tensor([picture.row for picture in chosen], device=sides[0].device)
    decoder, reference = (pngs(vae.decode(f_hat_BCPP[rows])) for f_hat_BCPP in sides)
    return [
        replace(picture, decoder=ours, reference=theirs)
        for picture, ours, theirs in zip(chosen, decoder, reference, strict=True)
    ]


def _plain(place: tuple[int, int], along: Evidence, judgement: Judgement, row: int) -> Picture:
    """Return the picture of one image without its pixels."""
    request, where = along.request, along.request.where(row)
    labels = request.labels or along.numbers.labels(along.models.target.config.classes).tolist()
    tokens, expected = along.actual.tokens_BL[row].tolist(), along.expected.tokens_BL[row].tolist()
    draw = along.models.pyramid.draw
    ties, defects = (
        {draw(*each.place) for each in listed if (each.seed, each.image) == (where["seed"], where["image"])}
        for listed in (judgement.ties, judgement.defects)
    )
    # where some tokens may differ, only those that are listed are wrong ones
    wrong = defects if judgement.unclaimed else set(range(len(tokens)))
    wrong = wrong if judgement.claims_tokens else set()
    marks = "".join(
        AGREES if a == b else TIE if place in ties else WRONG if place in wrong else UNCLAIMED
        for place, (a, b) in enumerate(zip(tokens, expected, strict=True))
    )
    distance = judgement.distances[row] if judgement.distances else None
    far = distance.pixels if distance else 0.0  # no number, where an image is none
    badness = marks.count(WRONG) + marks.count(TIE) / 1000 + (math.inf if math.isnan(far) else far)
    badness += DEFECT * bool(defects) + SHARED * any(each.image < 0 for each in judgement.defects)
    rounds = list(along.actual.rounds[row]) if along.actual.rounds else []
    return Picture(
        *place, row, badness, where["seed"], where["image"], int(labels[row]), tokens, expected, marks, rounds, distance
    )


def pngs(images_n3hw: Tensor) -> list[bytes]:
    """Return images, 0 to 1, as PNG of `MOST_SIDE` pixels a side at most; what is no number is black."""
    images_n3hw = images_n3hw.float().nan_to_num(0.0).clamp(0, 1)
    side = max(images_n3hw.shape[2:])
    if side > MOST_SIDE:
        images_n3hw = F.interpolate(images_n3hw, scale_factor=MOST_SIDE / side, mode="area")
    pixels_nhw3 = (images_n3hw * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return [as_png(Image.fromarray(pixels_hw3)) for pixels_hw3 in pixels_nhw3]


def as_png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@torch.inference_mode()
def exhibit(evidence: Evidence, divergence: Divergence) -> dict[str, Tensor]:
    """Return what both sides computed, along the decoder's tokens, at a divergence; nothing where it has no place."""
    address, request = (divergence.seed, divergence.image), evidence.request
    if divergence.position < 0 or address not in request.addresses:
        return {}
    row, position, pyramid = request.addresses.index(address), divergence.position, evidence.models.pyramid
    si, draw = pyramid.level_of(position), pyramid.draw(*divergence.place)
    tensors = {"tokens_L": torch.stack((evidence.actual.tokens_BL[row], evidence.expected.tokens_BL[row]))}
    for side, trace in (("actual", evidence.actual), ("expected", evidence.expected)):
        if trace.intermediates is not None:
            both = request.rows_of(row)
            tensors[f"{side}.x_2D"] = trace.intermediates.x_RLD[both, position]
            tensors[f"{side}.rows_2V"] = trace.intermediates.rows_RLV[both, draw]
            tensors[f"{side}.guided_V"] = trace.intermediates.guided_BLV[row, draw]
    if not evidence.greedy:
        tensors["E_V"] = evidence.numbers.exponential(si, TOKEN, "judge")[row, draw - pyramid.draws.begin(si)]
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return plain if sum(t.numel() * t.itemsize for t in plain.values()) <= MOST_BYTES else {}
