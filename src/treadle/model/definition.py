"""A task: a registered function and its policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from treadle import defaults
from treadle.model.codec import Codec
from treadle.model.retry import Retry
from treadle.model.signature import Signature


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

    @property
    def names(self) -> tuple[str, ...]:
        """The name and every alias."""
        return (self.name, *self.aliases)
