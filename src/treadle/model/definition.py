"""A task: a registered function and its policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from treadle import defaults
from treadle.errors import SignatureMismatch, UndecodablePayload
from treadle.model.codec import Codec
from treadle.model.retry import Retry
from treadle.model.signature import Arguments, Signature

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefinition:
    """What a worker needs to run a task.

    Attributes:
        name: the name jobs are stored under.
        aliases: older names that jobs may still carry.
        function: what to call.
        signature: how arguments are bound, stored and read back.
        codec: how new arguments and results are encoded.
        retry: what follows a failure.
        timeout: microseconds an attempt may take, None for no limit.
        result_cap: bytes a result may have.
        is_async: True when the function is a coroutine function.
        crash_cap: crashes at which a job is held; 0 holds at the first, as an unknown outcome.
        isolated: attempts run in a process of their own.
        memory: bytes such a process may have, None for no cap.
        version: of its parameters; stored with the arguments.
        grace: microseconds an attempt that was asked to stop may take before it is stopped by force.
        upcasters: from a version to the next one.
    """

    name: str
    aliases: tuple[str, ...]
    function: Callable[..., Any]
    signature: Signature
    codec: Codec
    retry: Retry
    timeout: int | None
    result_cap: int
    is_async: bool
    crash_cap: int = defaults.CRASH_CAP
    isolated: bool = False
    memory: int | None = None
    version: int = 1
    grace: int | None = None
    upcasters: dict[int, Upcaster] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The name and every alias."""
        return (self.name, *self.aliases)

    def decode(self, codec: Codec, data: bytes, version: int) -> Arguments:
        """Stored arguments for today's function, brought up to its version first.

        Args:
            codec: what they are encoded with.
            data: the stored bytes.
            version: of the parameters when they were stored.

        Raises:
            UndecodablePayload: the bytes are broken, or an upcaster failed.
            SignatureMismatch: they do not fit the function, or there is no way from their version to today's.
        """
        if version != self.version:
            data = self._upcast(codec, data, version)
        return self.signature.decode(codec, data)

    def _upcast(self, codec: Codec, data: bytes, version: int) -> bytes:
        if version > self.version:
            raise SignatureMismatch(
                f"The arguments are of version {version}, this code knows {self.name} up to version {self.version}; "
                "a newer worker can run it"
            )
        wire = codec.decode(data, dict[str, Any])
        for step in range(version, self.version):
            upcaster = self.upcasters.get(step)
            if upcaster is None:
                raise SignatureMismatch(
                    f"The arguments are of version {version}, and {self.name} has no upcaster from version {step} "
                    f"to {step + 1}"
                )
            try:
                wire = upcaster(dict(wire))  # type: ignore[call-overload]
            except Exception as error:
                raise UndecodablePayload(f"The upcaster of {self.name} from {step} failed: {error!r}") from error
        return codec.encode(wire)
