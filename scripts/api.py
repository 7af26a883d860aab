"""Write the API reference, docs/api/*.md, from the docstrings of public names.

    python scripts/api.py

Promise: a page a module, readable as it is; what stands there is signature, fields and docstring, and nothing else.
tests/docs/test_api.py sees that the pages are what this would write.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "api"
# What is public, and of which modules names are listed that have no `__all__`.
MODULES = {
    "harness": "what a decoder is made of, how it is judged, and what comes of it",
    "harness.laws": "laws of a right decoder, for a decoder of yours",
    "harness.speculative.parts": "the parts of the harness's own decoder, to replace one",
    "harness.plugin.fixtures": "fixtures of the pytest plugin",
}
# of the project's own specification, which readers of the pages do not have
CITED = re.compile(r"\n+Source: (?:spec|design) §\d+\.| \((?:spec|design) §\d+\)|, (?:spec|design) §\d+(?=\))")
SECTION = re.compile(r"^(Args|Returns|Raises|Effects|Yields):\s*", re.M)


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    made = {f"{name}.md": _page(name) for name in MODULES}
    rows = "\n".join(f"| [{name}]({name}.md) | {what} |" for name, what in MODULES.items())
    head = "Written by `scripts/api.py` from the docstrings; words are in the [glossary](../glossary.md)."
    return made | {"README.md": f"# API reference\n\n{head}\n\n| module | what |\n|---|---|\n{rows}\n"}


def _page(name: str) -> str:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or _own_names(module)
    items = [(each, getattr(module, each)) for each in sorted(names, key=str.lower) if not each.startswith("__")]
    contents = ", ".join(f"[{each}](#{each.lower()})" for each, _ in items)
    parts = [f"# {name}", _text(module), f"{contents}.", *(_item(each, value) for each, value in items)]
    return CITED.sub("", "\n\n".join(parts)) + "\n"


def _own_names(module: Any) -> list[str]:
    """Return the functions, classes and fixtures that a module defines."""
    tree = ast.parse(inspect.getsource(module))
    named = (each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef))
    return [each for each in named if not each.startswith("_")]


def _item(name: str, value: Any) -> str:
    """Return the entry of one name: a heading, its form, what its docstring says, its methods."""
    value = getattr(value, "__wrapped__", None) or getattr(value, "_fixture_function", None) or value
    parts = [f"## {name}"]
    if inspect.isclass(value):
        parts += [_code(_form(value)), _text(value)]
        init = vars(value).get("__init__")
        if not is_dataclass(value) and getattr(init, "__name__", "") == "__init__":  # a protocol has another
            parts.append(_code(_signature(init)))
        for each, method in vars(value).items():
            if not each.startswith("_") and (method := _function(method)) is not None and inspect.getdoc(method):
                parts += [f"### {name}.{each}", _code(_signature(method)), _text(method)]
    elif inspect.isfunction(value):
        parts += [_code(_signature(value)), _text(value)]
    else:
        parts.append(f"A {type(value).__name__} of {len(value)}." if hasattr(value, "__len__") else "")
    return "\n\n".join(filter(None, parts))


def _function(member: Any) -> Any:
    """Return the function of a method or a property; None of anything else."""
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    found = getattr(member, "fget", None) or getattr(member, "func", None) or member
    return found if inspect.isfunction(found) else None


def _form(value: Any) -> str:
    """Return the head of a class with its fields and what stands beside them; methods and docstring are left out."""
    source = textwrap.dedent(inspect.getsource(value)).splitlines()
    node = ast.parse("\n".join(source)).body[0]
    assert isinstance(node, ast.ClassDef)
    first = next((each for each in node.body if isinstance(each, ast.FunctionDef)), None)
    docstring = node.body[0] if ast.get_docstring(node) else None
    begin = docstring.end_lineno if docstring is not None else node.lineno
    assert begin is not None
    decorated = min([first.lineno, *(each.lineno for each in first.decorator_list)]) - 1 if first else len(source)
    fields = source[begin:decorated] if any(isinstance(each, ast.AnnAssign | ast.Assign) for each in node.body) else []
    head, inside = "\n".join(source[: node.body[0].lineno - 1]).rstrip(), "\n".join(fields).strip("\n")
    return f"{head}\n{inside}" if inside else head.rstrip(":")


def _signature(function: Any) -> str:
    """Return the lines of a function up to its body."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function))).splitlines()
    node = ast.parse("\n".join(source)).body[0]
    assert isinstance(node, ast.FunctionDef)
    return "\n".join(source[: node.body[0].lineno - 1]).removesuffix("  # fmt: skip").rstrip(" :")


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _text(thing: Any) -> str:
    """Return a docstring as Markdown: its sections are bold words, and what they list is a list."""
    lines, listed = list[str](), False
    for line in (inspect.getdoc(thing) or "").replace("``", "`").splitlines():
        if match := SECTION.match(line):
            listed = not line[match.end() :]
            lines += ["", f"**{match[1]}:** {line[match.end() :]}".rstrip(), *([""] if listed else [])]
        elif listed and re.match(r" {4}\S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon else f"- {line.strip()}")
        else:
            lines.append(f"  {line.strip()}" if listed and line.strip() else line)
            listed = listed and bool(line.strip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
