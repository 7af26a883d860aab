"""Records as options: a command takes frozen dataclasses, and each of their fields is one option.

Promise: a field says all of its option (name, type, default, help), once; `command` makes of a function that takes
records the flat one that typer wants, and calls it with records that are filled. `--help` shows the usual options,
`--help-all` every one. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

RARE = "rare"  # in an option's `Annotated`: shown by --help-all alone
ALL = f"{__name__}.all"  # in a context's `meta`: --help-all was typed
Function = Callable[..., None]


@dataclass(frozen=True)
class Group:
    """Options of one kind, which the help shows in one panel. A field that is no option keeps its default.

    Class attributes: `panel`, its title; `applies`, when the defaults that the help shows hold (empty: always).

    Args:
        given: names of the fields that were typed, or that stand in pyproject.toml.
    """

    panel: ClassVar[str] = ""
    applies: ClassVar[str] = ""
    given: frozenset[str] = field(default=frozenset(), kw_only=True, compare=False, repr=False)

    def changed(self) -> dict[str, object]:
        """Return the options that are not the usual ones, those of records inside, too: name -> value."""
        changes: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Group):
                changes |= value.changed()
            elif each.name != "given" and value != each.default:
                changes[each.name] = value
        return changes


def command(*examples: str) -> Callable[[Function], Function]:
    """Decorate a function whose parameters are records: typer sees an option a field.

    A parameter's own default, a record, replaces the defaults of its fields; a subclass replaces whole options.

    Args:
        examples: command lines, without the program's name; shown under the help.
    """
    return partial(_flat, examples)


def add(app: typer.Typer, function: Function, name: str | None = None) -> None:
    """Give an app a function that `command` decorated."""
    lines = (f"[dim]$[/dim] sdvar-harness {example}" for example in function.__dict__["examples"])
    app.command(name, cls=Command, epilog="\n\n".join(lines))(function)


def offer(*values: str) -> Callable[[str], list[str]]:
    """Return what completes one of some values, or the last of several by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in values if value.startswith(last)]

    return complete


class Command(TyperCommand):
    """A command whose help shows the usual options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        rare = () if ALL in ctx.meta else self.callback.__dict__["rare"]
        for parameter in self.params:
            parameter.hidden = parameter.name in rare  # type: ignore[attr-defined]  # options and arguments have it
        super().format_help(ctx, formatter)


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


HELP_ALL = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show every option.")]


def _flat(examples: tuple[str, ...], function: Function) -> Function:
    """Return a function with one parameter an option that calls `function` with its records."""
    hints = get_type_hints(function)
    records = {name: hints[name] for name in signature(function).parameters}
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    rare: set[str] = set()
    for name, given in signature(function).parameters.items():
        for parameter in _options(records[name], given.default):
            parameters.append(parameter)
            rare |= {parameter.name} if RARE in get_args(parameter.annotation) else set()
    if rare:
        parameters.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=HELP_ALL))

    @wraps(function)
    def filled(context: typer.Context, help_all: bool = False, **values: object) -> None:
        given = frozenset(name for name in values if _is_given(context, name))
        function(**{name: _filled(record, values, given) for name, record in records.items()})

    filled.__dict__.update(__signature__=Signature(parameters), examples=examples, rare=frozenset(rare))
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return filled


def _options(record: type[Group], usual: object = Parameter.empty) -> Iterator[Parameter]:
    """Yield a parameter for each field of a record that is an option, those of records inside, too."""
    hints = get_type_hints(record, include_extras=True)
    for each in fields(record):
        hint, default = hints[each.name], each.default
        if usual is not Parameter.empty:
            default = getattr(usual, each.name)
        if isinstance(hint, type) and issubclass(hint, Group):
            yield from _options(hint, default)
        elif get_origin(hint) is Annotated:
            kind, *notes = get_args(hint)
            option = copy(next(note for note in notes if isinstance(note, ParameterInfo)))
            option.rich_help_panel = option.rich_help_panel or record.panel or None
            if record.applies and default is not False and default not in (None, ""):
                option.show_default = f"{default} {record.applies}"
            kept = Parameter.empty if default is MISSING else default
            note = RARE if RARE in notes else ""
            yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=kept, annotation=Annotated[kind, note, option])


def _filled(record: type[Group], values: Mapping[str, object], given: frozenset[str]) -> Group:
    """Return a record of what was typed, with the records inside."""
    hints: dict[str, Any] = get_type_hints(record)
    inside: dict[str, Any] = {
        each.name: _filled(hints[each.name], values, given)
        if isinstance(hints[each.name], type) and issubclass(hints[each.name], Group)
        else values[each.name]
        for each in fields(record)
        if each.name in values or (isinstance(hints[each.name], type) and issubclass(hints[each.name], Group))
    }
    return record(**inside, given=given & inside.keys())


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
