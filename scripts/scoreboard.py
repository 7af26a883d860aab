"""The report's four promises against what was measured, per policy: tables and picture of docs/speed.md.

Every number comes from a file of measurements; a verdict is a comparison of numbers, never an opinion.

    python -m scripts.scoreboard             # docs/speed.md, quality.md, draft.md, speed.svg, quality.svg
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from harness.bench import Speed, SpeedRow
from harness.errors import InputError
from harness.files import write_whole
from harness.quality import DRAFT, Measured, Quality, QualityRow, quality_verdict
from harness.speculative import IMPOSED, parse_policy
from harness.wording import number
from scripts.measured import read_policies, read_quality, read_speed
from scripts.pages import DOCS, SIZE, replaced_parts, svg
from scripts.policy_costs import PolicyRow
from scripts.quality_page import quality_markdown, trade_off_chart

MEASURED = DOCS / "measured"
PAGES = tuple(DOCS / name for name in ("speed.md", "quality.md", "draft.md"))

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


@dataclass(frozen=True)
class BoardLine:
    """One decoder against the promises."""

    decoder: str  # pair, mode and policy
    contract: str  # its letter; "-" where there is none
    calls: str  # target calls, and what follows as cells of the table
    speed_up: str  # one figure, or one a batch
    memory: str  # beyond the target's
    pixels: str  # off, or why that means nothing
    kept: Mapping[str, str]  # promises that hold; the batches at which they do, empty = at all
    timed: bool = True  # its speed was measured
    is_imposed: bool = False  # acceptance is
    loss: str | None = None  # loss and drift; None = they were not measured

    def cells(self, with_quality: bool) -> list[str]:
        """Return the row of the table."""
        figures = [self.decoder, self.contract, self.calls, self.speed_up, self.memory, self.pixels]
        if with_quality:
            figures.append(self.loss or ("imposed" if self.is_imposed else "-"))
        promises = ", ".join(f"{name} at {at}" if at else name for name, at in self.kept.items()) or "none"
        return [*figures, promises + ("" if self.timed else " (speed not measured)")]


@dataclass(frozen=True)
class Scoreboard:
    """Imposed acceptance, divided labour, then every policy; `with_quality`: its quality was measured, too."""

    lines: tuple[BoardLine, ...]
    with_quality: bool

    def markdown(self) -> str:
        """Return the table, and what it says of each promise."""
        heads = [*HEADS[:-1], *([LOSS] if self.with_quality else []), HEADS[-1]]
        text = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 3)}---|"]
        text += [f"| {' | '.join(row)} |" for row in (line.cells(self.with_quality) for line in self.lines)]
        return "\n".join(text + (["", *self.promises()] if self.with_quality else [])) + "\n"

    def promises(self) -> list[str]:
        """Return what is kept of each promise, and of those that a decoder keeps together, a sentence each."""
        own = [line for line in self.lines if not line.is_imposed]
        imposed = [line for line in self.lines if line.is_imposed]
        sentences = []
        for promise, text in PROMISES.items():
            kept = {line.decoder: line.kept[promise] for line in own if promise in line.kept}
            who = [f"{decoder} (at {batches})" if batches else decoder for decoder, batches in kept.items()]
            others = sum(promise in line.kept for line in imposed)
            other = f"; of those with imposed acceptance {others}" if imposed else ""
            sentences.append(f"- {text[0].upper()}{text[1:]}: {'; '.join(who) or 'no decoder'}{other}.")
        together = [line.decoder for line in own if {"calls", "image"} <= line.kept.keys()]
        most = max((len(line.kept) for line in own), default=0)
        leaders = [line for line in own if len(line.kept) == most > 0]
        best = [f"{line.decoder} ({', '.join(word for word in PROMISES if word in line.kept)})" for line in leaders]
        sentences.append(f"- Calls and image together: {'; '.join(together) or 'no decoder'}.")
        return [*sentences, f"- Most promises together: {'; '.join(best) or 'no decoder keeps any'}."]


def scoreboard(
    policies: Sequence[PolicyRow],
    models: str,
    runs: Sequence[Speed],
    draft_len: str = "5",
    measured: Measured | None = None,
    others: Sequence[Measured] = (),
) -> Scoreboard:
    """Compare policies of `models` at one draft length, the draft's own among them, with the promises.

    Timings (`runs`) of `models` are joined to the policies, the others show imposed acceptance, and policies whose
    speed depends on no acceptance. Where no quality is `measured`, only an exact law keeps the image. Of `others`,
    pairs of which calls and quality alone were measured, every policy has a line. Raises `InputError` where two runs
    time one policy of `models`.
    """
    foreign = [(run, named) for run, named in _named(runs) if run.models != models]
    lines = [_imposed(run, named, row) for run, named in foreign for row in _fastest(run.rows)]
    for run, named in foreign:
        lines += [_divided(named, rows) for rows in _by_policy(row for row in run.rows if not row.speculates)]
    draft_pixels = next(row.mean("pixels") for row in policies if row.policy == DRAFT)
    timings = _timings([run for run in runs if run.models == models], draft_len)
    shown = [row for row in policies if row.contract and row.draft_len == draft_len]
    lines += [_policy(row, models, timings.get(row.policy), draft_pixels) for row in shown]
    if measured is not None:
        rows = {f"{measured.models}, `{row.name}`": row for row in measured.rows if row.draft_len == draft_len}
        lines = [_with_quality(line, rows.get(line.decoder)) for line in lines]
    lines += [_untimed(other.models, row) for other in others for row in other.rows if not row.yardstick]
    return Scoreboard(tuple(lines), measured is not None)


def _timings(runs: Sequence[Speed], draft_len: str) -> dict[str, SpeedRow]:
    """Return the timing of one image by policy. Raises `InputError` for a policy that is timed twice."""
    timings: dict[str, SpeedRow] = {}
    for run in runs:
        for row in run.rows:
            if row.batch != 1 or (row.speculates and str(row.draft_len) != draft_len):
                continue
            if row.policy in timings:
                rule = f"{row.policy} at draft_len {draft_len} is timed twice on {run.models}"
                raise InputError("speed", run.title, rule, "name one of the files with --speed")
            timings[row.policy] = row
    return timings


def _with_quality(line: BoardLine, row: QualityRow | None) -> BoardLine:
    """Return a line with its losses, and the promise of the image as it was measured."""
    if row is None or not row.losses:
        return line
    verdict = quality_verdict(row, MOST_LOSS)
    kept = {promise: at for promise, at in line.kept.items() if promise != "image"}
    if verdict is Quality.KEPT:
        kept["image"] = ""
    return replace(line, loss=f"{'-' if row.loss is None else row.loss}; {row.drift} {verdict.value}", kept=kept)


def _untimed(models: str, row: QualityRow) -> BoardLine:
    """Return the line of a policy whose calls and quality alone were measured."""
    kept = {"calls": ""} if row.calls is not None and row.calls <= MOST_CALLS else {}
    calls = number(math.nan if row.calls is None else row.calls, ".1f")
    return _with_quality(BoardLine(f"{models}, `{row.name}`", row.contract, calls, "-", "-", "-", kept, False), row)


def _fastest(rows: Sequence[SpeedRow]) -> list[SpeedRow]:
    """Return the fastest draft length of one image at every imposed rate of a half or more, the highest rate first."""
    best: dict[float, SpeedRow] = {}
    for row in rows:
        if row.policy.startswith(IMPOSED) and row.batch == 1:
            rate = float(row.policy.partition(":")[2])
            if rate >= LEAST_RATE and (rate not in best or row.speed_up > best[rate].speed_up):
                best[rate] = row
    return [best[rate] for rate in sorted(best, reverse=True)]


def _is_fast(row: SpeedRow) -> bool:
    """Tell whether the promise of speed is kept, by a time that its own passes do not contradict."""
    steady = math.isnan(row.allowed) or row.speed_up <= STEADY * row.allowed
    return row.speed_up >= LEAST_SPEED_UP and steady


# Promises of calls, speed and memory, as a timing keeps them.
TIMED_PROMISES: Mapping[str, Callable[[SpeedRow], bool]] = {
    "calls": lambda row: row.target_calls <= MOST_CALLS,
    "speed": _is_fast,
    "memory": lambda row: row.extra_memory < MOST_MEMORY,
}


def _imposed(run: Speed, named: str, row: SpeedRow) -> BoardLine:
    what = f"{named}, {row.draft_len} scales{' + bonus' if run.bonus else ''}, {row.kept:.0%} of scales accepted"
    kept = {promise: "" for promise, holds in TIMED_PROMISES.items() if holds(row)}
    calls, speed_up, memory = f"{row.target_calls:.1f}", f"{row.speed_up:.2f}", number(row.extra_memory, "+.1%")
    return BoardLine(what, "-", calls, speed_up, memory, "imposed", kept, is_imposed=True)


def _by_policy(rows: Iterable[SpeedRow]) -> list[list[SpeedRow]]:
    """Return the rows of every policy together, in order of their batch."""
    groups: dict[str, list[SpeedRow]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        groups.setdefault(row.policy, []).append(row)
    return list(groups.values())


def _divided(named: str, rows: Sequence[SpeedRow]) -> BoardLine:
    """Return the line of a policy under which nothing drafted is judged: its speed needs no luck, at any batch."""
    first, kept = rows[0], dict[str, str]()
    for promise, holds in TIMED_PROMISES.items():
        if batches := [str(row.batch) for row in rows if holds(row)]:
            kept[promise] = "" if len(batches) == len(rows) else " and ".join(batches)
    what = f"{named}, `{first.policy}`, batch {' / '.join(f'{row.batch}' for row in rows)}"
    speed_up = " / ".join(f"{row.speed_up:.2f}" for row in rows)
    memory = " / ".join(number(row.extra_memory, "+.1%") for row in rows)
    letter, calls = parse_policy(first.policy).contract.letter, f"{first.target_calls:.1f}"
    return BoardLine(what, letter, calls, speed_up, memory, "random weights", kept)


def _policy(row: PolicyRow, models: str, timing: SpeedRow | None, draft_pixels: float) -> BoardLine:
    exact, is_fast = row.contract in "AB", timing is not None and _is_fast(timing)
    holds = {"calls": row.mean("target_calls") <= MOST_CALLS, "speed": is_fast, "image": exact}
    share = f"{row.mean('pixels') / draft_pixels:.0%}".replace("%", " %")
    pixels = "0 %" if row.mean("tokens") == 0 else share + (" (its law is exact)" if exact else "")
    speed_up = f"{timing.speed_up:.2f}" if timing else "-"
    kept = {promise: "" for promise, is_kept in holds.items() if is_kept}
    calls = f"{row.mean('target_calls'):.1f}"
    return BoardLine(f"{models}, `{row.policy}`", row.contract, calls, speed_up, "-", pixels, kept, timing is not None)


def speed_table(runs: Sequence[Speed]) -> str:
    """Return every timing of the runs as a table; milliseconds per batch."""
    lines = [
        "| pair | mode | batch | policy | scales accepted | draft_len | reference | target | draft | speculative |"
        " target calls | speed-up | passes allow | share | floor of the passes | extra memory |",
        "|---|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, named in _named(runs):
        pair, _, mode = named.partition(", ")
        for row in run.rows:
            length = f"{row.draft_len}{' + bonus' if run.bonus else ''}" if row.speculates else "-"
            cells = [pair, mode, f"{row.batch}", f"`{row.policy}`", number(row.kept, ".0%"), length]
            cells += [number(ms, ".1f") for ms in (row.reference_ms, row.target.ms, row.draft.ms, row.ms)]
            cells += [f"{row.target_calls:.2f}", f"{row.speed_up:.2f}", number(row.allowed, ".2f")]
            cells += [number(row.speed_up / row.allowed, ".0%"), number(row.floor_ms, ".1f")]
            lines.append(f"| {' | '.join([*cells, number(row.extra_memory, '+.1%')])} |")
    # the products' rate depends on the mode
    machines = {(run.mode, run.machine.name): str(run.machine) for run in runs}
    listed = [f"- {mode} on {machine}" for (mode, _), machine in sorted(machines.items())]
    return "\n".join([*lines, "", *listed]) + "\n"


def _named(runs: Sequence[Speed]) -> list[tuple[Speed, str]]:
    """Return every run with its pair and mode, and its card where the runs are of several: those do not compare."""
    several = len({run.machine.name for run in runs}) > 1
    card = [f", {run.machine.name.removeprefix('NVIDIA ')}" if several else "" for run in runs]
    return [(run, f"{run.models.split(' ')[0]}, {run.title}{on}") for run, on in zip(runs, card, strict=True)]


def speed_up_chart(runs: Iterable[Speed]) -> Figure:
    """Draw the speed-up of one image against imposed acceptance: a line a mode and draft length."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="share of drafted scales accepted", ylabel="speed-up over the sequential target")
    for run in runs:
        rows = sorted((r for r in run.rows if r.batch == 1 and r.policy.startswith(IMPOSED)), key=lambda r: r.draft_len)
        for length, group in groupby(rows, lambda row: row.draft_len):
            points = sorted((row.kept, row.speed_up) for row in group)
            label = f"{run.title}, {length} scales" + (" + bonus" if run.bonus else "")
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.axhline(1.0, color="gray", linestyle="--")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    """Read the measurements, and write tables and picture. Raises `InputError` for files that hold none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=Path, default=MEASURED / "policies.json", help="of scripts/policy_costs.py")
    parser.add_argument("--quality", type=Path, help="file of quality --json; quality.json beside the policies, if any")
    parser.add_argument("--others", default="", help="of other pairs, by commas; every quality-*.json there")
    parser.add_argument("--speed", default="", help="files of bench --json, by commas; every speed-*.json there")
    parser.add_argument("--into", default=",".join(map(str, PAGES)), help="pages, by commas")
    parser.add_argument("--picture", type=Path, default=DOCS / "speed.svg", help="speed-up against acceptance")
    parser.add_argument("--trade-off", type=Path, default=DOCS / "quality.svg", help="quality against target calls")
    given = parser.parse_args(words)
    folder = given.policies.parent
    files = [Path(name) for name in given.speed.split(",") if name] or sorted(folder.glob("speed-*.json"))
    if not files:
        rule = f"names nothing, and {folder} has no speed-*.json"
        raise InputError("speed", given.speed, rule, "pass files of bench --json")
    usual = folder / "quality.json"
    quality = given.quality or (usual if usual.is_file() else None)
    runs = [read_speed(path) for path in files]
    models, rows = read_policies(given.policies)
    measured = read_quality(quality) if quality is not None else None
    beside = [Path(name) for name in given.others.split(",") if name] or sorted(folder.glob("quality-*.json"))
    others = {path.stem: read_quality(path) for path in beside}
    board = scoreboard(rows, models, runs, measured=measured, others=tuple(others.values()))
    tables = {"scoreboard": board.markdown(), "speed": speed_table(runs)}
    tables |= {name: quality_markdown(other) for name, other in others.items()}
    if measured is not None:
        tables["quality"] = quality_markdown(measured)
    texts = {page: replaced_parts(page, tables) for page in map(Path, given.into.split(","))}
    print(tables["scoreboard"])
    for page, text in texts.items():
        write_whole(page, text.encode())
    write_whole(given.picture, svg(speed_up_chart(runs)))
    if measured is not None:
        write_whole(given.trade_off, svg(trade_off_chart(measured)))


if __name__ == "__main__":
    main()
