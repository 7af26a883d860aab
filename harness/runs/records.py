"""Records of a run as JSON values, and back.

Promise: what is read is equal to what was written, NaN and infinity included; what has another form is one
`InputError`, never somebody's crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from harness.decoders.terms import Other
from harness.errors import InputError
from harness.judge.verdict import Distance, Divergence, Judgement
from harness.protocol.decoder import Settings
from harness.protocol.trace import Round, Trace
from harness.runs.coverage import Coverage
from harness.runs.pictures import Picture

Values = Mapping[str, Any]
NAMES = [f.name for f in fields(Divergence)]
LISTS = ("ties", "defects")
PIXELS = ("decoder", "reference")  # of a picture


@dataclass(frozen=True)
class Counts:
    """What a decode counted, by image.

    Args:
        target_calls: target forward passes.
        target_rows: positions that the target computed.
        accepted_scales: accepted scales of every round.
        covered: what the decode exercised, of all its images together.
        scales: of all its images together, by scale: how often it was drafted, kept whole, corrected and finished as a
            bonus, and the tokens that differ from the other side's; a list is empty where nobody knows.
        cache_bytes: held by each network's cache.
    """

    target_calls: list[int] = field(default_factory=list)
    target_rows: list[int] = field(default_factory=list)
    accepted_scales: list[list[int]] = field(default_factory=list)
    covered: Coverage = field(default_factory=Coverage)
    scales: dict[str, list[int]] = field(default_factory=dict)
    cache_bytes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, differing: Sequence[int] = ()) -> Counts:
        """Return the counts of a trace; `differing` are the tokens of every scale that are not the other side's."""
        accepted = [[turn.accepted for turn in rounds] for rounds in trace.rounds]
        scales = {**_by_scale(trace), "differ": list(differing)}
        # shown, and never judged: any value goes
        held = {name: count for name, count in dict(trace.cache_bytes or {}).items() if isinstance(count, int)}
        counts = list(trace.target_calls), list(trace.target_rows), accepted
        return cls(*counts, Coverage.of(trace), scales, held)


def _by_scale(trace: Trace) -> dict[str, list[int]]:
    """Return what the rounds did with every scale; a decoder's numbers need not be scales that there are."""
    S = trace.scale_writes_BS.shape[-1]
    found = {name: [0] * S for name in ("drafted", "kept", "corrected", "bonus")}
    for turn in (turn for rounds in trace.rounds for turn in rounds):
        fell, behind = turn.first + turn.accepted, turn.first + turn.drafted
        spans = {
            "drafted": range(turn.first, behind),
            "kept": range(turn.first, fell),
            "corrected": range(fell, fell + bool(turn.corrected)),
            "bonus": range(behind, behind + bool(turn.bonus)),
        }
        for name, span in spans.items():
            for si in range(max(0, span.start), min(S, span.stop)):
                found[name][si] += 1
    return found


@dataclass(frozen=True)
class JudgedRow:
    """What one request came to under one setting.

    Args:
        task: number in the plan.
        setting: index in the plan.
        judgement: on the decode; empty where it was refused.
        counts: of the decode; None where there was none to count.
        seconds: of the decode.
        reference_seconds: of the reference's.
        ended: when its task was done, seconds since 1970.
        host_bytes: resident memory of the worker then.
        device_bytes: what its allocator held of the GPU then; 0 on a CPU.
        refused: why the decoder refused the request, where refusals are counted; empty = it did not.
        changes: counts that are others than those of the decoder that it was judged against, a clause each.
        peak_bytes: high-water mark of memory as the decoder says; 0 where it does not.
    """

    task: int
    setting: int
    judgement: Judgement
    counts: Counts | None = None
    seconds: float = 0.0
    reference_seconds: float = 0.0
    ended: float = 0.0
    host_bytes: int = 0
    device_bytes: int = 0
    refused: str = ""
    changes: tuple[str, ...] = ()
    peak_bytes: int = 0


def counts_values(counts: Counts) -> dict[str, Any]:
    """Return counts as JSON values."""
    return vars(counts) | {"covered": counts.covered.as_dict()}


def counts_of(values: Values) -> Counts:
    """Return the counts that `counts_values` and JSON made these values of."""
    return Counts(**{**values, "covered": Coverage.from_dict(values["covered"])})


def picture_values(picture: Picture) -> dict[str, Any]:
    """Return a picture as JSON values, without its pixels."""
    return {name: value for name, value in asdict(picture).items() if name not in PIXELS}


def picture_of(values: Values, decoder: bytes, reference: bytes) -> Picture:
    """Return the picture that `picture_values` and JSON made these values of, with its pixels."""
    made = dict(values)
    made["rounds"] = [Round(**turn) for turn in made["rounds"]]
    made["distance"] = Distance(**made["distance"]) if made["distance"] else None
    return Picture(**made, decoder=decoder, reference=reference)


def settings_values(settings: Settings, draft_noise: float | None) -> dict[str, Any]:
    """Return settings as JSON values, with the draft that they meet (`Plan.draft_of`)."""
    return vars(settings) | {"draft_noise": draft_noise}


def judgement_values(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as JSON values; a divergence is a list of its fields, since there may be many."""
    values = {f.name: getattr(judgement, f.name) for f in fields(Judgement) if f.name != "partial"}  # judged already
    for name in LISTS:
        values[name] = [[getattr(d, n) for n in NAMES] for d in values[name]]
    values["distances"] = [list(asdict(distance).values()) for distance in judgement.distances]
    return values


def judgement_of(values: Values) -> Judgement:
    """Return the judgement that these values were made of."""
    made = dict(values)
    for name in LISTS:
        made[name] = [Divergence(**dict(zip(NAMES, of, strict=True))) for of in made[name]]
    made["distances"] = [Distance(*of) for of in made["distances"]]
    return Judgement(**made)


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
    made = dict(values)
    draft_noise = made.pop("draft_noise")
    made["options"] = tuple((str(name), str(value)) for name, value in made["options"])
    return Settings(**made), draft_noise


def against_values(other: Other | None) -> dict[str, Any] | None:
    """Return the decoder that is judged against as JSON values; its factory stands there by name."""
    return None if other is None else {"name": other.name, "settings": [vars(of) for of in other.settings]}


def against_of(values: Values | None, setting: int) -> Other | None:
    """Return what `against_values` and JSON made these values of, with its settings for one of the decoder's."""
    if values is None:
        return None
    settings, _ = settings_of({**values["settings"][setting], "draft_noise": None})
    return Other(str(values["name"]), (settings,))


def unreadable(name: str, path: object, error: Exception) -> InputError:
    """Return the refusal of a file whose records have another form."""
    rule = f"holds no record of a run that can be read ({type(error).__name__}: {error})"
    return InputError(name, str(path), rule, "pass a file of verify --run, or of replay --bundle")
