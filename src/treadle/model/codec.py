"""Codecs: how arguments and results become bytes, and back.

A codec refuses what it could not give back unchanged: NaN, infinity, integers beyond 64 bit, lone
surrogates, NUL characters, values nested too deep and types nobody can rebuild. The refusal names the path
of the value. Untyped data comes back as plain JSON data: a tuple as a list, a datetime as text.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, Protocol, cast

import msgspec

from treadle import defaults
from treadle.errors import (
    ConfigurationError,
    InvalidPayload,
    PayloadTooLarge,
    SignatureMismatch,
    UndecodablePayload,
)

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1

_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER: Final = b"0" * 19
_PACKED_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_PACKED_OPENERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_PATH_CAP: Final = 300

_Child = tuple[str, object, object]


class Codec(Protocol):
    """What Treadle needs from a codec; ``decode`` may leave plain dicts and lists to be converted."""

    @property
    def name(self) -> str:
        """The name stored beside the bytes: lower case, at most 32 characters."""

    def encode(self, value: object) -> bytes:
        """Turn *value* into bytes; raises InvalidPayload."""

    def decode(self, data: bytes, type_: object) -> object:
        """Turn *data* back into a *type_*; raises UndecodablePayload or SignatureMismatch."""


class _MsgspecCodec:
    """What the JSON and MessagePack codecs share. Keep one per task: it remembers a decoder per type."""

    name: str
    _is_suspicious: Callable[[bytes], bool]

    def __init__(self, encode: Callable[[object], bytes], decoder: Callable[..., Any]) -> None:
        self._encode = encode
        self._new_decoder = decoder
        self._decoders: dict[object, Callable[[bytes], object]] = {}

    def encode(self, value: object) -> bytes:
        """Turn *value* into bytes.

        Raises:
            InvalidPayload: a value cannot be stored; the message names its path.
        """
        try:
            data = self._encode(value)
        except Exception as error:
            raise _refusal(value, error, self._encode) from error
        if self._is_suspicious(data):
            _Walk(self._encode).visit(value)
        return data

    def decode(self, data: bytes, type_: object) -> object:
        """Turn *data* back into a *type_*.

        Raises:
            UndecodablePayload: the bytes are broken.
            SignatureMismatch: they are readable, but do not fit *type_*.
            ConfigurationError: no codec can carry *type_*.
        """
        decode = self._decoders.get(type_)
        if decode is None:
            decode = self._decoders[type_] = _decoder(self._new_decoder, type_)
        try:
            return decode(data)
        except Exception as error:
            raise _unreadable(self.name, data, error) from error


class JsonCodec(_MsgspecCodec):
    """JSON, the default: readable in the database and by other languages.

    Example:
        >>> JsonCodec().encode({"to": "ada@example.org"})
        b'{"to":"ada@example.org"}'
    """

    name = "json"

    def __init__(self) -> None:
        super().__init__(msgspec.json.Encoder(enc_hook=to_plain).encode, msgspec.json.Decoder)
        self._is_suspicious = _json_is_suspicious


class MessagePackCodec(_MsgspecCodec):
    """MessagePack: smaller and quicker for binary data, not readable in the database.

    Example:
        >>> codec = MessagePackCodec()
        >>> codec.decode(codec.encode([1, b"raw"]), list)
        [1, b'raw']
    """

    name = "msgpack"

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Encoder(enc_hook=to_plain).encode, msgspec.msgpack.Decoder)
        self._is_suspicious = _packed_is_suspicious


class BytesCodec:
    """Bytes that are already encoded, passed through unchanged; for tasks with one ``bytes`` argument.

    Example:
        >>> BytesCodec().encode(b"raw")
        b'raw'
    """

    name = "bytes"

    def encode(self, value: object) -> bytes:
        """Return *value*, which must be bytes; raises InvalidPayload otherwise."""
        if not isinstance(value, bytes):
            raise InvalidPayload(f"$ is {_a(value)}; the codec 'bytes' takes bytes only, so encode it first")
        return value

    def decode(self, data: bytes, type_: object) -> object:
        """Return *data*; *type_* is not looked at."""
        return data


class CodecRegistry:
    """The codecs an app knows, by name; it never changes.

    Args:
        codecs: custom codecs, besides ``json``, ``msgpack`` and ``bytes``. One of the same name replaces it.

    Raises:
        ConfigurationError: a codec's name is not usable, or two codecs share it.

    Example:
        >>> CodecRegistry().get("json").name
        'json'
    """

    def __init__(self, *codecs: Codec) -> None:
        custom: dict[str, Codec] = {}
        for codec in codecs:
            if not isinstance(codec.name, str) or not _NAME.fullmatch(codec.name):
                raise ConfigurationError(
                    f"Codec name {codec.name!r} cannot be used: a letter, then up to 31 of a-z 0-9 _ . -"
                )
            if codec.name in custom:
                raise ConfigurationError(f"Two codecs are named {codec.name!r}; rename one")
            custom[codec.name] = codec
        self._codecs: dict[str, Codec] = {c.name: c for c in _own_codecs()} | custom

    def get(self, name: str) -> Codec:
        """Return the codec called *name*.

        Raises:
            ConfigurationError: there is none; the message names the known ones.
        """
        codec = self._codecs.get(name)
        if codec is None:
            known = ", ".join(sorted(self._codecs))
            raise ConfigurationError(
                f"No codec is named {name!r}; known are: {known}. Pass it to Treadle(codecs=…)"
            )
        return codec

    def __iter__(self) -> Iterator[str]:
        return iter(self._codecs)

    def __len__(self) -> int:
        return len(self._codecs)


def check_size(data: bytes, cap: int, what: str) -> None:
    """Refuse *data* larger than *cap* bytes; *what* names it in the message.

    Raises:
        PayloadTooLarge: it is larger.

    Example:
        >>> check_size(b"abc", 3, "arguments of send_email")
    """
    if len(data) > cap:
        raise PayloadTooLarge(
            f"The {what} take {len(data):,} bytes, more than the cap of {cap:,}: "
            "store the data elsewhere and pass a reference, or raise the cap"
        )


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
    raise TypeError(f"{_a(value)} cannot be stored")


def from_plain(type_: type, value: object) -> object:
    """Rebuild a pydantic model; msgspec turns its ValueError into an error with a path.

    Raises:
        TypeError: *type_* is not a pydantic model.
    """
    if not is_pydantic_model(type_):
        raise TypeError(f"{type_!r} cannot be rebuilt from stored data")
    return type_.model_validate(value)  # type: ignore[attr-defined]


def _own_codecs() -> tuple[Codec, ...]:
    return JsonCodec(), MessagePackCodec(), BytesCodec()


def _decoder(kind: Callable[..., Any], type_: object) -> Callable[[bytes], object]:
    try:
        decoder = kind(type_, dec_hook=from_plain)
    except Exception as error:
        raise ConfigurationError(f"Values of type {type_!r} cannot be stored: {error}") from error
    return cast("Callable[[bytes], object]", decoder.decode)


def _unreadable(name: str, data: bytes, error: Exception) -> SignatureMismatch | UndecodablePayload:
    broken = isinstance(error, UnicodeDecodeError | RecursionError) or type(error) is msgspec.DecodeError
    if broken:
        return UndecodablePayload(f"The {len(data):,} stored bytes are not readable as {name}: {error}")
    return SignatureMismatch(str(error) or type(error).__name__)


# msgspec writes NaN as null, passes any integer and escapes NUL: so bytes without these marks, and with
# fewer brackets than the cap, are good, and only the others pay for the walk over the value.
def _json_is_suspicious(data: bytes) -> bool:
    # Searched as text and by find(): "in" on bytes costs four times as much.
    text = data.decode()
    if "null" in text or "\\u0000" in text or 'nan"' in text or 'inf"' in text:
        return True
    if len(data) >= 19 and data.translate(_DIGITS_ALIKE).find(_LONG_NUMBER) >= 0:
        return True
    return len(data) > defaults.NESTING_CAP and data.count(b"[") + data.count(b"{") > defaults.NESTING_CAP


def _packed_is_suspicious(data: bytes) -> bool:
    if b"\x00" in data or _PACKED_NOT_FINITE.search(data) is not None:
        return True
    if len(data) <= defaults.NESTING_CAP:
        return False
    return len(data) - len(data.translate(None, _PACKED_OPENERS)) > defaults.NESTING_CAP


def _refusal(value: object, error: Exception, encode: Callable[[object], bytes]) -> InvalidPayload:
    try:
        _Walk(encode).visit(value)
    except InvalidPayload as found:
        return found
    return InvalidPayload(f"$ cannot be stored: {error}")


class _Walk:
    """One walk over a value: raises InvalidPayload at the first thing that cannot be stored."""

    def __init__(self, encode: Callable[[object], bytes]) -> None:
        self._encode = encode
        self._path: list[str] = []
        self._inside: set[int] = set()

    def visit(self, value: object) -> None:
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
            self._refuse(f"is {_a(value)}, which cannot be stored ({error})", error)

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


def _a(value: object) -> str:
    return f"a value of type {type(value).__qualname__}"
