"""The signature of a task: binding, checking and storing its arguments.

Wire form: one object with the given arguments by parameter name, so reordering parameters changes nothing.
Extra positional arguments are a list under ``"*name"``, extra keyword arguments an object under ``"**name"``.
Defaults are not stored: a job enqueued without an argument gets the default of the code that runs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from treadle.errors import ConfigurationError, PayloadError, SignatureMismatch, UndecodablePayload
from treadle.model.codec import BytesCodec, Codec, JsonCodec
from treadle.model.parameters import (
    BINDABLE,
    NATIVE,
    SHALLOW,
    UNSET,
    Parameter,
    as_stored,
    can_carry,
    carried,
    check_left_out,
    contains,
    context_type,
    exact,
    exact_kinds,
    injected,
    injected_type,
    label_of,
    parameters_of,
    resolved_hints,
    struct_of,
)
from treadle.model.refusal import from_plain

Arguments = tuple[list[object], dict[str, object]]


class Signature:
    """What a task's function accepts, read once at registration.

    Build it with :meth:`of`; threads may share it.

    Attributes:
        returns: the return annotation, ``Any`` when there is none.
        injected: every parameter left out because a worker passes it, by name: its type.

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
        self, label: str, parameters: list[Parameter], injected: dict[str, type], returns: object
    ) -> None:
        self.label = label
        self.returns = returns
        self.injected: Mapping[str, type] = injected
        self._parameters = parameters
        self._positional = tuple(p.name for p in parameters if p.kind in BINDABLE)
        self._only_positional = frozenset(p.name for p in parameters if p.kind is p.kind.POSITIONAL_ONLY)
        self._named = frozenset(p.name for p in parameters if p.key == p.name) - self._only_positional
        self._required = frozenset(p.name for p in parameters if p.required)
        self._rest = next((p for p in parameters if p.kind is p.kind.VAR_POSITIONAL), None)
        self._extra = next((p for p in parameters if p.kind is p.kind.VAR_KEYWORD), None)
        self._plain = self._rest is None and self._extra is None and not self._only_positional
        self._names = tuple(p.name for p in parameters)
        # Arguments of exactly these types need no conversion to be checked: the common call, three times as fast.
        self._exact_kinds = exact_kinds(parameters) if self._plain else None
        self._all_named = self._plain and len(self._required) == len(parameters)
        kinds = [carried(label, p.name, p.annotation) for p in parameters]
        self._reread = any(contains(kind, SHALLOW) for kind in kinds)
        self._struct = struct_of(label, parameters)
        self._result_type = returns if can_carry(returns) else Any

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
            ConfigurationError: an annotation cannot be resolved or stored; the message names the parameter. Or nobody
                knows the parameters, as of some functions written in C.
        """
        label = label_of(function)
        hints = resolved_hints(function, label)
        stored: list[Parameter] = []
        passed: dict[str, type] = {}
        left_out: list[inspect.Parameter] = []
        found = parameters_of(function, label)
        for parameter in found:
            hint = hints.get(parameter.name)
            wanted = context_type(hint, context_types)
            if parameter.default is injected and wanted is None:
                wanted = injected_type(label, parameter.name, hint)
            if wanted is None and parameter.name not in skip:
                stored.append(as_stored(parameter, hints.get(parameter.name, Any)))
                continue
            left_out.append(parameter)
            if wanted is not None:
                passed[parameter.name] = wanted
        check_left_out(label, left_out, found)
        return cls(label, stored, passed, hints.get("return", Any))

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
        return [], {n: v for n, v in zip(self._names, values, strict=True) if v is not UNSET}

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
            plain = {key: exact(value) for key, value in wire.items()}
            try:
                self._convert(plain)
            except msgspec.ValidationError as error:
                raise self._misfit(f"does not accept these arguments: {error}") from error

    def _convert(self, value: object) -> object:
        return msgspec.convert(
            value, self._struct, strict=True, from_attributes=True, dec_hook=from_plain, builtin_types=NATIVE
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
        rest = given.get(self._rest, UNSET) if self._rest else UNSET
        args: list[object] = []
        kwargs: dict[str, object] = {}
        for parameter in self._parameters:
            value = given.get(parameter, UNSET)
            by_position = parameter.name in self._only_positional or (rest and parameter.kind in BINDABLE)
            if by_position:
                args.append(parameter.default if value is UNSET else value)
            elif value is not UNSET and parameter.key == parameter.name:
                kwargs[parameter.name] = value
        if isinstance(rest, list | tuple):
            args.extend(rest)
        extra = given.get(self._extra, UNSET) if self._extra else UNSET
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
