"""The table of docs/laws.md, of what `mutants --json` found: what a bug changes, what catches it first, which law.

sdvar-harness mutants --laws first --verify --json hunt.json
python -m scripts.hunted hunt.json
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import write_whole
from harness.mutants import MUTANTS
from scripts.pages import DOCS, replaced_parts

Row = Mapping[str, Any]  # a mutant, as `mutants --json` has it
COMPONENTS = {mutant.id: mutant.component for mutant in MUTANTS}  # that `verify` must point to; empty where it is open


def first_catch(row: Row) -> str:
    """Return what catches a mutant first, with the component that `verify` names and its seconds."""
    if row["stage"] != "verify":
        return row["stage"] or "SURVIVED"
    found, stated = row["verify"], COMPONENTS.get(row["id"], "")
    right = "" if stated in ("", found["component"]) else f", not {stated}"
    return f"verify ({found['component']}{right}, {found['seconds']:.1f} s)"


def hunt_markdown(rows: Sequence[Row]) -> str:
    """Return the table, and how many `verify` catches where it was asked."""
    lines = []
    if any(row["verify"] for row in rows):
        by_verify = [row for row in rows if row["stage"] == "verify"]
        stated = [row for row in by_verify if COMPONENTS.get(row["id"])]
        right = sum(row["verify"]["component"] == COMPONENTS[row["id"]] for row in stated)
        counts = f"`verify` alone catches {len(by_verify)} of {len(rows)}"
        lines = [f"{counts}; of the {len(stated)} with a stated component it names {right} rightly.", ""]
    lines += ["| planted bug | what it changes | first caught by | law | seconds |", "|---|---|---|---|---:|"]
    for row in rows:
        law, change = next(iter(row["caught_by"]), ""), row["change"].replace("|", "\\|")
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        cells = (f"`{row['id']}`", change, first_catch(row), f"`{law}`" if law else "-", seconds)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Read what was found, and write the table. Raises `InputError` for a page without markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hunt", type=Path, help="file of mutants --json")
    parser.add_argument("--into", type=Path, default=DOCS / "laws.md")
    given = parser.parse_args(words)
    table = hunt_markdown(json.loads(given.hunt.read_text())["mutants"])
    write_whole(given.into, replaced_parts(given.into, {"mutants": table}).encode())


if __name__ == "__main__":
    main()
