"""`sdvar-harness scoreboard`: the report's promises against stored measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.bench.scoreboard import markdown, speed_table
from harness.bench.stored import read_policies, read_speed
from harness.commands.options import flat_options
from harness.errors import InputError
from harness.files import check_distinct, check_writable, write_whole

DEFAULT = Path("docs/measured")


@dataclass(frozen=True)
class ScoreboardOptions:
    """What is read, and where it goes."""

    policies: Annotated[Path, typer.Option(help="File of bench-policies --json.")] = DEFAULT / "policies.json"
    speed: Annotated[str, typer.Option(help="Files of bench --json, by commas; empty: every speed-*.json there.")] = ""
    into: Annotated[str, typer.Option(help="Markdown files, by commas: replace what stands between the markers.")] = ""
    picture: Annotated[Path | None, typer.Option(help="Write speed-up against acceptance to this SVG file.")] = None

    def speed_files(self) -> list[Path]:
        """Return the files of timings. Raises `InputError` where there is none."""
        found = [Path(name) for name in self.speed.split(",") if name]
        found = found or sorted(self.policies.parent.glob("speed-*.json"))
        if not found:
            rule = f"names nothing, and {self.policies.parent} has no speed-*.json"
            raise InputError("speed", self.speed, rule, "pass files of bench --json")
        return found


@flat_options
def scoreboard(options: ScoreboardOptions) -> None:
    """Compare stored measurements with the promises of the SDVAR report: calls, speed, memory, image."""
    pages = [Path(name) for name in options.into.split(",") if name]
    for page in pages:
        check_writable(page, "into")
    check_writable(options.picture, "picture")
    inputs: dict[str, Path | None] = {"policies": options.policies}
    inputs |= {f"speed {path.name}": path for path in options.speed_files()}
    check_distinct({"picture": options.picture, **{f"into {page}": page for page in pages}}, inputs)
    runs = [read_speed(path) for path in options.speed_files()]
    models, policies = read_policies(options.policies)
    parts = {"scoreboard": markdown(policies, models, runs), "speed": speed_table(runs)}
    written = {page: replaced(page, parts) for page in pages}
    if options.picture is not None:
        from harness.bench.charts import speed_up, svg  # noqa: PLC0415  # matplotlib is asked for where one draws

        write_whole(options.picture, svg(speed_up(runs)))
    for page, text in written.items():
        write_whole(page, text.encode())
    print(parts["scoreboard"], end="")


def replaced(page: Path, parts: dict[str, str]) -> str:
    """Return the page with every part between its markers. Raises `InputError` for a page without any."""
    try:
        text = page.read_text() if page.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("into", str(page), f"cannot be read ({error})", "pass a Markdown file") from None
    names = []
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if found and closed:
            names.append(name)
            text = f"{before}{begin}{part}{end}{after}"
    if not names:
        rule = "must hold the lines <!-- scoreboard: begin --> and <!-- scoreboard: end -->, or those of speed"
        raise InputError("into", str(page), rule, "add them")
    return text
