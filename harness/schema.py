"""The one schema of records that come from files: the annotations of their own fields.

Promise: a record that passes holds in every field, however deep, what its annotation says, and no integer that a file
could not hold; another one is a `TypeError` that names the field.
"""

import types
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.errors import shown

Record = TypeVar("Record")
MOST = 2**63  # of an integer's size


def record_of(kind: type[Record], values: Any) -> Record:
    """Return the record that JSON made these values of: of its fields by name, or of a list of them in order.

    Records, tuples, members of an enumeration and counters of whole numbers in it come back, too. Raises `TypeError` or
    `ValueError` for values of another form.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # it can be hashed
    if isinstance(values, Mapping):
        return typed(kind(**{name: _made(value, hints.get(name, Any)) for name, value in values.items()}))
    return typed(kind(*_each(values, hints.values())))


def _made(value: Any, hint: Any) -> Any:
    origin, words = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return value if value is None else _made(value, words[0])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, list | tuple | dict):
        return record_of(hint, value)
    if isinstance(value, list | tuple) and origin in (list, tuple):
        return origin(_each(value, repeat(words[0]) if origin is list or words[1:] == (Ellipsis,) else words))
    if isinstance(value, Mapping) and origin is Counter:
        return Counter({int(key): count for key, count in value.items()})
    return value


def _each(values: Iterable[Any], hints: Iterable[Any]) -> Iterator[Any]:
    return map(_made, values, chain(hints, repeat(Any)))  # a record, or `typed`, refuses what is too much


def typed(record: Record) -> Record:
    """Return a record as it is. Raises `TypeError` where a field holds another kind of value than it should."""
    kind: Any = type(record)
    for name, hint in _hints(kind).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise TypeError(f"{kind.__name__}.{name} is {shown(value)[:80]}")
    return record


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _fits(value: object, hint: Any) -> bool:
    origin, words = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in words)
    if origin is Literal:
        return type(value) is str and value in words
    if origin is Callable or hint is Callable:
        return callable(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return isinstance(value, hint) and typed(value) is value
    if hint is float:
        return type(value) is float or _is_integer(value)
    if hint is int:
        return _is_integer(value)
    return _holds(value, origin, words) if origin is not None else isinstance(value, hint)


def _holds(value: object, origin: Any, words: tuple[Any, ...]) -> bool:
    if not isinstance(value, origin):
        return False
    if isinstance(value, Mapping):
        kinds = words if len(words) == 2 else (words[0], int)  # a counter
        return all(_fits(key, kinds[0]) and _fits(each, kinds[1]) for key, each in value.items())
    if isinstance(value, tuple) and words[1:] != (Ellipsis,):
        return len(value) == len(words) and all(map(_fits, value, words))
    return isinstance(value, Collection) and all(_fits(each, words[0]) for each in value)


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) <= MOST
