"""The parameters of a task's function: which are stored, under which key, and whether they can be."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, Final
from uuid import UUID

import msgspec

from treadle.errors import ConfigurationError
from treadle.model.refusal import is_pydantic_model, to_plain

NATIVE: Final = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)
SHALLOW: Final = (
    msgspec.inspect.DataclassType,
    msgspec.inspect.StructType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.CustomType,
)
REFUSED: Final = (msgspec.inspect.CustomType, msgspec.inspect.RawType, msgspec.inspect.ExtType)
LOOSENED: Final = (list, dict, tuple, set, frozenset, typing.Union, UnionType)
UNSET: Final = msgspec.UNSET
BINDABLE: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, eq=False)  # by identity: a default may be unhashable
class Parameter:
    """One stored parameter: its place in the call and its key on the wire."""

    name: str
    key: str
    kind: inspect._ParameterKind
    annotation: object
    default: object

    @property
    def required(self) -> bool:
        """True when it must be given."""
        return self.default is inspect.Parameter.empty and self.key == self.name


def body_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose annotations and kind count: below partials, and ``__call__`` of other objects.

    Example:
        >>> body_of(functools.partial(body_of)) is body_of
        True
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type) or inspect.isroutine(function) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def module_of(function: Callable[..., Any]) -> str:
    """The name of the module that has declared *function*; empty when it does not say."""
    return str(getattr(body_of(function), "__module__", None) or "")


def label_of(function: Callable[..., Any]) -> str:
    """What messages call *function*: its qualified name, that of what a partial calls, or that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def parameters_of(function: Callable[..., object], label: str) -> tuple[inspect.Parameter, ...]:
    """The parameters of *function*; ConfigurationError when nobody knows them, as of some functions written in C."""
    try:
        return tuple(inspect.signature(function).parameters.values())
    except ValueError as error:
        raise ConfigurationError(
            f"{label}() does not tell its parameters; wrap it in a function of your own and make that the task."
        ) from error


def resolved_hints(function: Callable[..., object], label: str) -> dict[str, object]:
    """The annotations of *function*, resolved, with ``object`` as ``Any``; ConfigurationError when one cannot be."""
    try:
        hints = typing.get_type_hints(body_of(function), include_extras=True)
        return {name: _any_for_object(hint) for name, hint in hints.items()}
    except Exception as error:
        raise ConfigurationError(
            f"The annotations of {label}() cannot be resolved: {error}. "
            "Import the names at module level, not under TYPE_CHECKING or inside a function"
        ) from error


def _any_for_object(annotation: Any) -> Any:
    """``object`` as ``Any``, alone and inside containers and unions: both say that every value will do."""
    if annotation is object:
        return Any
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin not in LOOSENED:
        return annotation
    loose = tuple(map(_any_for_object, inside))
    if loose == inside:
        return annotation
    return typing.Union[loose] if origin is UnionType else origin[loose]  # noqa: UP007 - made of values


class _Injected:
    """Stands for a value that a worker will pass."""

    def __repr__(self) -> str:
        return "injected"

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(
            f"This parameter is injected by a worker ({name!r} was asked of it); pass it when you call the function "
            "yourself."
        )


injected: Final[Any] = _Injected()
"""The default of a parameter that a worker passes by its type: a resource, or the ``JobContext``.

It is left out of what is stored, and type checkers let callers of ``enqueue`` leave it out too::

    def send(to: str, server: Server = injected) -> None: ...
"""


def context_type(annotation: object, context_types: tuple[type, ...]) -> type | None:
    """Which of *context_types* an annotation names, alone or as ``T | None``."""
    is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
    choices = typing.get_args(annotation) if is_union else (annotation,)
    return next((choice for choice in choices if isinstance(choice, type) and choice in context_types), None)


def injected_type(label: str, name: str, annotation: object) -> type:
    """The type by which a parameter with the default ``injected`` is passed; ConfigurationError when it has none."""
    is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
    choices = typing.get_args(annotation) if is_union else (annotation,)
    found = [choice for choice in choices if isinstance(choice, type) and choice is not NoneType]
    if len(found) != 1:
        raise ConfigurationError(f"{label}(): parameter {name!r} is injected by its type, so annotate it with a class")
    return found[0]


def as_stored(parameter: inspect.Parameter, annotation: object) -> Parameter:
    """How a parameter is stored: extra positional arguments as a list, extra keyword arguments as an object."""
    key, name = parameter.name, parameter.name
    if parameter.kind is parameter.kind.VAR_POSITIONAL:
        key, annotation = f"*{name}", list[annotation]  # type: ignore[valid-type]
    elif parameter.kind is parameter.kind.VAR_KEYWORD:
        key, annotation = f"**{name}", dict[str, annotation]  # type: ignore[valid-type]
    return Parameter(name, key, parameter.kind, annotation, parameter.default)


def check_left_out(
    label: str, left_out: list[inspect.Parameter], found: tuple[inspect.Parameter, ...]
) -> None:
    """Refuse parameters that are left out but cannot be passed by keyword."""
    has_rest = any(p.kind is p.kind.VAR_POSITIONAL for p in found)
    for parameter in left_out:
        if parameter.kind is parameter.kind.POSITIONAL_ONLY or (has_rest and parameter.kind in BINDABLE):
            raise ConfigurationError(
                f"{label}(): parameter {parameter.name!r} is passed by keyword, so make it keyword-only"
            )


def struct_of(label: str, parameters: list[Parameter]) -> type[msgspec.Struct]:
    """The msgspec type that reads stored arguments."""
    fields: list[Any] = []
    rename: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        # Own field names: a parameter may be called anything, such as __post_init__.
        rename[f"p{index}"] = parameter.key
        tail = () if parameter.required else (UNSET,)
        fields.append((f"p{index}", parameter.annotation, *tail))
    return msgspec.defstruct("Arguments", fields, rename=rename, forbid_unknown_fields=True, kw_only=True)


def carried(label: str, name: str, annotation: object) -> msgspec.inspect.Type:
    """What msgspec knows of an annotation; ConfigurationError, naming the parameter, when it cannot carry it."""
    try:
        kind = msgspec.inspect.type_info(annotation)
    except Exception as error:
        raise ConfigurationError(f"{label}(): parameter {name!r} cannot be stored: {error}") from error
    refused = contains(kind, REFUSED, allow=is_pydantic_model)
    if refused is None:
        return kind
    what = getattr(refused, "cls", None) or type(refused).__name__
    raise ConfigurationError(
        f"{label}(): parameter {name!r} cannot be stored: {what!r} cannot be rebuilt from data. "
        "Use a dataclass, a pydantic model or a standard type"
    )


def can_carry(annotation: object) -> bool:
    """True when msgspec can carry the annotation."""
    try:
        carried("", "return", annotation)
    except ConfigurationError:
        return False
    return True


def contains(
    kind: msgspec.inspect.Type,
    wanted: tuple[type, ...],
    allow: Callable[[object], bool] = lambda _: False,
) -> object | None:
    """The first part of *kind* that is one of *wanted* and not allowed, None when there is none."""
    """Return the first part of *kind* that is one of *wanted*; types may refer to themselves."""
    seen: set[int] = set()
    todo: list[object] = [kind]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, wanted) and not allow(getattr(part, "cls", None)):
            return part
        if isinstance(part, tuple):
            todo.extend(part)
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field):
            todo.extend(getattr(part, name) for name in part.__struct_fields__)
    return None


def exact(value: object) -> object:
    """Subclasses of str, int and float as the base type, everything else as it is."""
    is_exact = isinstance(value, bool) or not isinstance(value, str | int | float)
    return value if is_exact else to_plain(value)


def exact_kinds(parameters: list[Parameter]) -> tuple[type, ...] | None:
    """The types of the parameters when all are plain str, int, float or bool; None otherwise."""
    kinds = tuple(p.annotation for p in parameters if isinstance(p.annotation, type))
    simple = len(kinds) == len(parameters) and all(kind in (str, int, float, bool) for kind in kinds)
    by_place = all(p.kind in BINDABLE for p in parameters)
    return kinds if simple and by_place else None
