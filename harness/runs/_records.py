"""Records of a run as JSON values and back: what one request came to, what it exercised, laws and claims on quality.

Promise: what is read is equal to what was written, NaN and infinity included; what has another form is one
`InputError`, never somebody's crash. Coverage is counted from the rounds that the decoder showed, by their own numbers
alone; a claim that no round exercised is named, never passed over.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import HarnessError, InputError
from harness.judge import Judgement
from harness.protocol import Settings, Trace
from harness.schema import record_of
from harness.wording import count_of

Values = Mapping[str, Any]
LISTS = ("ties", "defects", "distances")


@dataclass
class Coverage:
    decodes: int = 0  # requests that were decoded
    refused: int = 0  # requests and settings that the decoder refused
    reused: int = 0  # decodes by a decoder that had decoded another request before
    rounds: int = 0  # of all images
    judged: int = 0  # rounds in which the target judged a draft
    accepted: Counter[int] = field(default_factory=Counter)  # rounds by number of drafted scales that were accepted
    whole: int = 0  # rounds whose draft of several scales, not the first two alone, was accepted
    partial: int = 0  # rounds whose draft was partly accepted
    corrected: int = 0  # rounds that replaced a drafted scale
    late: int = 0  # those after an accepted scale, before another round: its passes meet what they left
    bonus: int = 0  # rounds that finished a scale after the drafted ones
    diverged: int = 0  # decodes whose images went on from different scales
    together: int = 0  # decodes of several images that rejected drafts, and whose images all went on together
    apart: int = 0  # rounds with a bonus scale in such a decode
    passed: int = 0  # rounds of the target that left it at a draft accepted whole, with a scale to come
    final: int = 0  # final rounds that drafted the last scale, which was accepted

    @classmethod
    def of(cls, trace: Trace) -> Coverage:
        diverged = len({tuple(turn.first for turn in rounds) for rounds in trace.rounds}) > 1
        rejects = any(turn.accepted < turn.drafted for turn in trace.turns)
        together = len(trace.rounds) > 1 and rejects and not diverged
        coverage = cls(decodes=1, diverged=int(diverged), together=int(together))
        beyond = min(3, trace.scale_writes_BS.shape[-1])  # the few tokens of two first scales may agree by chance
        for rounds in trace.rounds:
            coverage.rounds += len(rounds)
            for turn in rounds:
                if not turn.drafted:  # the target decided alone: nothing was accepted or rejected
                    continue
                coverage.judged += turn.target_rows > 0
                coverage.accepted[turn.accepted] += 1
                coverage.whole += turn.accepted == turn.drafted > 1 and turn.first + turn.drafted >= beyond
                coverage.partial += 0 < turn.accepted < turn.drafted
                coverage.corrected += turn.corrected
                coverage.late += turn.corrected and turn.accepted > 0 and turn is not rounds[-1]
                coverage.bonus += turn.bonus
                coverage.apart += diverged and turn.bonus and turn.drafted > 0
            coverage.passed += sum(
                turn.accepted == turn.drafted > 0 < turn.target_rows and not turn.bonus for turn in rounds[:-1]
            )
            coverage.final += bool(rounds) and rounds[-1].accepted == rounds[-1].drafted > 0 and not rounds[-1].bonus
        return coverage

    def add(self, decodes: Sequence[Coverage]) -> None:
        """Add the decodes of one decoder, each with its counts. Effects: on all counts."""
        self.reused += max(0, len(decodes) - 1)
        for one in decodes:
            for name, count in vars(one).items():
                setattr(self, name, getattr(self, name) + count)

    def as_dict(self) -> dict[str, object]:
        return {**vars(self), "accepted": {str(k): self.accepted[k] for k in sorted(self.accepted)}}

    def __str__(self) -> str:
        by = ", ".join(f"{self.accepted[count]} with {count}" for count in sorted(self.accepted))
        return (
            f"{count_of(self.rounds, 'round')}, by accepted scales {by or 'none'}; "
            f"{count_of(self.whole, 'draft')} of several scales accepted, "
            f"{self.corrected} corrected ({self.late} after accepted scales, with a round to come), "
            f"{self.bonus} with a bonus scale ({self.apart} in batches that diverge); {self.diverged} of "
            f"{count_of(self.decodes, 'batch', 'batches')} diverge, {self.reused} by a decoder used before; "
            f"{self.refused} refused"
        )


# What a covering design is there to exercise: by its words, how many rounds or decodes did.
CLAIMS: dict[str, Callable[[Coverage], int]] = {
    "a first drafted scale that is rejected": lambda c: c.accepted[0],
    "a draft of several scales that is accepted": lambda c: c.whole,
    "a correction after accepted scales": lambda c: c.late,
    "a bonus scale": lambda c: c.bonus,
    "images of one batch that accept different numbers of scales": lambda c: c.diverged,
    "a bonus scale in a batch that diverges": lambda c: c.apart,
    "one decoder for several requests": lambda c: c.reused,
}


@dataclass(frozen=True)
class Counts:
    """What a decode counted, by image."""

    target_calls: list[int] = field(default_factory=list)  # target forward passes
    target_rows: list[int] = field(default_factory=list)  # positions that the target computed
    accepted_scales: list[list[int]] = field(default_factory=list)  # accepted scales of every round
    covered: Coverage = field(default_factory=Coverage)  # what the decode exercised, of all its images together
    # of all its images together, by scale: how often it was drafted, accepted, corrected and finished as a
    # bonus, and the tokens that differ from the other side's; a list is empty where nobody knows
    scales: dict[str, list[int]] = field(default_factory=dict)
    cache_bytes: dict[str, int] = field(default_factory=dict)  # held by each network's cache

    @classmethod
    def of(cls, trace: Trace, differing: Sequence[int] = ()) -> Counts:
        """Return the counts of a trace; `differing` are the tokens of every scale that are not the other side's."""
        accepted = [[turn.accepted for turn in rounds] for rounds in trace.rounds]
        S = trace.scale_writes_BS.shape[-1]
        scales = {name: [0] * S for name in ("drafted", "kept", "corrected", "bonus")}
        for turn in trace.turns:
            rejected, after = turn.first + turn.accepted, turn.first + turn.drafted
            spans = (turn.first, after), (turn.first, rejected), (rejected, rejected + bool(turn.corrected))
            for name, (begin, end) in zip(scales, (*spans, (after, after + bool(turn.bonus))), strict=True):
                for si in range(max(0, begin), min(S, end)):  # its numbers need not be scales that there are
                    scales[name][si] += 1
        counts = list(trace.target_calls), list(trace.target_rows), accepted
        return cls(*counts, Coverage.of(trace), scales | {"differ": list(differing)}, dict(trace.cache_bytes))


@dataclass(frozen=True)
class JudgedRow:
    """What one request came to under one setting."""

    task: int  # number in the plan
    setting: int  # index in the plan
    judgement: Judgement  # on the decode; empty where it was refused
    counts: Counts | None = None  # of the decode; None where there was none to count
    seconds: float = 0.0  # of the decode
    reference_seconds: float = 0.0  # of the reference's
    ended: float = 0.0  # when its task was done, seconds since 1970
    host_bytes: int = 0  # resident memory of the worker then
    device_bytes: int = 0  # what its allocator held of the GPU then; 0 on a CPU
    refused: str = ""  # why the decoder refused the request, where refusals are counted; empty = it did not
    # counts that are others than those of the decoder that it was judged against, a clause each
    changes: tuple[str, ...] = ()
    peak_bytes: int = 0  # high-water mark of memory as the decoder says; 0 where it does not
    tokens: bytes = b""  # what was compared, as `packed_tokens`; empty where nothing was

    def tokens_xBL(self, images: int, L: int) -> npt.NDArray[np.int32]:
        """Return its images' tokens, then, where some differ, the reference's. Raises `ValueError` or `zlib.error`."""
        size = 4 * images * L
        raw = zlib.decompressobj().decompress(self.tokens, 2 * size + 1)  # and no more, whatever it says
        return np.frombuffer(raw, "<i4").reshape(-1, images, L)


def packed_tokens(actual_BL: Tensor, expected_BL: Tensor, claimed: bool) -> bytes:
    """Return a decode's tokens and, where they are `claimed` and some differ, the reference's along them."""
    both = [actual_BL, expected_BL] if claimed and not torch.equal(actual_BL, expected_BL) else [actual_BL]
    return zlib.compress(torch.stack(both).to("cpu", torch.int32).numpy().astype("<i4").tobytes())


def settings_values(settings: Settings, draft_noise: float | None) -> dict[str, Any]:
    """Return settings as JSON values, with the draft that they meet (`Plan.drafts`)."""
    return vars(settings) | {"draft_noise": draft_noise}


def judgement_values(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as JSON values; a divergence, or a distance, is a list of its fields: there may be many."""
    values = {f.name: getattr(judgement, f.name) for f in fields(Judgement) if f.name != "partial"}  # judged already
    for name in LISTS:
        values[name] = [list(astuple(each)) for each in values[name]]
    return values


def to_json(values: Any) -> str:
    """Return one line of JSON that any file can hold; NaN and infinity as Python writes and reads them."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: what a decoder raised may hold anything
        return json.dumps(values, separators=(",", ":"))
    return text


def settings_of(values: Values) -> tuple[Settings, float | None]:
    """Return what `settings_values` made these values of."""
    noise = values["draft_noise"]
    if noise is not None and not isinstance(noise, int | float):
        raise TypeError(f"draft_noise is {noise!r}")
    return record_of(Settings, {name: value for name, value in values.items() if name != "draft_noise"}), noise


A_RECORD = "pass a file of verify --run, or of replay --bundle"


@contextmanager
def readable(name: str, path: object, remedy: str = A_RECORD) -> Iterator[None]:
    """Turn whatever a file of another form, or a damaged one, makes of its reader into one `InputError`."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        rule = f"holds no record of a run that can be read ({type(error).__name__}: {error})"
        raise InputError(name, str(path), rule, remedy) from None


THE_LAW = "acceptance.distribution"  # the law that compares what is drawn with the target's law: contract B's claim


@dataclass(frozen=True)
class BrokenLaw:
    component: str  # what it watches
    clause: str  # which law, what was seen, and the line that replays it
    seed: int  # of its case


@dataclass(frozen=True)
class LawsTried:
    """What was seen of laws that were tried after a run."""

    cases: int  # in how many each was tried
    held: int  # how many held, and were exercised
    broken: tuple[BrokenLaw, ...] = ()  # those that are broken
    trivial: tuple[str, ...] = ()  # ids of those that no case exercised
    refused: tuple[str, ...] = ()  # ids of those of which the decoder refused every case
    why: str = ""  # what it said to the first of these
    not_applicable: tuple[str, ...] = ()  # ids of those that say nothing about such a decoder
    left: tuple[str, ...] = ()  # ids of those that nobody tried
    networks: tuple[str, ...] = ()  # of which kinds networks were: dtypes, and "shared AdaLN"
    pyramid: str = ""  # on which one alone they were tried, and why; empty = on several
    late: tuple[str, ...] = ()  # those that took too long: id, and what to do

    @property
    def tested_the_law(self) -> bool:
        """Whether one of them compared what the decoder draws with the target's law, and held."""
        unproven = (*self.trivial, *self.refused, *self.not_applicable, *self.left)
        return not self.broken and THE_LAW not in unproven and not any(THE_LAW in each for each in self.late)

    @property
    def asked(self) -> int:
        """Laws that apply and were tried."""
        return self.held + len(self.broken) + len(self.trivial) + len(self.refused)

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {**vars(self), "broken": [(law.component, law.clause, law.seed) for law in self.broken]}


class QualityFigures(Protocol):
    """What was measured of the quality of images (`quality.stored.Measured`)."""

    def values(self) -> dict[str, object]:
        """Return what ``quality --json`` writes."""


@dataclass(frozen=True)
class KeptFigures:
    """Figures that a run file gave back."""

    kept: dict[str, object]

    def values(self) -> dict[str, object]:
        return self.kept


@dataclass(frozen=True)
class QualityClaims:
    """Claims on the quality of images that do not hold, a clause each."""

    broken: tuple[str, ...] = ()  # a loss beyond the one that is allowed
    open: tuple[str, ...] = ()  # too few images to decide

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {"broken": list(self.broken), "open": list(self.open)}
