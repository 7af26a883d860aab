"""Many runs beside each other: what each came to, and what changed between two.

Promise: a run is read off its file in a few milliseconds, by counts and notes alone; its verdict is the one that
`verify` printed. A certificate is a row, too, its counts and verdict made anew from its own tokens. A file that cannot
be read, or does not hold together, is a row that says why.
"""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console

from harness.certificate import is_certificate, read_certificate
from harness.certificate.checked import check_statement
from harness.errors import InputError, one_line
from harness.judge import Verdict
from harness.protocol import Contract
from harness.report._tables import columns_of, name_column, print_table, prose_column
from harness.report._terminal import say, setting_name
from harness.runs import RUN_FILE, Exercised, Verification
from harness.schema import record_of
from harness.wording import count_of, date_of

UNREADABLE, UNFINISHED, REFUSED = "UNREADABLE", "UNFINISHED", "REFUSED"  # the last: a certificate
WORST = (Verdict.DEFECT, REFUSED, UNREADABLE, Verdict.INCONCLUSIVE, UNFINISHED, Verdict.CONSISTENT, Verdict.TIE,
         Verdict.IDENTICAL)  # fmt: skip
MARK_AT = slice(68, 72)  # of an SQLite file: whose it is
Change = tuple[str, str, str]  # what, in the first run, in the second


@dataclass(frozen=True)
class RunSummary:
    file: Path  # its run file
    verdict: str  # a `Verdict`, UNFINISHED, or UNREADABLE
    ended: float = 0.0  # when its last batch was judged, seconds since 1970; 0 = none was
    decoder: str = ""  # name of its factory
    commit: str = ""  # of that code
    contract: str = ""  # letters of what was claimed, or the decoder that it was compared with
    models: str = ""  # title of its networks
    images: int = 0
    wrong_tokens: int = 0
    why: str = ""  # where it first differs, or why it cannot be read

    @property
    def cells(self) -> list[str]:
        ended, of = date_of(self.ended) if self.ended else "", f"{self.decoder} {self.commit}".strip()
        counts = (f"{count:,}" for count in (self.images, self.wrong_tokens))
        return [str(self.file), self.verdict, self.why, ended, of, self.contract, self.models, *counts]


def summary_of(path: Path) -> RunSummary:
    if is_certificate(path):
        return _certified(path)
    try:
        with RUN_FILE.reading(path) as base:
            keys = "'identity', 'networks', 'contracts', 'outcome'"
            notes = {key: json.loads(text) for key, text in base.execute(f"SELECT * FROM run WHERE key IN ({keys})")}
            totals = "total(images), total(wrong_tokens), total(defects), coalesce(max(ended), 0.0)"
            *counts, ended = base.execute(f"SELECT {totals} FROM judged WHERE refused = ''").fetchone()
            outcome, identity = notes.get("outcome"), notes.get("identity") or {}
            of, other = identity.get("decoder", {}), identity.get("against")
            images, wrong, defects = map(int, counts)
            verdict, why = (Verdict(outcome["verdict"]), str(outcome["first"])) if outcome else (UNFINISHED, "")
            if outcome is None and defects:
                verdict, why = Verdict.DEFECT, "not finished"
            contract, models = _letters(notes.get("contracts", ())), str(notes["networks"]["title"])
            if other:
                contract = f"against {other['implementation']} {Path(other['checkout']).name}".strip()
            named = (str(of.get("implementation", "")), str(of.get("commit", ""))[:7], contract, models)
            return RunSummary(path, verdict, float(ended), *named, images, wrong, why)
    except InputError as error:
        return RunSummary(path, UNREADABLE, why=str(error))


def _certified(path: Path) -> RunSummary:
    """Return what a certificate says, as far as it holds together: nothing is believed, and nothing computed anew."""
    try:
        made, _, is_signed = read_certificate(path, believed=False)
        check_statement(made, str(path))
    except InputError as error:
        return RunSummary(path, REFUSED, why=f"{error.rule}; {error.remedy}")
    clauses = [
        next((decode.first for decode in made.decodes if decode.first), next(iter(made.inconclusive), "")),
        "its signature is not looked at" if is_signed else "",
        record_of(Exercised, {**made.exercised}).brief(),
    ]
    decoder, commit = (str(made.decoder.get(name, "")) for name in ("implementation", "commit"))
    counts = made.counts["images"], made.counts["wrong_tokens"]
    why = "; ".join(filter(None, clauses))
    contract = ", ".join(sorted({setting.contract for setting in made.settings}))
    return RunSummary(path, made.verdict, 0.0, decoder, commit[:7], contract, made.networks.title, *counts, why)


def _letters(contracts: Sequence[str]) -> str:
    """Return the contracts' letters, each once."""
    return ", ".join(sorted({Contract(each).letter for each in contracts}))


def run_files(given: Sequence[Path]) -> list[Path]:
    """Return the files that are named, runs and certificates of folders. Raises `InputError` for no file."""
    files: list[Path] = []
    for path in given:
        inside = path.iterdir() if path.is_dir() else ()
        within = sorted(each for each in inside if _is_run(each) or is_certificate(each)) if path.is_dir() else [path]
        if not within:
            remedy = "pass a folder of files of verify --run"
            raise InputError("run", str(path), "holds no run file, and no certificate", remedy)
        files += within
    return list(dict.fromkeys(files))


def _is_run(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as stream:
        return int.from_bytes(stream.read(MARK_AT.stop)[MARK_AT]) == RUN_FILE.application
    return False


@dataclass(frozen=True)
class History:
    runs: Sequence[RunSummary]  # the worst first, then the newest

    @classmethod
    def of(cls, files: Sequence[Path]) -> Self:
        return cls(sorted(map(summary_of, files), key=lambda run: (WORST.index(run.verdict), -run.ended)))

    @property
    def counts(self) -> str:
        """How many runs have which verdict, the worst first."""
        counts = Counter(run.verdict for run in self.runs)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in WORST if counts[verdict])

    @property
    def command(self) -> str:
        """The command line that makes the page of the worst, the newest of them."""
        file = shlex.quote(str(self.runs[0].file))
        asks = f"check {file}" if is_certificate(self.runs[0].file) else f"report {file} --html page.html"
        return f"sdvar-harness {asks}"


def show_history(history: History, console: Console, quiet: bool) -> None:
    """Print a row a run, how many there are of each verdict, and which to look at first."""
    if not quiet:
        rows = [[one_line(cell) or "-" for cell in run.cells] for run in history.runs]
        print_table(console, "", columns_of("runs"), rows)
    say(console, f"{history.counts} of {count_of(len(history.runs), 'run')}")
    if not quiet:
        say(console, f"look at the newest {history.runs[0].verdict}: {history.command}", "next:", whole=True)


def changes_between(one: Verification, other: Verification) -> list[Change]:
    """Return what differs between two runs: what it is, and a dash for what one of them has not."""
    before, after = _facts_of(one), _facts_of(other)
    rows = [(what, before.get(what, "–"), after.get(what, "–")) for what in (before | after)]
    return [row for row in rows if row[1] != row[2]]


def _facts_of(run: Verification) -> dict[str, str]:
    """Return what a run came to, what it is of, and what came of its settings, by name."""
    first = str(run.first_divergence) if run.first_divergence else "–"
    facts = {"verdict": run.verdict.value, "first divergence": first, "networks": run.models}
    facts |= {name.replace("_", " "): f"{count:,}" for name, count in run.totals.items()}
    if run.record is not None and run.record.identity is not None:
        parts = run.record.identity.as_dict()
        facts |= {f"{part} {name}": str(value) for part, values in parts.items() for name, value in values.items()}
    for setting in run.settings:
        calls = setting.target_calls
        mean = f", {sum(calls) / len(calls):.2f} target calls" if calls else ""
        wrong = count_of(setting.total("wrong_tokens"), "wrong token")
        facts[setting_name(setting)] = f"{setting.verdict.value}, {wrong}{mean}"
    return facts


def show_changes(changes: Sequence[Change], names: tuple[str, str], console: Console) -> None:
    columns = [name_column("what"), *(prose_column(one_line(name)) for name in names)]
    print_table(console, "", columns, [[one_line(text) or "-" for text in change] for change in changes])
    say(console, f"{count_of(len(changes), 'difference')} between the two runs")
