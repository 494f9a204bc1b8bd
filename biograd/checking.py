"""Checked tables: from a TOML table to a dataclass, or one line that says why not."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from biograd.errors import RecipeError, nearest

Table = dict[str, Any]
LARGEST, LARGEST_INTEGER = 1e30, 2**63 - 1
"""Numbers beyond would overflow where tensors are computed with."""
Thing = TypeVar("Thing")


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a part that has no keys of its own."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A closed interval that a number must lie in; ``above`` makes the lower end open."""

    low: float = float("-inf")
    high: float = float("inf")
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        left = f"> {self.low:g}" if self.above else f">= {self.low:g}"
        ends = [] if self.low == float("-inf") else [left]
        ends += [] if self.high == float("inf") else [f"<= {self.high:g}"]
        return " and ".join(ends)


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Which class a table becomes: that which its key ``kind`` names.

    Attributes:
        classes: by name.
        default: name of the one that a table without a kind becomes.
    """

    classes: Mapping[str, Any]
    default: str

    def construct(self, table: Mapping[str, Any], where: object, key: str) -> Any:
        """Return the object of a table.

        Raises:
            RecipeError: no such kind, or its class refuses the table.
        """
        kind = self.default if table.get("kind") is None else table["kind"]
        if not isinstance(kind, str) or kind not in self.classes:
            hint = nearest(kind, self.classes)
            raise RecipeError(f"{where}: {key}.kind = {kind!r}: {hint}")
        return construct(self.classes[kind], {**table, "kind": kind}, where, key)


Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
NotNegativeCount = Annotated[int, Range(0)]


def construct(
    make: Callable[..., Thing], table: Mapping[str, Any], where: object, key: str = ""
) -> Thing:
    """Call ``make`` on a checked table.

    Args:
        make: a dataclass, a class with an annotated ``__init__``, or an annotated function.
        where: the file or option that the table came from; it opens every message.
        key: dotted path of the table in that file.

    A class with a method ``earlier`` brings tables of earlier versions into today's form.

    Raises:
        RecipeError: unknown or missing key, wrong type, value out of range.
    """
    earlier = getattr(make, "earlier", None)
    table = table if earlier is None else earlier(table)
    annotated = isinstance(make, type) and not dataclasses.is_dataclass(make)
    hints = typing.get_type_hints(
        make.__init__ if annotated else make,
        include_extras=True,
    )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    prefix = f"{key}." if key else ""
    values = {}
    for name, value in table.items():
        if name not in parameters:
            raise RecipeError(f"{where}: unknown key {prefix}{name}: {nearest(name, parameters)}")
        values[name] = convert(hints[name], value, where, prefix + name)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in values:
            raise RecipeError(f"{where}: missing key {prefix}{name}")
    try:
        return make(**values)
    except ValueError as error:
        raise RecipeError(f"{where}: {prefix.rstrip('.') or 'recipe'}: {error}") from error


class Checked:
    """A base of frozen dataclasses: fields are checked when one is made, as a table's keys are.

    Raises:
        RecipeError: wrong type or value out of range; the message opens with the class.
    """

    def __post_init__(self) -> None:
        """Check the fields, and give each its type: a whole number for a real one is made one."""
        for name, hint in _fields(type(self)).items():  # type: ignore[arg-type]
            value = convert(hint, getattr(self, name), type(self).__name__, name)
            object.__setattr__(self, name, value)


@functools.cache
def _fields(kind: Hashable) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def validate(make: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the arguments of a class or a function by its annotations, as a recipe's keys are.

    Args:
        values: its ``locals()``, or some of them; what it does not annotate is ignored.

    A class with a method ``unread`` says which arguments nothing reads beside the others.

    Raises:
        RecipeError: wrong type, value out of range, or one that has no effect; the message opens
            with its name.
    """
    annotated = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    hints = typing.get_type_hints(annotated, include_extras=True)
    for name, hint in hints.items():
        if name in values:
            convert(hint, values[name], make.__name__, name)
    idle = getattr(make, "unread", None)
    if idle is not None and type(values.get("self")) is make:
        parameters = inspect.signature(make).parameters
        for name, reason in idle(values).items():
            if values[name] != parameters[name].default:
                given = f"{name} = {values[name]!r}"
                raise RecipeError(f"{make.__name__}: {given}: has no effect {reason}")


class _WrongType(RecipeError):
    """A value is of another type altogether: what says so is no news where another type fits."""


def convert(hint: Any, value: Any, where: object, key: str) -> Any:
    """Return ``value`` as the type ``hint`` says, or refuse it with ``where`` and ``key``.

    ``Annotated`` narrows a type by a ``Range``, or by a table whose keys are the words allowed.
    """
    if hint is Any:
        return value
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        bits = value.bit_length()
        raise RecipeError(f"{where}: {key}: a whole number of {bits} bits: must be below 2^63")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for choice in arguments[1:]:
            if isinstance(choice, Choice) and isinstance(value, Mapping):
                return choice.construct(value, where, key)
        value = convert(arguments[0], value, where, key)
        for limit in arguments[1:]:
            if isinstance(limit, Range) and value not in limit:
                raise RecipeError(f"{where}: {key} = {value}: must be {limit}")
            if isinstance(limit, Mapping) and value not in limit:
                raise RecipeError(f"{where}: {key} = {value!r}: {nearest(value, limit)}")
        return value
    if origin is Literal:
        if value not in arguments:
            kind = RecipeError if isinstance(value, tuple(map(type, arguments))) else _WrongType
            raise kind(f"{where}: {key} = {value!r}: {nearest(value, map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, key)
    if origin in (tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            raise _WrongType(f"{where}: {key} = {value!r}: must be a list")
        return tuple(convert(arguments[0], item, where, key) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {k: convert(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return construct(hint, value, where, key)  # type: ignore[arg-type]
    return _convert_plain(origin or hint, value, where, key)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: object, key: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    failures: list[RecipeError] = []
    for option in arguments:
        if option is type(None):
            continue
        try:
            return convert(option, value, where, key)
        except RecipeError as error:
            failures.append(error)
    if isinstance(value, (Mapping, list, tuple)):
        raise failures[-1]  # the last says what is wrong in it
    raise next((one for one in failures if not isinstance(one, _WrongType)), failures[0])


_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a table",
    "Mapping": "a table",
}


def _convert_plain(kind: Any, value: Any, where: object, key: str) -> Any:
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)  # NumPy's, too
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(f"{where}: {key} = {value}: must be a finite number")
        if abs(value) > LARGEST:
            raise RecipeError(f"{where}: {key} = {value:g}: must be {LARGEST:g} at most, in size")
    mismatch = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    if mismatch:
        name = _KINDS.get(kind.__name__, f"a table ({kind.__name__})")
        raise _WrongType(f"{where}: {key} = {value!r}: must be {name}")
    return value
