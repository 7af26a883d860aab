"""`sdvar-harness scoreboard`: the report's promises against stored measurements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from harness.commands._options import WRITTEN, Picture
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, check_writable

MEASURED = Path("docs/measured")


@dataclass(frozen=True)
class StoredMeasurements(Group):
    """Which measurements are read, and what is written."""

    panel = "What is read"
    policies: Annotated[Path, Option("File of bench-policies --json.")] = MEASURED / "policies.json"
    quality: Annotated[
        Path | None, Option("File of quality --json.", shown="quality.json beside the policies, if any")
    ] = None
    speed: Annotated[str, Option("Files of bench --json, by commas.", shown="every speed-*.json there")] = ""
    into: Annotated[
        str, Option("Markdown files, by commas: replace what stands between the markers.", panel=WRITTEN)
    ] = ""
    picture: Picture = None


@command
def scoreboard(stored: StoredMeasurements) -> None:
    """Compare stored measurements with the promises of the SDVAR report: calls, speed, memory, image."""
    from harness.bench import read_policies, read_speed, speed_table
    from harness.bench import scoreboard as board_of
    from harness.commands._inputs import check_drawing
    from harness.quality import read_quality
    from harness.report import plain_console, quality_markdown, replaced_parts, say, show_scoreboard, write_asked

    pages = {f"into {name}": Path(name) for name in stored.into.split(",") if name}
    for page in pages.values():
        check_writable(page, "into")
    check_writable(stored.picture, "picture")
    folder = stored.policies.parent
    files = speed_files(stored.speed, folder)
    usual = folder / "quality.json"
    quality = stored.quality or (usual if usual.is_file() else None)
    inputs = {"policies": stored.policies, "quality": quality, **{f"speed {path.name}": path for path in files}}
    paths = check_outputs({**pages, "picture": stored.picture}, inputs)
    check_drawing(stored.picture)
    runs = [read_speed(path) for path in files]
    models, rows = read_policies(stored.policies)
    measured = read_quality(quality) if quality is not None else None
    board = board_of(rows, models, runs, measured=measured)
    tables = {"scoreboard": board.markdown(), "speed": speed_table(runs)}
    if measured is not None:
        tables["quality"] = quality_markdown(measured)
    texts = {name: replaced_parts(page, tables) for name, page in pages.items()}
    show_scoreboard(board, plain_console())
    for text in board.promises():
        say(plain_console(), text)
    if "picture" in paths:
        from harness.bench.charts import speed_up_chart, svg  # matplotlib is asked for where one draws

        write_asked(paths, picture=lambda: svg(speed_up_chart(runs)))
    write_asked(paths, quiet=False, **{name: text.encode for name, text in texts.items()})


def speed_files(speed: str, folder: Path) -> list[Path]:
    """Return the files of timings, by default those of a folder. Raises `InputError` where there is none."""
    files = [Path(name) for name in speed.split(",") if name] or sorted(folder.glob("speed-*.json"))
    if not files:
        rule = f"names nothing, and {folder} has no speed-*.json"
        raise InputError("speed", speed, rule, "pass files of bench --json")
    return files
