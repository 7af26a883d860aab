"""The one schema of records that come from files: the annotations of their own fields.

Promise: a record that passes holds in every field, however deep, what its annotation says, and no integer that a file
could not hold; another one is a `TypeError` that names the field.
"""

import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.errors import shown

Record = TypeVar("Record")
MOST = 2**63  # of an integer's size


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
    """Tell whether a value is what an annotation says."""
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
    """Tell whether a collection, and all in it, is what an annotation says."""
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
