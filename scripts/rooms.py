"""The rooms of the package and the doors between them, read from its imports.

Promise: `docs/architecture.md` shows what the code imports; `python scripts/rooms.py` rewrites its picture, and a test
fails where the page or a door is not true (tests/meta/test_imports.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"
LOOSE = "(loose)"  # modules that lie in no room

# What a room may import; the loose modules are open to all. Read it from top to bottom: no room opens upwards.
# `verification` is one module, the question behind every door.
ORACLE = ("protocol", "models", "reference", "rounding", "judge")
UNDER_TEST = ("protocol", "models", "speculative", "adapters", "rounding", "judge")
RUNS = ("processes", *ORACLE, "speculative", "adapters", "decoders", "pool")
DOORS: dict[str, tuple[str, ...]] = {
    "processes": (),
    "protocol": (),
    "models": ("protocol",),
    "speculative": ("protocol", "models"),
    "reference": ("protocol", "models"),
    "rounding": ("protocol", "models", "reference"),
    "judge": ("protocol", "models", "reference", "rounding"),
    "adapters": ORACLE,
    "decoders": ("processes", *UNDER_TEST),
    "pool": ("processes", "models", "rounding", "decoders"),
    "runs": RUNS,
    "laws": (*RUNS, "runs"),
    "mutants": ("protocol", "models", "speculative", "judge", "decoders", "pool", "runs", "laws"),
    "golden": (*ORACLE, "speculative", "decoders", "pool", "runs", "laws"),
    "certificate": (*ORACLE, "decoders", "runs", "golden"),
    "quality": (*ORACLE, "speculative", "decoders", "pool", "runs"),
    "bench": (*ORACLE, "speculative", "decoders"),
    "report": (
        "protocol", "models", "speculative", "rounding", "judge", "adapters", "decoders", "pool", "runs", "laws",
        "mutants", "golden", "certificate", "quality", "bench",
    ),
    "verification": (*RUNS, "runs", "laws", "quality", "report"),
    "plugin": (*RUNS, "runs", "laws", "report", "verification"),
    "commands": (
        *RUNS, "runs", "laws", "mutants", "golden", "certificate", "quality", "bench", "report", "verification",
    ),
}  # fmt: skip

OUTSIDE = {"harness": tuple(room for room in DOORS if room != "commands"), "harness.__main__": tuple(DOORS)}


def room_of(module: str) -> str:
    """Return the room of a dotted module name, e.g. ``judge`` of ``harness.judge._ties``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in DOORS else LOOSE


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """Return every dotted name that a module imports, wherever in its text; relative names are resolved.

    Args:
        source: its text.
        module: its dotted name.
        is_package: it is an ``__init__``.
    """
    found = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the package's modules: dotted name -> file."""
    found = {}
    for path in sorted((root / "harness").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def edges(root: Path = ROOT) -> dict[str, set[str]]:
    """Return which of the package's own modules every module imports, under TYPE_CHECKING too."""
    known = modules(root)
    found = {}
    for module, path in known.items():
        names = imported(path.read_text(), module, path.name == "__init__.py")
        # `from harness.laws import masks` names the package, too, and means the module
        packages = {name.rpartition(".")[0] for name in names if name in known}
        found[module] = {name for name in names if name in known and name not in packages} - {module}
    return found


def broken_doors(graph: dict[str, set[str]]) -> list[str]:
    """List the imports that `DOORS` does not allow.

    The command line alone may import commands, and the package's face, which names everything, is for those outside.
    """
    found = []
    for module, targets in sorted(graph.items()):
        room = room_of(module)
        for target in sorted(targets):
            there = room_of(target)
            if there in (LOOSE, room) and target != "harness":
                continue
            if there not in DOORS.get(room, OUTSIDE.get(module, ())):
                found.append(f"{module} imports {target}")
    return found


def broken_faces(graph: dict[str, set[str]]) -> list[str]:
    """List the imports of another room's private modules: what others may use, a room's `__init__` re-exports.

    `plugin` and `commands` have no face, since pytest and the command line import what they need alone: of them others
    import modules, none of which is private.
    """
    return [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if target.rpartition(".")[2].startswith("_") and target.rpartition(".")[0] != _package(module)
    ]


def _package(module: str) -> str:
    return module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, in order; empty when there is none."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> list[str]:
        state[module] = 1
        path.append(module)
        for target in sorted(graph[module]):
            if state.get(target) == 1:
                return [*path[path.index(target) :], target]
            if target not in state and (found := visit(target)):
                return found
        path.pop()
        state[module] = 2
        return []

    for module in sorted(graph):
        if module not in state and (found := visit(module)):
            return found
    return []


def picture(graph: dict[str, set[str]]) -> str:
    """Return the doors that are in use as a Mermaid graph."""
    doors = {
        (room_of(module), room_of(target))
        for module, targets in graph.items()
        for target in targets
        if LOOSE not in (room_of(module), room_of(target)) and room_of(module) != room_of(target)
    }
    shown = _reduced(doors)
    lines = ["```mermaid", "graph BT"]
    lines += [f"  {above} --> {below}" for above in DOORS for below in DOORS if (above, below) in shown]
    return "\n".join([*lines, "```", ""])


def _reduced(doors: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out a door where a way through another room leads to the same: the picture stays readable."""
    reach: dict[str, set[str]] = {}
    for room in DOORS:  # bottom to top
        below = {b for a, b in doors if a == room}
        reach[room] = below | {far for b in below for far in reach[b]}
    return {(a, b) for a, b in doors if not any(b in reach[other] for a2, other in doors if a2 == a and other != b)}


def rewritten(page: str, graph: dict[str, set[str]]) -> str:
    """Return the page with the picture between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{picture(graph)}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(), edges()))
