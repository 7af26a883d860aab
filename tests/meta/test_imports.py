"""Independence: the two sides never import each other, and nobody touches the global generator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "harness"
SIDES = {"reference": "harness.speculative", "speculative": "harness.reference"}
SAMPLERS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
IN_PLACE = {"exponential_", "uniform_", "normal_", "bernoulli_", "random_"}
GLOBAL = {"torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.cuda.manual_seed"}


def imported(source: str, package: str) -> set[str]:
    """Return every dotted name that a module of `package` imports, relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def crossings(source: str, package: str, forbidden: str) -> list[str]:
    return sorted(n for n in imported(source, package) if n == forbidden or n.startswith(f"{forbidden}."))


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


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("side", SIDES)
def test_the_two_sides_never_import_each_other(side: str):
    for path in modules(PACKAGE / side):
        assert crossings(path.read_text(), f"harness.{side}", SIDES[side]) == [], path.name


@pytest.mark.parametrize(
    "line",
    [
        "from harness.reference import draw",
        "import harness.reference.guidance as g",
        "from harness import reference",
        "from ..reference.draw import race",
        "def late():\n    from harness.reference.masks import block_causal",
    ],
)
def test_a_planted_crossing_is_seen(line: str):
    assert crossings(line, "harness.speculative", "harness.reference")


def test_nobody_draws_from_a_global_generator():
    for path in modules(PACKAGE):
        assert global_draws(path.read_text()) == [], path.name


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
