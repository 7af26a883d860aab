"""Rooms and doors: who may import whom, no cycles, one name one thing, and nobody touches the global generator."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from scripts.rooms import (
    BEGIN,
    DOORS,
    PAGE,
    broken_doors,
    broken_faces,
    cycle,
    edges,
    imported,
    modules,
    rewritten,
    room_of,
)

PACKAGE = Path(__file__).parents[2] / "harness"
# errors, wording, numerals, files, content, schema, clock, provenance, signals, version, and the two of Python's
LOOSE_MODULES = 12
OPEN_FACES = ("adapters", "laws")  # what people import of them, too, stands in the docs
SAMPLERS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
IN_PLACE = {"exponential_", "uniform_", "normal_", "bernoulli_", "random_"}
GLOBAL = {"torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.cuda.manual_seed"}


def global_draws(source: str) -> list[str]:
    """Return every call that draws from, or seeds, the global generators of torch, numpy or random."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
            found.append("import random")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        draws = name.startswith("torch.") and node.func.attr in SAMPLERS | {f"{s}_like" for s in SAMPLERS}
        if (draws or node.func.attr in IN_PLACE) and "generator" not in keywords:
            found.append(name)
        if name in GLOBAL or name.startswith(("np.random.", "numpy.random.")):
            found.append(name)
    return found


def test_every_door_is_kept():
    assert broken_doors(edges()) == []


def test_the_doors_themselves_lead_down():
    rooms = list(DOORS)
    assert sorted(rooms) == sorted(
        [*(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()), "verification"]
    )
    for room, below in DOORS.items():
        assert set(below) <= set(rooms[: rooms.index(room)]), room
    assert not {"reference", "judge"} & set(DOORS["speculative"])
    for room in ("protocol", "rounding", "judge", "reference", "models"):
        assert "speculative" not in DOORS[room], room


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("harness.speculative._steps", "from harness.reference import steps"),
        ("harness.speculative._steps", "import harness.reference._steps as g"),
        ("harness.judge._ties", "from harness.speculative._steps import draw"),
        ("harness.judge._ties", "if TYPE_CHECKING:\n    from harness.speculative.parts import Parts"),
        ("harness.reference._steps", "from ..speculative._steps import draw"),
        ("harness.protocol.noise", "from harness.models._pair import ModelPair"),
        ("harness.report._terminal", "from harness.commands.verify import verify"),
        ("harness.laws._law", "def late():\n    from harness.commands import verify"),
        ("harness.judge._compare", "from harness import build_decoder"),
        ("harness.reference._handoff", "import harness"),
        ("harness", "from harness.commands.verify import verify"),
    ],
)
def test_a_door_broken_on_purpose_is_seen(module: str, line: str):
    graph = edges()
    graph[module] = {name for name in imported(line, module) if name in graph}
    assert {text.partition(" ")[0] for text in broken_doors(graph)} == {module}


def test_every_face_is_kept():
    assert broken_faces(edges()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("harness.golden._check", "from harness.judge._ties import margins_of_differing_tokens"),
        ("harness.golden._check", "from harness.judge import _ties"),
        ("harness.report.html._run", "import harness.report._terminal as terminal"),
        ("harness.verification", "def late():\n    from harness.runs._decodes import Decodes"),
        ("harness", "from harness.protocol._trace import Trace"),
    ],
)
def test_a_face_broken_on_purpose_is_seen(module: str, line: str):
    graph = edges()
    graph[module] = {name for name in imported(line, module) if name in graph}
    assert {text.partition(" ")[0] for text in broken_faces(graph)} == {module}


def uses(path: Path) -> set[tuple[str, str]]:
    """Return (package, name) of all that a module imports from a package, or reads of it as a module."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            used |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add((f"harness.{node.value.id}", node.attr))
    return used


def test_a_face_holds_no_more_than_others_take():
    scripts = (PACKAGE.parent / "scripts").glob("*.py")
    used = {path: uses(path) for path in (*modules().values(), *scripts)}
    for room in set(DOORS) - set(OPEN_FACES) - {"verification"}:
        others = set().union(*(names for path, names in used.items() if path.parent != PACKAGE / room))
        face = ast.parse((PACKAGE / room / "__init__.py").read_text())
        offered = {a.asname or a.name for node in face.body if isinstance(node, ast.ImportFrom) for a in node.names}
        assert offered <= {name for package, name in others if package == f"harness.{room}"}, room


def test_no_module_imports_itself_in_a_circle():
    assert cycle(edges()) == []


def test_a_circle_made_on_purpose_is_seen():
    graph = edges()
    graph["harness.protocol.pyramid"] = {"harness.protocol._trace"}
    assert set(cycle(graph)) == {"harness.protocol.pyramid", "harness.protocol._trace"}


def test_few_modules_lie_in_no_room():
    loose = [name for name in modules() if name == "harness" or (name.count(".") == 1 and room_of(name) == "(loose)")]
    assert len(loose) <= LOOSE_MODULES, loose


def test_no_two_public_records_share_a_name():
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    page = PAGE.read_text()
    assert BEGIN in page
    assert page == rewritten(page, edges()), "run python scripts/rooms.py"


def test_every_room_is_described_and_every_module_named():
    paragraphs = {text.split("`")[1].strip("/"): text for text in PAGE.read_text().split("\n\n") if text[:3] == "**`"}
    assert list(paragraphs) == [room for room in paragraphs if room in DOORS]
    assert set(paragraphs) == set(DOORS)
    names = {module: module.rpartition(".")[2].lstrip("_") for module in modules() if room_of(module) != "(loose)"}
    missing = [module for module, name in names.items() if f"`{name}`" not in paragraphs[room_of(module)]]
    assert [module for module in missing if module.rpartition(".")[2] not in (*DOORS, "tools")] == []


def test_nobody_draws_from_a_global_generator():
    for module, path in modules().items():
        assert global_draws(path.read_text()) == [], module


@pytest.mark.parametrize(
    "line",
    [
        "torch.manual_seed(0)",
        "torch.rand(3)",
        "x.exponential_(1)",
        "np.random.rand()",
        "import random",
        "torch.rand_like(x)",
    ],
)
def test_a_planted_global_draw_is_seen(line: str):
    assert global_draws(line)
