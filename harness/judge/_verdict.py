"""IDENTICAL, TIE, CONSISTENT, DEFECT or INCONCLUSIVE: the records of a judgement.

Promise: no computation here but of which verdict outranks which. Laws of the harness's own parts and of published code
end in the same record, `PartLaw`, so that one table shows both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from harness.files import finite
from harness.protocol import Trace

CALLS_AND_ROWS = "calls and rows"  # one of `Judgement.compared`


class Verdict(StrEnum):
    """The answers; the exit status of the command line follows from them.

    CONSISTENT is all that one run can say of a decoder that does not claim the tokens themselves: its structure is
    whole, and its tensors are the target's on its own tokens.
    """

    IDENTICAL = "IDENTICAL"
    TIE = "TIE"
    CONSISTENT = "CONSISTENT"
    DEFECT = "DEFECT"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_status(self) -> int:
        """0 the claim holds, 1 a defect, 3 inconclusive (design §7)."""
        return {"IDENTICAL": 0, "TIE": 0, "CONSISTENT": 0, "DEFECT": 1, "INCONCLUSIVE": 3}[self.value]


def worst_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst verdict: DEFECT, then INCONCLUSIVE (also for none), then CONSISTENT, TIE, IDENTICAL."""
    order = (Verdict.DEFECT, Verdict.INCONCLUSIVE, Verdict.CONSISTENT, Verdict.TIE, Verdict.IDENTICAL)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.INCONCLUSIVE)


@dataclass(frozen=True)
class Divergence:
    """Where a decoder first goes wrong, or a token that is not the reference's."""

    component: str  # the part it points to, e.g. positions
    detail: str  # one clause on why
    seed: int  # of the image
    # its address (`Request.image_ids`), whatever its place in the batch; -1 where the whole batch is meant
    image: int = -1
    label: int = -1  # of the image
    scale: int = -1  # scale index; -1 where no scale is concerned
    position: int = -1  # absolute position, 0..L-1; -1 where none is concerned
    actual: int = -1  # the decoder's token; -1 where none is concerned
    expected: int = -1  # the reference's token on the same prefix
    # by how much the token loses the float64 race, log scale, or that of its own logits, where these are against it
    margin: float = float("nan")
    bound: float = float("nan")  # largest margin that rounding explains
    # largest |Δ guided logits| against the reference at that position; NaN where not exposed
    delta_logits: float = float("nan")
    delta_f_hat: float = float("nan")  # largest |Δ f_hat| after that scale; NaN where not exposed
    channel: int = -1  # of several that the position draws; -1 where it draws one

    @property
    def place(self) -> tuple[int, int]:
        """Position and channel, in the order of draws."""
        return self.position, self.channel

    @property
    def order(self) -> tuple[int, int]:
        """What comes first: defects of tensors and tokens by scale, then an image's rounds, then counts, which tell."""
        is_rounds = self.component == "scheduling" and self.scale < 0 <= self.image
        return 2 if self.component == "counts" else int(is_rounds), self.scale

    @property
    def brief(self) -> str:
        places = ((word, value) for word, value in (("scale", self.scale), ("position", self.position)) if value >= 0)
        return ", ".join([self.component, *(f"{word} {value}" for word, value in places)])

    def __str__(self) -> str:
        where = f"seed {self.seed}"
        for word, value in (("image", self.image), ("label", self.label), ("scale", self.scale)):
            where += f", {word} {value}" if value >= 0 else ""
        if self.position >= 0:
            agreement = " agrees" if self.actual == self.expected else f", expected {self.expected}"
            channel = f", channel {self.channel}" if self.channel >= 0 else ""
            where += f", position {self.position}{channel}: token {self.actual}{agreement}"
        if math.isinf(self.margin):
            where += f", the filter drops {self.actual}"
        elif not math.isnan(self.margin):
            where += f", margin {self.margin:.3g} (bound {self.bound:.3g})"
        for word, delta in (("|Δlogits|", self.delta_logits), ("|Δf_hat|", self.delta_f_hat)):
            where += "" if math.isnan(delta) else f", {word} {delta:.3g}"
        return f"component {self.component} ({self.detail}) at {where}"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON, where NaN and an infinite margin become null."""
        return {name: finite(value) for name, value in vars(self).items() if name != "channel" or value >= 0}


@dataclass(frozen=True)
class Distance:
    """How far an image is from the sequential one of the same seed; measured, never judged."""

    tokens: float  # share of tokens that differ
    f_hat: float  # mean absolute difference of the final f_hat
    pixels: float  # mean absolute difference of the images, in [0, 1]


@dataclass
class Judgement:
    images: int  # number of images
    draws: int = 0  # tokens compared
    identical: int = 0  # tokens equal to the reference's draw on the same prefix, whatever the contract
    ties: list[Divergence] = field(default_factory=list)  # certified ones
    wrong_tokens: int = 0  # tokens that are neither (contract A)
    # those not identical, where none is claimed (B and C). Always draws = identical + ties + wrong_tokens + unclaimed
    unclaimed: int = 0
    wrong_tensors: int = 0  # records of `defects` about a tensor: one an image at most, whatever its tokens are
    # records of all that is wrong, in causal order; the first one is where to look
    defects: list[Divergence] = field(default_factory=list)
    unlisted: int = 0  # wrong tokens without a record, since a broken decoder has more than anybody reads
    inconclusive: list[str] = field(default_factory=list)  # reasons why the run proves nothing; empty in a good run
    claims_tokens: bool = True  # True under contract A; otherwise `identical` is a measurement, and no token a defect
    distances: list[Distance] = field(default_factory=list)  # of every image, where tokens are not claimed
    # what was compared with the reference's, in words; `not_compared` says why the rest was not
    compared: list[str] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)  # what could not be, and why
    # what its ties weigh against rounding, by scale and θ (`judge.ties`); those of a run add up
    surprise: list[list[float]] = field(default_factory=list)
    # what the decoder left behind in its process, or showed otherwise than asked: no defect where nothing came of it
    remarks: list[str] = field(default_factory=list)
    # what bets on its tokens won (`judge.likelihood`), by image, alternative and scale; those of a run add up
    won: list[list[list[float]]] = field(default_factory=list)
    under: list[list[float]] = field(default_factory=list)  # mean and variance of it, under each alternative
    so_far: str = ""  # how far a decode came that did not end well, in words
    ending: str = ""  # the traceback of such a decode, and what its process printed last
    # its trace so far, or all of it where something else was wrong; None where nothing is known, and once judged
    partial: Trace | None = None

    @property
    def whole_trace(self) -> Trace | None:
        """The trace of a decode that is still to be judged, and that had remarks alone; None of any other."""
        return None if self.defects else self.partial

    def count(self, name: str) -> int:
        """Return a count, or the length of a list; that of `defects` with those that have no record."""
        value = getattr(self, name)
        return value if isinstance(value, int) else len(value) + (self.unlisted if name == "defects" else 0)

    @property
    def verdict(self) -> Verdict:
        """DEFECT over INCONCLUSIVE over TIE over IDENTICAL; nothing compared is INCONCLUSIVE."""
        if self.defects:
            return Verdict.DEFECT
        if self.inconclusive or self.draws == 0:
            return Verdict.INCONCLUSIVE
        if not self.claims_tokens:
            return Verdict.CONSISTENT
        return Verdict.TIE if self.ties else Verdict.IDENTICAL

    def __str__(self) -> str:
        words = {"identical": "identical", "ties": "ties", "wrong_tokens": "wrong tokens", "defects": "defects"}
        counts = ", ".join(f"{self.count(name)} {word}" for name, word in words.items())
        said = [f"inconclusive: {reason}" for reason in self.inconclusive]
        if self.defects:
            said = [f"first defect: {self.defects[0]}"]
        return "\n".join([f"{self.verdict.value}: {self.images} images, {self.draws} draws compared, {counts}", *said])


class PartVerdict(StrEnum):
    """How a law of a part ended; told is for what is no law, but worth knowing."""

    HELD = "held"
    BROKEN = "BROKEN"
    CRASHED = "CRASHED"
    UNPROVEN = "INCONCLUSIVE"
    ABSENT = "not there"
    TOLD = "told"


class Broken(Exception):  # noqa: N818
    """Raised inside a law: what was found, one clause, and the part that it names, if it names one."""

    def __init__(self, found: str, part: str = "") -> None:
        super().__init__(found)
        self.part = part


@dataclass(frozen=True)
class PartLaw:
    part: str  # the method, as the code names it
    law: str  # family and word
    statement: str  # what must hold
    verdict: PartVerdict  # how it ended
    found: str = ""  # what is wrong with the numbers; empty where nothing is
    place: str = ""  # file and line where its function begins; empty where that is not known


def require(holds: bool, found: str, part: str = "") -> None:
    """Raise `Broken` with what was found, and the part that it names, unless it holds."""
    if not holds:
        raise Broken(found, part)
