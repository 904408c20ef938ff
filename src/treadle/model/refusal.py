"""Why a value cannot be stored, with its path: one careful walk, taken only when something looks wrong."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

import msgspec

from treadle import defaults
from treadle.errors import InvalidPayload

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
_PATH_CAP: Final = 300

_Child = tuple[str, object, object]


def is_pydantic_model(type_: object) -> bool:
    """Tell whether *type_* is a pydantic model class, without ever importing pydantic."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and isinstance(type_, type) and issubclass(type_, base)


def to_plain(value: object) -> object:
    """Give msgspec something it knows for a pydantic model or a subclass of str, int or float.

    Raises:
        TypeError: *value* is something else.
    """
    if is_pydantic_model(type(value)):
        return value.model_dump(mode="json")  # type: ignore[attr-defined]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"{describe(value)} cannot be stored")


def from_plain(type_: type, value: object) -> object:
    """Rebuild a pydantic model; msgspec turns its ValueError into an error with a path.

    Raises:
        TypeError: *type_* is not a pydantic model.
    """
    if not is_pydantic_model(type_):
        raise TypeError(f"{type_!r} cannot be rebuilt from stored data")
    return type_.model_validate(value)  # type: ignore[attr-defined]


def refusal(value: object, error: Exception, encode: Callable[[object], bytes]) -> InvalidPayload:
    """The refusal for a value the encoder raised *error* about, with the path when the walk finds it."""
    try:
        Walk(encode).visit(value)
    except InvalidPayload as found:
        return found
    return InvalidPayload(f"$ cannot be stored: {error}")


class Walk:
    """One walk over a value: raises InvalidPayload at the first thing that cannot be stored."""

    def __init__(self, encode: Callable[[object], bytes]) -> None:
        self._encode = encode
        self._path: list[str] = []
        self._inside: set[int] = set()

    def visit(self, value: object) -> None:
        """Walk *value*; raises InvalidPayload with the path of the first offender."""
        children = _children(value)
        if children is None:
            self._leaf(value)
            return
        if id(value) in self._inside:
            self._refuse("contains itself")
        if len(self._inside) >= defaults.NESTING_CAP:
            self._refuse(f"is nested deeper than {defaults.NESTING_CAP} levels")
        self._inside.add(id(value))
        for part, key, child in children:
            self._path.append(part)
            if key is not None:
                self._key(key)
            self.visit(child)
            self._path.pop()
        self._inside.discard(id(value))

    def _key(self, key: object) -> None:
        if isinstance(key, str | int | float):
            self._leaf(key)
            return
        self._try({key: None})

    def _leaf(self, value: object) -> None:
        if isinstance(value, str):
            self._text(value)
        elif isinstance(value, int):
            if not INT_MIN <= value <= INT_MAX:
                self._refuse("is an integer beyond 64 bit; pass it as str")
        elif isinstance(value, float):
            if not math.isfinite(value):
                self._refuse(f"is {float(value)!r}, which JSON cannot hold; pass None or a str")
        elif value is not None:
            self._try(value)

    def _text(self, value: str) -> None:
        if "\0" in value:
            self._refuse("contains a NUL character, which databases cut or refuse; pass bytes or remove it")
        if value.isascii():
            return
        try:
            str.encode(value, "utf-8")
        except UnicodeEncodeError as error:
            self._refuse(f"contains a lone surrogate at character {error.start}; pass bytes or replace it")

    def _try(self, value: object) -> None:
        try:
            self._encode(value)
        except Exception as error:
            self._refuse(f"is {describe(value)}, which cannot be stored ({error})", error)

    def _refuse(self, reason: str, cause: Exception | None = None) -> None:
        path = "$" + "".join(self._path)
        if len(path) > _PATH_CAP:
            path = f"{path[: _PATH_CAP // 2]}…{path[-_PATH_CAP // 2 :]}"
        raise InvalidPayload(f"{path} {reason}") from cause


def _children(value: object) -> Iterator[_Child] | None:
    """Yield (path part, dict key or None, child), or return None for a value without children."""
    if value is None or isinstance(value, str | int | float | bytes):
        return None
    if isinstance(value, dict):
        return ((_key_part(key), key, child) for key, child in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"[{index}]", None, child) for index, child in enumerate(value))
    if isinstance(value, Enum):
        return iter([("", None, value.value)])
    return _fields(value)


def _fields(value: object) -> Iterator[_Child] | None:
    if is_pydantic_model(type(value)):
        plain: dict[str, object] = value.model_dump(mode="json")  # type: ignore[attr-defined]
        return ((f".{name}", name, child) for name, child in plain.items())
    names = _field_names(type(value))
    if names is None:
        return None
    return ((f".{name}", None, getattr(value, name, None)) for name in names)


def _field_names(type_: type) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(type_):
        return tuple(field.name for field in dataclasses.fields(type_))
    if issubclass(type_, msgspec.Struct):
        return type_.__struct_fields__
    attributes = getattr(type_, "__attrs_attrs__", None)
    return None if attributes is None else tuple(attribute.name for attribute in attributes)


def _key_part(key: object) -> str:
    if isinstance(key, str) and key.isascii() and key.isidentifier():
        return f".{key}"
    text = ascii(key)
    return f"[{text}]" if len(text) <= 60 else f"[{text[:60]}…]"


def describe(value: object) -> str:
    """What a value is, in a few words, for messages."""
    return f"a value of type {type(value).__qualname__}"
