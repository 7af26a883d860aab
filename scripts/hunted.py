"""The table of docs/laws.md: what a planted bug changes, what catches it first, and which law.

sdvar-harness mutants --laws first --json hunt.json
python -m scripts.hunted hunt.json          # verifies each bug without options, too: a core each, minutes of many
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import Terms, load_digits
from harness.files import write_whole
from harness.judge import Verdict
from harness.laws import try_laws_quickly
from harness.mutants import MUTANTS
from harness.runs import Decodes, covering, plan_of, verify_coverage_plan
from scripts.pages import DOCS, replaced_parts

Row = Mapping[str, Any]  # a mutant, as `mutants --json` has it
BY_ID = {mutant.id: mutant for mutant in MUTANTS}


@dataclass(frozen=True)
class Found:
    """What the default verification says of one mutant: a defect's component, empty where there is none."""

    component: str
    seconds: float  # to it


def verified(name: str) -> Found:
    """Do on a mutant what `verify` does without options, in this process, up to the first defect."""
    torch.set_num_threads(1)
    mutant, start = BY_ID[name], time.perf_counter()
    with mutant.planted():
        blocks = covering(load_digits())
        decodes = Decodes(mutant, plan_of(blocks), Terms(in_process=True, first_only=True))
        result = verify_coverage_plan(blocks[0].models, decodes)
        if result.verdict is not Verdict.DEFECT:
            result.take_laws(try_laws_quickly(mutant))
    first = result.first_divergence if result.verdict is Verdict.DEFECT else None
    return Found(first.component if first is not None else "", time.perf_counter() - start)


def first_catch(row: Row, found: Found) -> str:
    """Return what catches a mutant first, with the component that `verify` names and its seconds."""
    if not found.component:
        return "laws" if row["caught_by"] else "SURVIVED"
    stated = BY_ID[row["id"]].component
    right = "" if stated in ("", found.component) else f", not {stated}"
    return f"verify ({found.component}{right}, {found.seconds:.1f} s)"


def hunt_markdown(rows: Sequence[Row], by_verify: Sequence[Found]) -> str:
    """Return the table, and how many `verify` catches."""
    caught = [(BY_ID[row["id"]], found) for row, found in zip(rows, by_verify, strict=True) if found.component]
    stated = [found.component == mutant.component for mutant, found in caught if mutant.component]
    counts = f"`verify` alone catches {len(caught)} of {len(rows)}"
    lines = [f"{counts}; of the {len(stated)} with a stated component it names {sum(stated)} rightly.", ""]
    lines += ["| planted bug | what it changes | first caught by | law | seconds |", "|---|---|---|---|---:|"]
    for row, found in zip(rows, by_verify, strict=True):
        law, change = next(iter(row["caught_by"]), ""), row["change"].replace("|", "\\|")
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        cells = (f"`{row['id']}`", change, first_catch(row, found), f"`{law}`" if law else "-", seconds)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Read what laws found, verify, and write the table. Raises `InputError` for a page without markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hunt", type=Path, help="file of mutants --json")
    parser.add_argument("--into", type=Path, default=DOCS / "laws.md")
    given = parser.parse_args(words)
    replaced_parts(given.into, {"mutants": ""})  # a page without markers is refused before the work
    rows = json.loads(given.hunt.read_text())["mutants"]
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = pool.map(verified, [row["id"] for row in rows], chunksize=1)
    write_whole(given.into, replaced_parts(given.into, {"mutants": hunt_markdown(rows, found)}).encode())
    if given.into == DOCS / "laws.md":  # what certificates say of the default question
        counts = {"caught": sum(bool(each.component) for each in found), "planted": len(found)}
        write_whole(DOCS.parent / "harness" / "mutants" / "hunted.json", f"{json.dumps(counts)}\n".encode())


if __name__ == "__main__":
    main()
