"""The report's four promises against what was measured, per policy.

Promise: every number comes from a file of measurements; a verdict is a comparison of numbers, never an opinion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.bench.files import DRAFT_ALONE, Speed
from harness.bench.policy_costs import PolicyRow
from harness.bench.speed import SpeedRow
from harness.errors import InputError
from harness.quality.loss import Quality, quality
from harness.quality.measured import Measured
from harness.quality.rows import QualityRow
from harness.speculative.policies import IMPOSED, parse

MOST_CALLS, LEAST_SPEED_UP, MOST_MEMORY = 5.0, 1.3, 0.20  # the report: 10 -> 2-5 calls, 1.3-1.7x, below +20 %
STEADY = 1.05  # a speed-up beyond what the passes allow comes from a disturbed measurement of the other side
LEAST_RATE = 0.5
MOST_LOSS = 0.1  # the report: "FID loss below 0.1"; digits' unit is another (docs/quality.md)
PROMISES = {
    "calls": "5 target calls or fewer", "speed": "1.3 times faster or more", "memory": "less than 20 % more memory",
    "image": "the image's quality",
}  # fmt: skip


HEADS = (
    "decoder", "contract", "target calls (≤ 5)", "speed-up (≥ 1.3)", "extra memory (< 20 %, published sizes)",
    "pixels off (the draft's own: 100 %)", "promises kept",
)  # fmt: skip
LOSS = "loss; drift (< 0.1)"  # stands before the promises, where quality was measured


def heads(found: Measured | None = None) -> list[str]:
    """Return the heads of the columns."""
    return [*HEADS[:-1], *([LOSS] if found else []), HEADS[-1]]


def markdown(
    policies: Sequence[PolicyRow],
    models: str,
    runs: Sequence[Speed],
    draft_len: str = "5",
    found: Measured | None = None,
) -> str:
    """Return the scoreboard as a table, and what it says of each promise; arguments and errors as of `scoreboard`."""
    lines = [f"| {' | '.join(heads(found))} |", f"|---|---|{'---:|' * (5 if found else 4)}---|"]
    board = scoreboard(policies, models, runs, draft_len, found)
    said = ["", *promises(board)] if found else []
    lines += [f"| {' | '.join(line.shown(found is not None))} |" for line in board]
    return "\n".join(lines + said) + "\n"


@dataclass(frozen=True)
class BoardLine:
    """One decoder against the promises, cells as they are shown.

    Args:
        name: models and policy.
        contract: its letter.
        cells: target calls, speed-up, extra memory, pixels off.
        kept: the promises that it keeps, and at which batches; empty where at all of them.
        imposed: its acceptance is imposed, which is no decoder's merit.
        note: what else is to say of the promises.
        loss: of quality.
    """

    name: str
    contract: str
    cells: tuple[str, str, str, str]
    kept: Mapping[str, str]
    imposed: bool = False
    note: str = ""
    loss: str = "-"

    def shown(self, with_loss: bool) -> list[str]:
        """Return the cells under `heads`."""
        kept = ", ".join(word + (f" at {at}" if at else "") for word, at in self.kept.items()) or "none"
        return [self.name, self.contract, *self.cells, *([self.loss] if with_loss else []), kept + self.note]


def promises(board: Sequence[BoardLine]) -> list[str]:
    """Return what a scoreboard says of each promise, and of those that a decoder keeps together, a sentence each."""
    kept = {line.name: line.kept for line in board}
    real = {line.name: line.kept for line in board if not line.imposed}
    sentences = []
    for word, text in PROMISES.items():
        who = [name + (f" (at {words[word]})" if words[word] else "") for name, words in real.items() if word in words]
        imposed = len([name for name, words in kept.items() if word in words and name not in real])
        other = f"; of those with imposed acceptance {imposed}" if len(kept) > len(real) else ""
        sentences.append(f"- {text[0].upper()}{text[1:]}: {'; '.join(who) or 'no decoder'}{other}.")
    together = [name for name, words in real.items() if {"calls", "image"} <= words.keys()]
    sentences.append(f"- Calls and image together: {'; '.join(together) or 'no decoder'}.")
    most = max(map(len, real.values()), default=0)
    best = [
        f"{name} ({', '.join(w for w in PROMISES if w in words)})"
        for name, words in real.items()
        if most == len(words) > 0
    ]
    return [*sentences, f"- Most promises together: {'; '.join(best) or 'no decoder keeps any'}."]


def scoreboard(
    policies: Sequence[PolicyRow],
    models: str,
    runs: Sequence[Speed],
    draft_len: str = "5",
    found: Measured | None = None,
) -> list[BoardLine]:
    """Return the scoreboard: imposed acceptance, divided labour, then every policy at one draft length.

    Args:
        policies: counts and distances, the draft's own among them.
        models: whose they are.
        runs: timings; those of `models` are joined to the policies, the others show imposed acceptance, and policies
            whose speed depends on no acceptance.
        draft_len: which length of the policies is shown.
        found: quality of the policies; None = the column is left out, and only an exact law keeps the image.

    Raises:
        InputError: two runs time one policy of `models`.
    """
    measured = found.rows if found is not None and found.models == models else []
    losses = {row.name: row for row in measured if row.draft_len == draft_len and row.losses}
    lines: list[BoardLine] = []
    for run, named in _named(runs):
        if run.models != models:
            lines += [_imposed(run, named, row) for row in _fastest(run.rows)]
    for run, named in _named(runs):
        if run.models != models:
            lines += [_divided(named, rows) for rows in _by_policy(row for row in run.rows if not row.speculates)]
    draft = next(row.mean("pixels") for row in policies if row.policy == DRAFT_ALONE)
    timed: dict[str, SpeedRow] = {}
    for run in runs:
        for timing in run.rows:
            at_length = str(timing.draft_len) == draft_len or not timing.speculates
            if run.models == models and timing.batch == 1 and at_length:
                if timing.policy in timed:
                    rule = f"{timing.policy} at draft_len {draft_len} is timed twice on {models}"
                    raise InputError("speed", run.title, rule, "name one of the files with --speed")
                timed[timing.policy] = timing
    for row in policies:
        if row.contract and row.draft_len == draft_len:
            name = f"{models}, `{row.policy}`"
            lines.append(_policy(name, row, timed.get(row.policy), draft, losses.get(row.policy)))
    return lines


def _fastest(rows: Sequence[SpeedRow]) -> list[SpeedRow]:
    """Return the fastest draft length of one image at every imposed rate of a half or more, the highest rate first."""
    shown = [row for row in rows if row.policy.startswith(IMPOSED) and row.batch == 1 and _rate(row) >= LEAST_RATE]
    best = {rate: max((r for r in shown if _rate(r) == rate), key=lambda r: r.speed_up) for rate in map(_rate, shown)}
    return [best[rate] for rate in sorted(best, reverse=True)]


def _rate(row: SpeedRow) -> float:
    return float(row.policy.partition(":")[2])


def _imposed(run: Speed, named: str, row: SpeedRow) -> BoardLine:
    name = f"{named}, {row.draft_len} scales{' + bonus' if run.bonus else ''}, {row.kept:.0%} of scales kept"
    memory = "-" if math.isnan(row.extra_memory) else f"{row.extra_memory:+.1%}"
    cells = (f"{row.target_calls:.1f}", f"{row.speed_up:.2f}", memory, "imposed")
    kept = _kept(calls=row.target_calls <= MOST_CALLS, speed=_is_fast(row), memory=row.extra_memory < MOST_MEMORY)
    return BoardLine(name, "-", cells, kept, imposed=True, loss="imposed")


def _by_policy(rows: Iterable[SpeedRow]) -> list[list[SpeedRow]]:
    """Return the rows of every policy together, in order of their batch."""
    found: dict[str, list[SpeedRow]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        found.setdefault(row.policy, []).append(row)
    return list(found.values())


def _divided(named: str, rows: Sequence[SpeedRow]) -> BoardLine:
    """Return the line of a policy under which nothing drafted is judged: its speed needs no luck, at any batch."""
    batches = " / ".join(f"{row.batch}" for row in rows)
    what = f"{named}, `{rows[0].policy}`, batch {batches}"
    memory = " / ".join(_number(row.extra_memory, "+.1%") for row in rows)
    cells = (f"{rows[0].target_calls:.1f}", " / ".join(f"{row.speed_up:.2f}" for row in rows), memory, "random weights")
    tests: dict[str, Callable[[SpeedRow], bool]] = {
        "calls": lambda row: row.target_calls <= MOST_CALLS,
        "speed": _is_fast,
        "memory": lambda row: row.extra_memory < MOST_MEMORY,
    }
    kept = {name: [row.batch for row in rows if test(row)] for name, test in tests.items()}
    at_all = {name: "" if len(at) == len(rows) else " and ".join(map(str, at)) for name, at in kept.items() if at}
    return BoardLine(what, parse(rows[0].policy).contract.letter, cells, at_all)


def _is_fast(row: SpeedRow) -> bool:
    """Tell whether the promise of speed is kept, by a time that its own passes do not contradict."""
    steady = math.isnan(row.allowed) or row.speed_up <= STEADY * row.allowed
    return row.speed_up >= LEAST_SPEED_UP and steady


def _policy(
    name: str, row: PolicyRow, timing: SpeedRow | None, draft_pixels: float, loss: QualityRow | None
) -> BoardLine:
    share = row.mean("pixels") / draft_pixels
    exact = row.contract in "AB"
    answer = quality(loss, MOST_LOSS) if loss is not None else None
    kept = _kept(
        calls=row.mean("target_calls") <= MOST_CALLS,
        speed=timing is not None and _is_fast(timing),
        image=exact if answer is None else answer is Quality.KEPT,
    )
    same = row.mean("tokens") == 0
    distance = "0 %" if same else f"{share * 100:.0f} %" + (" (its law is exact)" if exact else "")
    cells = (f"{row.mean('target_calls'):.1f}", f"{timing.speed_up:.2f}" if timing else "-", "-", distance)
    note = "" if timing else " (speed not measured)"
    if loss is None or answer is None:
        return BoardLine(name, row.contract, cells, kept, note=note)
    lost = f"{'-' if loss.loss is None else loss.loss}; {loss.drift} {answer.value}"
    return BoardLine(name, row.contract, cells, kept, note=note, loss=lost)


def _kept(**promises: bool) -> dict[str, str]:
    return {name: "" for name, is_kept in promises.items() if is_kept}


def speed_table(runs: Sequence[Speed]) -> str:
    """Return every timing of the runs as a table; milliseconds per batch."""
    lines = [
        "| pair | mode | batch | policy | scales kept | draft_len | reference | target | draft | speculative |"
        " target calls | speed-up | passes allow | share | floor of the passes | extra memory |",
        "|---|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, named in _named(runs):
        pair, _, mode = named.partition(", ")
        for row in run.rows:
            length = f"{row.draft_len}{' + bonus' if run.bonus else ''}" if row.speculates else "-"
            cells = [pair, mode, f"{row.batch}", f"`{row.policy}`", _number(row.kept, ".0%"), length]
            cells += [_number(ms, ".1f") for ms in (row.reference_ms, row.target.ms, row.draft.ms, row.ms)]
            cells += [f"{row.target_calls:.2f}", f"{row.speed_up:.2f}", _number(row.allowed, ".2f")]
            cells += [_number(row.speed_up / row.allowed, ".0%"), _number(row.floor_ms, ".1f")]
            lines.append(f"| {' | '.join([*cells, _number(row.extra_memory, '+.1%')])} |")
    # the products' rate depends on the mode
    machines = {(run.mode, run.machine.name): str(run.machine) for run in runs}
    told = [f"- {mode} on {machine}" for (mode, _), machine in sorted(machines.items())]
    return "\n".join([*lines, "", *told]) + "\n"


def _named(runs: Sequence[Speed]) -> list[tuple[Speed, str]]:
    """Return every run with its pair and mode, and its card where the runs are of several: those do not compare."""
    several = len({run.machine.name for run in runs}) > 1
    card = [f", {run.machine.name.removeprefix('NVIDIA ')}" if several else "" for run in runs]
    return [(run, f"{run.models.split(' ')[0]}, {run.title}{on}") for run, on in zip(runs, card, strict=True)]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
