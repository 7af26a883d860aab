"""How often `--locate` names the line of a planted bug: a Markdown table by family.

    python scripts/located.py [--every N]

The truth is written down before: the lines of the bug's definition in its module, and of the functions there that it
names. A line is right where the innermost frame lies within 3 of those, a function where any frame of the stack does.
Bugs that decoder and reference share, and those that show no wrong value in the case (digits, four scales, two images),
are not counted.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path

from harness import load_digits
from harness.decoders._in_process import search_line
from harness.judge import CodeLine
from harness.mutants import MUTANTS
from harness.mutants._hunt import FAMILIES
from harness.protocol import Request, Settings

NEAR, SCALES = 3, 4


def truths() -> dict[str, tuple[str, set[int]]]:
    """Return file and lines of every bug, by its id."""
    found: dict[str, tuple[str, set[int]]] = {}
    for family in FAMILIES:
        file = str(family.__file__)
        nodes = ast.parse(Path(file).read_text()).body
        named = {target.id: node for node in nodes if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
        named |= {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for name, mutant in vars(family).items():
            if mutant in MUTANTS:
                found[mutant.id] = file, lines_of(named[name], named)
    return found


def lines_of(node: ast.stmt, named: dict[str, ast.stmt]) -> set[int]:
    """Return the lines of a definition, and of those in its module that it names."""
    lines, pending, seen = set[int](), [node], set[int]()
    while pending:
        one = pending.pop()
        if id(one) not in seen:
            seen.add(id(one))
            lines |= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
            pending += [named[each.id] for each in ast.walk(one) if isinstance(each, ast.Name) and each.id in named]
    return lines


def main() -> None:
    """Search every bug's line; print a row a family, and what was missed on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every Nth bug alone")
    step, models, counts = parser.parse_args().every, load_digits().first_scales(SCALES), Counter[tuple[str, str]]()
    where = truths()
    for mutant in [each for each in MUTANTS if not each.shared][::step]:
        decoder = mutant(models, Settings(2, policy="coupled"))
        line = search_line(decoder, models, Request((0, 1), 0, 1.5), False)
        counts[mutant.family, "asked"] += 1
        file, lines = where[mutant.id]
        if isinstance(line, CodeLine):
            places = [tuple(frame.split(", in ")[0].rsplit(":", 1)) for frame in line.stack]
            near = [name == file and min(abs(int(number) - each) for each in lines) <= NEAR for name, number in places]
            counts[mutant.family, "wrong"] += 1
            counts[mutant.family, "function"] += any(near)
            counts[mutant.family, "line"] += near[0]
        elif line.startswith(("no operation", "not found")):
            counts[mutant.family, "wrong"] += 1
        print(f"{mutant.id}: {line}", file=sys.stderr, flush=True)
    print("| family | bugs | wrong value | function right | line right |\n|---|---|---|---|---|")
    for family in dict.fromkeys(name for name, _ in counts):
        print(
            f"| {family} | {' | '.join(str(counts[family, word]) for word in ('asked', 'wrong', 'function', 'line'))} |"
        )


if __name__ == "__main__":
    main()
