"""Codecs: how arguments and results become bytes, and back.

A codec refuses what it could not give back unchanged: NaN, infinity, integers beyond 64 bit, lone
surrogates, NUL characters, values nested too deep and types nobody can rebuild. The refusal names the path
of the value. Untyped data comes back as plain JSON data: a tuple as a list, a datetime as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
from treadle.model.refusal import Walk, describe, from_plain, refusal, to_plain

_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER: Final = b"0" * 19
_PACKED_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_PACKED_OPENERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])


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
            raise refusal(value, error, self._encode) from error
        if self._is_suspicious(data):
            Walk(self._encode).visit(value)
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
            raise InvalidPayload(f"$ is {describe(value)}; the codec 'bytes' takes bytes only, so encode it first")
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
