"""`sdvar-harness scoreboard`: the report's promises against stored measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.bench.files import read_policies, read_speed
from harness.bench.scoreboard import markdown, promises, speed_table
from harness.bench.scoreboard import scoreboard as board_of
from harness.commands import options
from harness.errors import InputError
from harness.files import check_outputs, check_writable, write_whole
from harness.quality.measured import read_quality
from harness.report.quality import quality_markdown
from harness.report.speed import show_scoreboard
from harness.report.tables import replaced_parts
from harness.report.terminal import plain_console, say

DEFAULT = Path("docs/measured")


def scoreboard(
    policies: Annotated[Path, typer.Option(help="File of bench-policies --json.")] = DEFAULT / "policies.json",
    quality: Annotated[
        Path | None, typer.Option(help="File of quality --json; by default quality.json beside the policies, if any.")
    ] = None,
    speed: Annotated[str, typer.Option(help="Files of bench --json, by commas; empty: every speed-*.json there.")] = "",
    into: Annotated[str, typer.Option(help="Markdown files, by commas: replace what stands between the markers.")] = "",
    picture: Annotated[Path | None, typer.Option(help="Write speed-up against acceptance to this SVG file.")] = None,
) -> None:
    """Compare stored measurements with the promises of the SDVAR report: calls, speed, memory, image."""
    pages = {f"into {name}": Path(name) for name in into.split(",") if name}
    for page in pages.values():
        check_writable(page, "into")
    check_writable(picture, "picture")
    files = speed_files(speed, policies.parent)
    usual = policies.parent / "quality.json"
    quality = usual if quality is None and usual.is_file() else quality
    inputs: dict[str, Path | None] = {
        "policies": policies,
        "quality": quality,
        **{f"speed {path.name}": path for path in files},
    }
    outputs = check_outputs({**pages, "picture": picture}, inputs)
    options.check_drawing(picture)
    runs = [read_speed(path) for path in files]
    models, rows = read_policies(policies)
    found = read_quality(quality) if quality is not None else None
    board = board_of(rows, models, runs, found=found)
    parts = {"scoreboard": markdown(rows, models, runs, found=found), "speed": speed_table(runs)}
    if found is not None:
        parts["quality"] = quality_markdown(found)
    written = {page: replaced_parts(page, parts) for page in pages.values()}
    show_scoreboard(board, plain_console())
    for text in promises(board):
        say(plain_console(), text)
    if "picture" in outputs:
        from harness.bench.charts import speed_up, svg  # noqa: PLC0415  # matplotlib is asked for where one draws

        write_whole(outputs["picture"], svg(speed_up(runs)))
    for page, text in written.items():
        write_whole(page, text.encode())


def speed_files(speed: str, folder: Path) -> list[Path]:
    """Return the files of timings, by default those of a folder. Raises `InputError` where there is none."""
    found = [Path(name) for name in speed.split(",") if name]
    found = found or sorted(folder.glob("speed-*.json"))
    if not found:
        rule = f"names nothing, and {folder} has no speed-*.json"
        raise InputError("speed", speed, rule, "pass files of bench --json")
    return found
