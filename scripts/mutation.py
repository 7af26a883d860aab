"""Mutation testing of what decides verdicts: run mutmut, weigh its survivors, and keep the page that lists them.

Promise: a mutant counts as killed if a test fails or runs out of time; one that survives counts against its module
unless a line of `EQUAL` says why it changes nothing that anybody could see. Exit status 1 where a module is below 95 %.

    python scripts/mutation.py [--children N] [--keep] [--write]

--keep takes the results of the last run, --write puts the table and the survivors into docs/mutation.md.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = ROOT / "mutants"  # where mutmut works
PAGE = ROOT / "docs" / "mutation.md"
LEAST = 0.95
BEGIN, END = "<!-- mutation: begin -->", "<!-- mutation: end -->"
# Exit status of the tests: 1 and 3 fail, -24, 24, 36, 152 and 255 ran out of time, 0 pass, 33 no test ran.
KILLED = {1, 3, -24, 24, 36, 152, 255}

# (where, what may be another, why nobody can tell). Both are regular expressions: a mutant is excused if the lines
# before and after are the same once what may be another is taken out of both: the rest of a line is never excused.
EQUAL = [
    (r".*", r"strict=\w+", "both sides of the zip are as long by construction: strict is an assertion, not a branch"),
    (r".*", r'(?<=, )("(XX)?(judge|JUDGE|golden|GOLDEN)(XX)?"|None)(?=\))', "the reader's word only names who read"),
    (
        r".*",
        r'(encoding|errors)=("[^"]*"|None)',
        "every text here is ASCII or UTF-8 on the machines that the tests run on",
    ),
    (r".*", r"device=[\w.]+", "here all is on a CPU; tests/gpu run the same lines where it matters"),
    (r"\.(_misplaced|other_row)$", r"//?", "rows come in two halves: half of an even number is the same number"),
    (
        r"form\._unreadable$",
        r"^(continue|break)$",
        "what follows the first intermediate is the other ones, which are not shown either",
    ),
    (
        r"race\._survivors$",
        r"(?<=request\.top_[kp]) <=? 0",
        "a shortcut: without a filter what follows drops nobody, and no filter is below 0",
    ),
    (r"budget\.load_budgets$", r"(?<=good = )(False|None)", "neither is true"),
    (r"record\.regenerate$", r"(?<=else Recording\()(path|None)", "nobody asks where a file lies that is not there"),
    (
        r"measure\.windows$",
        r"(?<=block_causal\(pyramid, )(network\.device|None)",
        "here all is on a CPU; tests/gpu run the same lines where it matters",
    ),
    (r"smooth\._judge_maps$", r"steps=(False|None)", "neither asks for what a scale adds"),
    (r"CaseResult\.compare$", r"(?<=delta / most, )[01]\.0", "what is not judged is within what is allowed either way"),
]


@dataclass(frozen=True)
class Survivor:
    """One mutant that no test noticed.

    Args:
        module: dotted name below `harness`.
        function: where it is.
        before: the lines as they are.
        after: what the mutant made of them.
        why: why it changes nothing; empty where it does.
    """

    module: str
    function: str
    before: str
    after: str
    why: str


def run(children: int) -> float:
    """Run mutmut from nothing; return the seconds it took."""
    subprocess.run(["rm", "-rf", str(MADE)], check=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.monotonic() - start


def results() -> tuple[Counter[str], list[Survivor]]:
    """Return the mutants by module, and those that survived; what the tests did not reach has survived."""
    total: Counter[str] = Counter()
    survivors = []
    for meta in sorted(MADE.rglob("*.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        bodies = dict(_bodies(Path(str(meta).removesuffix(".meta")))) if codes else {}
        for key, code in codes.items():
            if code is None:
                continue  # a run of some mutants only; of all of them mutmut leaves none
            module, _, name = key.removeprefix("harness.").rpartition(".")
            total[module] += 1
            if code not in KILLED:
                survivors.append(_survivor(module, name, bodies))
    return total, survivors


def _bodies(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the functions of a mutated file, by name, without that name."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = lines[node.lineno - 1].replace(node.name, "", 1)
            yield node.name, [first, *lines[node.lineno : node.end_lineno]]


def _survivor(module: str, name: str, bodies: dict[str, list[str]]) -> Survivor:
    original = bodies.get(re.sub(r"__mutmut_\d+$", "__mutmut_orig", name), [])
    changed = list(difflib.ndiff(original, bodies.get(name, [])))
    before, after = (" ".join(line[2:].strip() for line in changed if line.startswith(sign)) for sign in "-+")
    function = re.sub(r"__mutmut_\d+$", "", name).removeprefix("x_").replace("xǁ", "").replace("ǁ", ".")
    where = f"{module}.{function}"
    return Survivor(module, function, before, after, excuse(where, before, after))


def excuse(where: str, before: str, after: str) -> str:
    """Return why a mutant changes nothing that anybody could see; empty where it does."""
    for at, other, why in EQUAL:
        if re.search(at, where) and _without(other, before) == _without(other, after):
            return why
    return ""


def _without(pattern: str, line: str) -> str:
    """Take a pattern out of a line, and the commas that it leaves behind."""
    return re.sub(r"[\s,]+", " ", re.sub(pattern, "", line)).replace(" )", ")")


def table(total: Counter[str], survivors: list[Survivor]) -> Iterator[tuple[str, int, int, int, float]]:
    """Yield (module, mutants, survivors that change nothing, survivors that do, score) of every module."""
    for module in sorted(total):
        own = [s for s in survivors if s.module == module]
        equal = sum(bool(s.why) for s in own)
        left = len(own) - equal
        yield module, total[module], equal, left, 1 - left / max(1, total[module] - equal)


def page(total: Counter[str], survivors: list[Survivor], seconds: float | None) -> str:
    """Return the part of docs/mutation.md that is made from results."""
    rows = list(table(total, survivors))
    lines = ["| module | mutants | equal | survive | score |", "|---|---:|---:|---:|---:|"]
    lines += [f"| `{module}` | {n} | {equal} | {left} | {score:.1%} |" for module, n, equal, left, score in rows]
    sums = [sum(row[k] for row in rows) for k in (1, 2, 3)]
    lines.append(f"| all | {sums[0]} | {sums[1]} | {sums[2]} | {1 - sums[2] / max(1, sums[0] - sums[1]):.1%} |")
    if seconds is not None:
        lines += ["", f"Wall time {seconds / 60:.0f} min, {os.cpu_count()} cores."]
    lines += ["", "### Survivors that change nothing", ""]
    for why in dict.fromkeys(s.why for s in survivors if s.why):
        found = Counter(s.module for s in survivors if s.why == why)
        lines.append(f"- {why}: " + ", ".join(f"`{module}` {n}" for module, n in found.items()) + ".")
    lines += ["", "### Survivors that no test has killed yet", ""]
    lines += [f"- `{s.module}.{s.function}`: `{s.before}` → `{s.after}`" for s in survivors if not s.why] or ["None."]
    return "\n".join(lines)


def main() -> int:
    """Run, print, and write where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    seconds = None if options.keep else run(options.children)
    total, survivors = results()
    made = page(total, survivors, seconds)
    print(made)
    if options.write:
        text = PAGE.read_text()
        head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{tail}")
    return int(not total or any(score < LEAST for *_, score in table(total, survivors)))


if __name__ == "__main__":
    sys.exit(main())
