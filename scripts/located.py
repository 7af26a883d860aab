"""How often `--locate` names the line of a planted bug: a Markdown table by family.

    python scripts/located.py [--only ID,ID] [--processes N]

The truth is written down before: the lines of the bug's definition, and of the functions that it names in the families'
modules and in `_mutant`, which replace a part; where it puts another function of the decoder in a part's place, those
of that function, which is then the wrong one. A line is right within 3 of those, a stack where one of its frames is.
Of every bug the first case of a list is taken in which a value of its decode is wrong: digits, four scales, then ten.
Bugs that decoder and reference share, and those that show no wrong value in any case, are not counted; one that shows
it only after another decode is searched in a decoder that has made that.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from types import FunctionType, ModuleType

import torch

from harness import load_digits
from harness.decoders._in_process import search_line
from harness.judge import CodeLine, WrongDecode, _line
from harness.models import ModelPair, close_pair
from harness.mutants import MUTANTS, Mutant, _mutant
from harness.mutants._hunt import FAMILIES
from harness.protocol import Contract, Implementation, Request, Settings

NEAR = 3
TWO = Settings(2)
CASES: list[tuple[int, float | None, Settings, Request]] = [  # scales of digits, noise of a close draft, what is asked
    (4, None, TWO, Request((1,), 0, 1.5)),
    (4, None, TWO, Request((0, 1), 0, 1.5)),
    (4, 0.02, Settings(3, bonus=True), Request((0, 1, 2), 1, 4.0)),
    (4, None, TWO, Request((2, 3), 7, -1.0, 300, 0.97)),
    (4, 0.1, TWO, Request((1, 3, 5), 2**33 + 1, 0.0, 5, 0.3, images=(12, 3, 4))),
    (4, None, Settings(4), Request((1, 2), 3, 1.234567, filters=((0, 0.0), (5, 0.0), (5, 0.5), (0, 0.0)))),
    (4, 0.0, Settings(4, bonus=True), Request((1, 2), 3)),
    (4, None, Settings(2, policy="code:2"), Request((1, 2), 3)),
    (4, None, Settings(2, policy="rejection"), Request((1, 2), 3)),
    (10, 0.02, Settings(8), Request((0,), 0)),
]
Truth = list[tuple[str, set[int]]]  # file and lines


def truths() -> dict[str, Truth]:
    """Return file and lines of every bug, by its id."""
    named: dict[str, dict[str, ast.stmt]] = {}
    for family in (*FAMILIES, _mutant):
        nodes = ast.parse(Path(str(family.__file__)).read_text()).body
        named[family.__name__] = {target.id: node for node in nodes if isinstance(node, ast.Assign)
                                  for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
        named[family.__name__] |= {
            node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
    found: dict[str, Truth] = {}
    for family in FAMILIES:
        for name, mutant in vars(family).items():
            if mutant in MUTANTS and name in named[family.__name__]:
                found[mutant.id] = list(_lines(family.__name__, name, named, set()))
                found[mutant.id] += _put_in(family, named[family.__name__][name])
    return found


def _lines(
    family: str, name: str, named: dict[str, dict[str, ast.stmt]], seen: set[tuple[str, str]]
) -> Iterator[tuple[str, set[int]]]:
    """List files and lines of a definition, and of those in the families' modules that it names."""
    module = sys.modules[family]
    home = family if name in named[family] else getattr(vars(module).get(name), "__module__", "")
    if name not in named.get(home, {}) or (home, name) in seen or name in ("Mutant", "production"):
        return
    seen.add((home, name))
    node = named[home][name]
    yield str(sys.modules[home].__file__), set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield from _lines(home, each.id, named, seen)
        elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            of = vars(sys.modules[home]).get(each.value.id)
            if isinstance(of, ModuleType) and of.__name__ in named:
                yield from _lines(of.__name__, each.attr, named, seen)


def _put_in(family: ModuleType, definition: ast.stmt) -> Iterator[tuple[str, set[int]]]:
    """List files and lines of the decoder's functions that a definition hands on, uncalled."""
    for call in (each for each in ast.walk(definition) if isinstance(each, ast.Call)):
        given = [value for value in (*call.args, *(of.value for of in call.keywords)) if isinstance(value, ast.Name)]
        for thing in (vars(family).get(value.id) for value in given):
            if isinstance(thing, FunctionType) and thing.__module__.startswith("harness.speculative."):
                text, first = inspect.getsourcelines(thing)
                yield thing.__code__.co_filename, set(range(first, first + len(text)))


@cache
def digits(scales: int, noise: float | None) -> ModelPair:
    """Return the networks of digits, their first scales, and perhaps another draft."""
    models = load_digits().first_scales(scales)
    return models if noise is None else close_pair(models, noise)


def asked(mutant: Mutant, after_another: bool) -> tuple[Implementation, ModelPair, Settings, Request] | None:
    """Return decoder, networks, settings and request of the first case in which a value is wrong."""
    for scales, noise, settings, request in CASES[: 1 if after_another else None]:
        models = digits(scales, noise)
        decoder = mutant(models, settings)
        try:
            if after_another:
                other = Request((2, 3), 0, 0.5, 3)
                decoder.decode(other, models.noise(other))
            torch.manual_seed(0)  # for a bug that reads the global generator
            trace = decoder.decode(request, models.noise(request))
        except Exception as error:  # has its own line
            print(f"{mutant.id}: ends with {type(error).__name__}: {error}", file=sys.stderr)
            return None
        claims = decoder.contract == Contract.TOKENS
        decode = WrongDecode(
            models, request, settings.greedy, claims, partial(decoder.decode, request, models.noise(request))
        )
        with torch.inference_mode():
            expected = decode.reference(models.target, trace.tokens_BL, models.pyramid.S)
            if next(decode.wrong_values(trace, expected), None) is not None:
                return decoder, models, settings, request
    return None


def outcome(where: dict[str, Truth], id: str) -> tuple[str, str]:
    """Return what came of one bug's search in a word, and what was said."""
    torch.set_num_threads(1)
    mutant = next(each for each in MUTANTS if each.id == id)
    if (case := asked(mutant, False) or asked(mutant, True)) is None:
        return "unseen", ""
    decoder, models, settings, request = case
    _line.what_was_tried = lambda decode: ""  # decodes of its own, which name no line
    torch.manual_seed(0)
    line = search_line(decoder, models, request, settings.greedy)
    if not isinstance(line, CodeLine):
        return "missed", line or "no value is wrong"
    places = [tuple(frame.split(", in ")[0].rsplit(":", 1)) for frame in line.stack]
    near = [
        min((abs(int(number) - each) for file, lines in where[id] for each in lines if file == name), default=NEAR + 1)
        for name, number in places
    ]
    said = f"{line}\n    {chr(10).join(line.stack[:4])}"
    word = "line" if near[0] <= NEAR else "stack" if min(near) <= NEAR else "missed"
    return word, said


def main() -> None:
    """Search every bug's line; print a row a family, and what was said of each on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="ids of bugs, or families")
    parser.add_argument("--processes", type=int, default=1, help="that search side by side")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    bugs = [each.id for each in MUTANTS if not each.shared and (not only or {each.id, each.family} & only)]
    counts, where = Counter[tuple[str, str]](), truths()
    with ProcessPoolExecutor(options.processes) as pool:
        for id, (word, said) in zip(bugs, pool.map(partial(outcome, where), bugs), strict=True):
            counts[id.partition(".")[0], "asked"] += 1
            counts[id.partition(".")[0], word] += 1
            if word != "unseen":
                print(f"{word}: {id}: {said}", file=sys.stderr, flush=True)
    print("| family | bugs | wrong value | in the stack | line right |\n|---|---|---|---|---|")
    for family in [*dict.fromkeys(name for name, _ in counts), "all"]:
        of = {word: sum(n for (name, w), n in counts.items() if w == word and family in (name, "all"))
              for word in ("asked", "unseen", "stack", "line")}  # fmt: skip
        wrong, right = of["asked"] - of["unseen"], of["line"]
        print(f"| {family} | {of['asked']} | {wrong} | {of['stack'] + right} | {right} |")


if __name__ == "__main__":
    main()
