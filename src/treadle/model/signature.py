"""The signature of a task: binding, checking and storing its arguments.

Wire form: one object with the given arguments by parameter name, so reordering parameters changes nothing.
Extra positional arguments are a list under ``"*name"``, extra keyword arguments an object under ``"**name"``.
Defaults are not stored: a job enqueued without an argument gets the default of the code that runs it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import UnionType
from typing import Any, Final
from uuid import UUID

import msgspec

from treadle.errors import ConfigurationError, PayloadError, SignatureMismatch, UndecodablePayload
from treadle.model.codec import BytesCodec, Codec, JsonCodec, from_plain, is_pydantic_model, to_plain

_NATIVE: Final = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)
_SHALLOW: Final = (
    msgspec.inspect.DataclassType,
    msgspec.inspect.StructType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
    msgspec.inspect.CustomType,
)
_REFUSED: Final = (msgspec.inspect.CustomType, msgspec.inspect.RawType, msgspec.inspect.ExtType)
_UNSET: Final = msgspec.UNSET
_BINDABLE: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Arguments = tuple[list[object], dict[str, object]]


@dataclass(frozen=True, slots=True, eq=False)  # by identity: a default may be unhashable
class _Parameter:
    # One stored parameter: its place in the call and its key on the wire.
    name: str
    key: str
    kind: inspect._ParameterKind
    annotation: object
    default: object

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty and self.key == self.name


class Signature:
    """What a task's function accepts, read once at registration.

    Build it with :meth:`of`; threads may share it.

    Attributes:
        returns: the return annotation, ``Any`` when there is none.
        context_parameter: name of the first parameter annotated with a context type, or None.
        injected: every parameter left out because of its type, by name.

    Example:
        >>> from treadle.model.codec import JsonCodec
        >>> def send(to: str, subject: str = "hi") -> None: ...
        >>> signature, codec = Signature.of(send), JsonCodec()
        >>> signature.encode(codec, ("ada@example.org",), {})
        b'{"to":"ada@example.org"}'
        >>> signature.decode(codec, b'{"to":"ada@example.org"}')
        ([], {'to': 'ada@example.org'})
    """

    def __init__(
        self, label: str, parameters: list[_Parameter], injected: dict[str, type], returns: object
    ) -> None:
        self.label = label
        self.returns = returns
        self.injected: Mapping[str, type] = injected
        self.context_parameter: str | None = next(iter(injected), None)
        self._parameters = parameters
        self._positional = tuple(p.name for p in parameters if p.kind in _BINDABLE)
        self._only_positional = frozenset(p.name for p in parameters if p.kind is p.kind.POSITIONAL_ONLY)
        self._named = frozenset(p.name for p in parameters if p.key == p.name) - self._only_positional
        self._required = frozenset(p.name for p in parameters if p.required)
        self._rest = next((p for p in parameters if p.kind is p.kind.VAR_POSITIONAL), None)
        self._extra = next((p for p in parameters if p.kind is p.kind.VAR_KEYWORD), None)
        self._plain = self._rest is None and self._extra is None and not self._only_positional
        self._names = tuple(p.name for p in parameters)
        # Arguments of exactly these types need no conversion to be checked: the common call, three times as fast.
        self._exact_kinds = _exact_kinds(parameters) if self._plain else None
        self._all_named = self._plain and len(self._required) == len(parameters)
        kinds = [_carried(label, p.name, p.annotation) for p in parameters]
        self._reread = any(_contains(kind, _SHALLOW) for kind in kinds)
        self._struct = _struct(label, parameters)
        self._result_type = returns if _can_carry(returns) else Any

    @classmethod
    def of(
        cls,
        function: Callable[..., object],
        *,
        context_types: tuple[type, ...] = (),
        skip: Collection[str] = (),
    ) -> Signature:
        """Read the signature of *function*.

        Args:
            function: the task's function; string annotations are resolved.
            context_types: parameters annotated with one of these (or ``T | None``) are left out: the worker
                passes them by keyword.
            skip: names of further parameters to leave out.

        Raises:
            ConfigurationError: an annotation cannot be resolved or stored; the message names the parameter.
        """
        label = getattr(function, "__qualname__", None) or type(function).__qualname__
        hints = _hints(function, label)
        stored: list[_Parameter] = []
        injected: dict[str, type] = {}
        left_out: list[inspect.Parameter] = []
        found = tuple(inspect.signature(function).parameters.values())
        for parameter in found:
            wanted = _context_type(hints.get(parameter.name), context_types)
            if wanted is None and parameter.name not in skip:
                stored.append(_stored(parameter, hints.get(parameter.name, Any)))
                continue
            left_out.append(parameter)
            if wanted is not None:
                injected[parameter.name] = wanted
        _check_left_out(label, left_out, found)
        return cls(label, stored, injected, hints.get("return", Any))

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Put the arguments under their parameters' names: the wire form. Types are not checked here.

        Raises:
            SignatureMismatch: an argument is missing, unexpected or given twice.
        """
        names = self._positional
        if len(args) > len(names) and self._rest is None:
            raise self._misfit(f"takes at most {len(names)} positional arguments, got {len(args)}")
        wire = dict(zip(names, args, strict=False))
        if self._rest is not None and len(args) > len(names):
            wire[self._rest.key] = list(args[len(names) :])
        if kwargs:
            self._bind_keywords(wire, kwargs)
        if not wire.keys() >= self._required:
            missing = ", ".join(repr(name) for name in self._names if name in self._required - wire.keys())
            raise self._misfit(f"is missing the argument {missing}")
        return wire

    def encode(self, codec: Codec, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """Bind, check against the annotations, and encode.

        Raises:
            SignatureMismatch: the arguments do not fit; the message names the path and both types.
            InvalidPayload: a value cannot be stored.
        """
        if not args and not kwargs and not self._required and type(codec) is JsonCodec:
            return b"{}"
        if tuple(map(type, args)) == self._exact_kinds and not kwargs and type(codec) is JsonCodec:
            return codec.encode(dict(zip(self._names, args, strict=True)))
        wire = self.bind(args, kwargs)
        if isinstance(codec, BytesCodec):
            self._sole_parameter()
            return codec.encode(next(iter(wire.values()), None))
        self._check_types(wire)
        data = codec.encode(wire)
        if self._reread:
            # The check above takes a dataclass instance as it is, whatever its fields hold: read it back.
            self._read(codec, data)
        return data

    def decode(self, codec: Codec, data: bytes) -> Arguments:
        """Turn stored bytes into ``(args, kwargs)`` for today's function.

        Add the parameters left out by :meth:`of` by keyword.

        Raises:
            UndecodablePayload: the bytes are broken.
            SignatureMismatch: they are readable, but do not fit the function.
        """
        if data == b"{}" and not self._required and type(codec) is JsonCodec:
            return self._fill(()) if self._only_positional else ([], {})
        if isinstance(codec, BytesCodec):
            name = self._sole_parameter()
            return ([data], {}) if name in self._only_positional else ([], {name: data})
        found = self._read(codec, data)
        if self._all_named:
            return [], dict(zip(self._names, msgspec.structs.astuple(found), strict=True))
        values = msgspec.structs.astuple(found)
        if not self._plain:
            return self._fill(values)
        return [], {n: v for n, v in zip(self._names, values, strict=True) if v is not _UNSET}

    def check_codec(self, codec: Codec) -> None:
        """Find out at registration whether *codec* can carry these parameters; also warms its cache.

        Raises:
            ConfigurationError: it cannot.
        """
        if isinstance(codec, BytesCodec):
            try:
                self._sole_parameter()
            except SignatureMismatch as error:
                raise ConfigurationError(str(error)) from error
            return
        try:
            with suppress(PayloadError):
                codec.decode(codec.encode({}), self._struct)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{self.label}() cannot use the codec {codec.name!r}: {error}"
            ) from error

    def encode_result(self, codec: Codec, value: object) -> bytes:
        """Encode what the function returned; raises InvalidPayload."""
        return codec.encode(value)

    def decode_result(self, codec: Codec, data: bytes) -> object:
        """Decode a stored result as the return annotation says.

        Raises:
            UndecodablePayload: the bytes are broken or do not fit the annotation.
        """
        try:
            return codec.decode(data, self._result_type)
        except SignatureMismatch as error:
            raise UndecodablePayload(
                f"The result of {self.label}() does not fit its annotation: {error}"
            ) from error

    def _bind_keywords(self, wire: dict[str, object], kwargs: Mapping[str, object]) -> None:
        extra: dict[str, object] = {}
        for name, value in kwargs.items():
            if name not in self._named:
                extra[name] = value
            elif name in wire:
                raise self._misfit(f"got the argument {name!r} twice")
            else:
                wire[name] = value
        if not extra:
            return
        if self._extra is not None and not extra.keys() & self.injected.keys():
            wire[self._extra.key] = extra
            return
        raise self._misfit(f"got an unexpected argument {', '.join(repr(name) for name in extra)}")

    def _check_types(self, wire: dict[str, object]) -> None:
        try:
            self._convert(wire)
        except RecursionError:
            return  # the codec refuses it and names the path
        except msgspec.ValidationError:
            # msgspec knows str, int and float by exact type only; their subclasses are as good.
            plain = {key: _exact(value) for key, value in wire.items()}
            try:
                self._convert(plain)
            except msgspec.ValidationError as error:
                raise self._misfit(f"does not accept these arguments: {error}") from error

    def _convert(self, value: object) -> object:
        return msgspec.convert(
            value, self._struct, strict=True, from_attributes=True, dec_hook=from_plain, builtin_types=_NATIVE
        )

    def _read(self, codec: Codec, data: bytes) -> msgspec.Struct:
        try:
            found = codec.decode(data, self._struct)
            if isinstance(found, self._struct):
                return found
            return msgspec.convert(found, self._struct, dec_hook=from_plain)
        except (SignatureMismatch, msgspec.ValidationError) as error:
            raise self._misfit(f"does not accept these arguments: {error}") from error

    def _fill(self, values: tuple[object, ...]) -> Arguments:
        given = dict(zip(self._parameters, values, strict=False))
        rest = given.get(self._rest, _UNSET) if self._rest else _UNSET
        args: list[object] = []
        kwargs: dict[str, object] = {}
        for parameter in self._parameters:
            value = given.get(parameter, _UNSET)
            by_position = parameter.name in self._only_positional or (rest and parameter.kind in _BINDABLE)
            if by_position:
                args.append(parameter.default if value is _UNSET else value)
            elif value is not _UNSET and parameter.key == parameter.name:
                kwargs[parameter.name] = value
        if isinstance(rest, list | tuple):
            args.extend(rest)
        extra = given.get(self._extra, _UNSET) if self._extra else _UNSET
        if isinstance(extra, dict):
            self._add_extra(kwargs, extra)
        return args, kwargs

    def _add_extra(self, kwargs: dict[str, object], extra: dict[str, object]) -> None:
        clash = extra.keys() & (self._named | self.injected.keys())
        if clash:
            raise self._misfit(f"now names {sorted(clash)}, which were stored as extra keyword arguments")
        kwargs.update(extra)

    def _sole_parameter(self) -> str:
        if len(self._parameters) != 1 or self._parameters[0].key != self._parameters[0].name:
            raise self._misfit("must have exactly one stored parameter to use the codec 'bytes'")
        return self._parameters[0].name

    def _misfit(self, what: str) -> SignatureMismatch:
        return SignatureMismatch(f"{self.label}() {what}")


def _exact_kinds(parameters: list[_Parameter]) -> tuple[type, ...] | None:
    kinds = tuple(p.annotation for p in parameters if isinstance(p.annotation, type))
    simple = len(kinds) == len(parameters) and all(kind in (str, int, float, bool) for kind in kinds)
    by_place = all(p.kind in _BINDABLE for p in parameters)
    return kinds if simple and by_place else None


def _hints(function: Callable[..., object], label: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ConfigurationError(
            f"The annotations of {label}() cannot be resolved: {error}. "
            "Import the names at module level, not under TYPE_CHECKING or inside a function"
        ) from error


def _context_type(annotation: object, context_types: tuple[type, ...]) -> type | None:
    is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
    choices = typing.get_args(annotation) if is_union else (annotation,)
    return next((choice for choice in choices if isinstance(choice, type) and choice in context_types), None)


def _stored(parameter: inspect.Parameter, annotation: object) -> _Parameter:
    key, name = parameter.name, parameter.name
    if parameter.kind is parameter.kind.VAR_POSITIONAL:
        key, annotation = f"*{name}", list[annotation]  # type: ignore[valid-type]
    elif parameter.kind is parameter.kind.VAR_KEYWORD:
        key, annotation = f"**{name}", dict[str, annotation]  # type: ignore[valid-type]
    return _Parameter(name, key, parameter.kind, annotation, parameter.default)


def _check_left_out(
    label: str, left_out: list[inspect.Parameter], found: tuple[inspect.Parameter, ...]
) -> None:
    has_rest = any(p.kind is p.kind.VAR_POSITIONAL for p in found)
    for parameter in left_out:
        if parameter.kind is parameter.kind.POSITIONAL_ONLY or (has_rest and parameter.kind in _BINDABLE):
            raise ConfigurationError(
                f"{label}(): parameter {parameter.name!r} is passed by keyword, so make it keyword-only"
            )


def _struct(label: str, parameters: list[_Parameter]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    rename: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        # Own field names: a parameter may be called anything, such as __post_init__.
        rename[f"p{index}"] = parameter.key
        tail = () if parameter.required else (_UNSET,)
        fields.append((f"p{index}", parameter.annotation, *tail))
    return msgspec.defstruct("Arguments", fields, rename=rename, forbid_unknown_fields=True, kw_only=True)


def _carried(label: str, name: str, annotation: object) -> msgspec.inspect.Type:
    try:
        kind = msgspec.inspect.type_info(annotation)
    except Exception as error:
        raise ConfigurationError(f"{label}(): parameter {name!r} cannot be stored: {error}") from error
    refused = _contains(kind, _REFUSED, allow=is_pydantic_model)
    if refused is None:
        return kind
    what = getattr(refused, "cls", None) or type(refused).__name__
    raise ConfigurationError(
        f"{label}(): parameter {name!r} cannot be stored: {what!r} cannot be rebuilt from data. "
        "Use a dataclass, a pydantic model or a standard type"
    )


def _can_carry(annotation: object) -> bool:
    try:
        _carried("", "return", annotation)
    except ConfigurationError:
        return False
    return True


def _contains(
    kind: msgspec.inspect.Type,
    wanted: tuple[type, ...],
    allow: Callable[[object], bool] = lambda _: False,
) -> object | None:
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


def _exact(value: object) -> object:
    is_exact = isinstance(value, bool) or not isinstance(value, str | int | float)
    return value if is_exact else to_plain(value)
