"""Records as options: a command takes frozen dataclasses, and each of their fields is one option.

Promise: a field says all of its option (name, type, default, help), once; `command` makes of a function that takes
records the flat one that typer wants, and calls it with records that are filled. `--help` shows the usual options,
`--help-all` every one. Nothing heavy is imported. A value that a project keeps in the table `[tool.sdvar-harness]` of
its pyproject.toml is as if it were typed: for every command that has the option where it stands at the top, for one
where it stands in the command's own table, which goes first. An unknown name, or a value of another type, is an
`InputError` that names the key.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, dataclass_transform, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from harness.errors import InputError, shown
from harness.numerals import real, whole

ALL = f"{__name__}.all"  # in a context's `meta`: --help-all was typed
Function = Callable[..., None]


@dataclass(frozen=True)
class Option:
    """What an option is beside its name, type and default: stands in the `Annotated` of a record's field."""

    help: str  # what it does
    name: str = ""  # as it is typed, where that is not the field's name
    rare: bool = False  # shown by --help-all alone
    offers: tuple[str, ...] = ()  # values, or beginnings of some, that completion offers
    shown: str = ""  # what the help shows as the default, where that is no value
    panel: str = ""  # where it is shown, where that is not with its record
    argument: bool = False  # it is typed without a name


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Group:
    """Options of one kind: a subclass is a frozen dataclass. A field that is no option keeps its default.

    `panel` is the title that the help shows them under, `applies` when the defaults that it shows hold (empty: always).
    """

    panel: ClassVar[str] = ""
    applies: ClassVar[str] = ""
    # names of the fields that were typed, or that stand in pyproject.toml
    given: frozenset[str] = field(default=frozenset(), kw_only=True, compare=False, repr=False)
    typed: frozenset[str] = field(
        default=frozenset(), kw_only=True, compare=False, repr=False
    )  # of `given`, the former

    def __init_subclass__(cls, panel: str = "", applies: str = "") -> None:
        cls.panel, cls.applies = panel or cls.panel, applies or cls.applies
        dataclass(frozen=True)(cls)

    def changed(self) -> dict[str, object]:
        """Return the options that are not the usual ones, those of records inside, too: name -> value."""
        changes: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Group):
                changes |= value.changed()
            elif each.name not in ("given", "typed") and value != each.default:
                changes[each.name] = value
        return changes

    def refuse(self, names: Iterable[str], rule: str, remedy: str) -> None:
        """Refuse those of some options that were given. Raises `InputError`, which names the first as it is spelled."""
        spelled = {name: _spelled(name, option) for name, _, option, _ in _options(type(self))}
        for name in sorted(self.given.intersection(names)):
            value = getattr(self, name)
            raise InputError(spelled[name], str(value) if isinstance(value, Path) else value, rule, remedy)


def add(app: typer.Typer, function: Function, name: str | None = None) -> None:
    """Give an app a function that `command` decorated."""
    lines = (f"[dim]$[/dim] sdvar-harness {example}" for example in function.__dict__["examples"])
    app.command(name, cls=Command, epilog="\n\n".join(lines))(function)


class Command(TyperCommand):
    """A command whose help shows the usual options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        rare = () if ALL in ctx.meta else self.callback.__dict__["rare"]
        for parameter in self.params:
            parameter.hidden = parameter.name in rare  # type: ignore[attr-defined]  # options and arguments have it
            if parameter.name in (ctx.default_map or {}):  # of pyproject.toml
                parameter.show_default = True  # type: ignore[attr-defined]  # likewise
        super().format_help(ctx, formatter)


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


EXAMPLES: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
READERS: Mapping[object, Callable[[str], float]] = {int: whole, float: real}
HELP_ALL = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show every option.")]


def command(function: Function) -> Function:
    """Decorate a function whose parameters are records: typer sees an option a field.

    A subclass of a record replaces the options that it annotates anew.

    What is returned keeps in its `__dict__` the `examples` of examples.toml, which the help shows, the names of `rare`
    options, and all `options`: as they are spelled -> (parameter, type).
    """
    hints = get_type_hints(function)
    records = {name: hints[name] for name in signature(function).parameters}
    parameters, rare = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)], set()
    spelled: dict[str, tuple[str, object]] = {}
    for record in records.values():
        for name, kind, option, default in _options(record):
            if option.rare:
                rare.add(name)
            if not option.argument:
                spelled[_spelled(name, option)] = name, kind
            annotation = Annotated[kind, _for_typer(name, kind, option)]  # type: ignore[valid-type]  # known when run
            parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    if rare:
        parameters.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=HELP_ALL))

    @wraps(function)
    def filled(context: typer.Context, help_all: bool = False, **values: object) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        given = frozenset(name for name, source in sources.items() if source and source.name != "DEFAULT")
        typed = frozenset(name for name in given if sources[name].name != "DEFAULT_MAP")  # type: ignore[union-attr]
        function(**{name: _filled(record, values, given, typed) for name, record in records.items()})

    filled.__dict__.update(
        __signature__=Signature(parameters), examples=EXAMPLES[function.__name__], rare=frozenset(rare), options=spelled
    )
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return filled


def _spelled(name: str, option: Option) -> str:
    """Return an option's name in messages and in pyproject.toml."""
    return option.name.strip("-").replace("-", "_") or name


def _options(record: type[Group]) -> Iterator[tuple[str, Any, Option, Any]]:
    """Yield name, type, option and default of each field that is an option, of records inside, too."""
    hints = get_type_hints(record, include_extras=True)
    for each in fields(record):
        if _is_group(hints[each.name]):
            yield from _options(hints[each.name])
        elif get_origin(hints[each.name]) is Annotated:
            kind, option = get_args(hints[each.name])
            shown, default = option.shown, Parameter.empty if each.default is MISSING else each.default
            if record.applies and not shown and default is not False and default not in (None, ""):
                shown = f"{default} {record.applies}"
            yield each.name, kind, replace(option, shown=shown, panel=option.panel or record.panel), default


def _for_typer(name: str, kind: object, option: Option) -> Any:
    """Return what typer reads of an option. A flag has no --no-… beside it; what may be None as well has."""
    if option.argument:
        return typer.Argument(help=option.help)
    flag = f"--{name.replace('_', '-')}" if kind is bool else ""

    def completed(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")  # of several, the last
        return [f"{before}{comma}{value}" for value in option.offers if value.startswith(last)]

    read = next((one for each, one in READERS.items() if kind == each or each in get_args(kind)), None)
    return typer.Option(
        *filter(None, (option.name or flag,)),
        parser=_parser(name, read) if read else None,
        metavar=("<int>" if read is whole else "<float>") if read else None,
        help=option.help,
        show_default=option.shown or True,
        rich_help_panel=option.panel or None,
        autocompletion=completed if option.offers else None,
    )


def _parser(name: str, reader: Callable[[str], float]) -> Callable[[object], float]:
    """Return what reads an option's number, typed or of pyproject.toml; it raises `InputError`."""

    def number(value: object) -> float:  # a function: click before typer 0.26 reads its name, which no partial has
        try:
            return reader(str(value))
        except ValueError:
            kind, example = ("whole", "5") if reader is whole else ("finite", "1.5")
            remedy = f"pass --{name.replace('_', '-')} {example}"
            raise InputError(name, str(value), f"must be a {kind} number", remedy) from None

    return number


def _filled(
    record: type[Group], values: Mapping[str, object], given: frozenset[str], typed: frozenset[str]
) -> Group:  # fmt: skip
    hints, inside = get_type_hints(record), dict[str, Any]()
    for each in fields(record):
        if _is_group(hints[each.name]):
            inside[each.name] = _filled(hints[each.name], values, given, typed)
        elif each.name in values:
            inside[each.name] = values[each.name]
    return record(**inside, given=given & inside.keys(), typed=typed & inside.keys())


def _is_group(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Group)


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
