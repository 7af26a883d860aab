"""Options that a project keeps in its pyproject.toml, in the table `[tool.sdvar-harness]`.

Promise: a value there is as if it were typed: for every command that has the option where it stands at the top, for one
where it stands in the command's own table, which goes first. An unknown name, or a value of another type, is an
`InputError` that names the key.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from harness.errors import InputError, shown

TABLE = "tool.sdvar-harness"
# Type of an option -> types of its value in the table, and what they are to a reader.
TYPES: dict[object, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"), int: ((int,), "a whole number"), float: ((int, float), "a number"),
    str: ((str, int, float), "a text"), Path: ((str,), "a path"), list[str]: ((list,), "a list of texts"),
}  # fmt: skip
Words = tuple[str, ...]


def project_options(group: Any, folder: Path) -> dict[str, Any]:
    """Return every command's defaults by name, of the nearest pyproject.toml with the table. Raises `InputError`."""
    path, table = _nearest(folder)
    commands, defaults = dict(_commands(group)), dict[str, Any]()
    for words, name, value in sorted(_values(table, commands), key=lambda found: len(found[0])):
        key, option = ".".join((TABLE, *words, name)), name.replace("-", "_")
        takers = [each for each in commands if each[: len(words)] == words and option in commands[each]]
        if not takers:
            rule = f"is no option of {' '.join(words) or 'any command'} ({path})"
            raise InputError(key, value, rule, f"see {' '.join(('sdvar-harness', *words))} --help")
        for taker in takers:
            parameter, kind = commands[taker][option]
            place = defaults
            for word in taker:
                place = place.setdefault(word, {})
            place[parameter] = _checked(key, value, kind)
    return defaults


def _nearest(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the nearest pyproject.toml with the table, and the table; an empty one where there is none."""
    for path in (place / "pyproject.toml" for place in (folder, *folder.parents)):
        if path.is_file():
            try:
                tools = tomllib.loads(path.read_text()).get("tool")
            except (OSError, ValueError) as error:
                raise InputError("pyproject.toml", str(path), f"cannot be read ({error})", "mend it") from None
            table = tools.get("sdvar-harness") if isinstance(tools, dict) else None
            if isinstance(table, dict):
                return path, table
            if table is not None:
                raise InputError(TABLE, shown(table), f"must be a table ({path})", "mend it in pyproject.toml")
    return folder, {}


def _commands(group: Any, words: Words = ()) -> Iterator[tuple[Words, Mapping[str, tuple[str, object]]]]:
    """Yield the words of every command with its options: as spelled -> (parameter, type)."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command.callback.__dict__["options"]


def _values(
    table: Mapping[str, Any], commands: Mapping[Words, object], words: Words = ()
) -> Iterator[tuple[Words, str, Any]]:
    """Yield (words of the command's table, name, value) of every entry."""
    for name, value in table.items():
        inside = (*words, name)
        if isinstance(value, dict) and any(each[: len(inside)] == inside for each in commands):
            yield from _values(value, commands, inside)
        else:
            yield words, name, value


def _checked(key: str, value: object, kind: object) -> object:
    """Return a value as its option takes it. Raises `InputError` where it is of another type."""
    wanted = next(each for each in (kind, *get_args(kind)) if each in TYPES)  # of `float | None`, float
    types, said = TYPES[wanted]
    texts = all(isinstance(each, str) for each in value) if isinstance(value, list) else True
    if not (isinstance(value, types) and texts) or isinstance(value, bool) != (wanted is bool):
        raise InputError(key, value, f"must be {said}", "mend it in pyproject.toml")
    return str(value) if wanted is str else value
