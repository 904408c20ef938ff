"""When a worker should be replaced by a fresh process: after so many attempts, at an age, beyond a size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from treadle.clock import Clock
from treadle.host.usage import resident_bytes
from treadle.worker.options import WorkerOptions, seconds_of

LOOK_EVERY: Final = 5.0


class Fitness:
    """Watches one worker; used from its event loop.

    Args:
        options: with the limits.
        clock: for the age.
        on_unfit: told why the worker should drain and end.
    """

    def __init__(self, options: WorkerOptions, clock: Clock, on_unfit: Callable[[str], None]) -> None:
        self._jobs = options.max_jobs
        self._age = None if options.max_age is None else seconds_of(options.max_age)
        self._memory = options.max_memory
        self._clock = clock
        self._on_unfit = on_unfit

    def ran(self, attempts: int) -> None:
        """So many attempts have begun."""
        if self._jobs is not None and attempts >= self._jobs:
            self._on_unfit(f"it has run {attempts} attempts (max_jobs)")

    async def serve(self) -> None:
        """Look at age and size now and then, until cancelled."""
        born = self._clock.monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY if self._age is None else min(LOOK_EVERY, self._age / 4))
            age, memory = self._clock.monotonic() - born, resident_bytes()
            if self._age is not None and age > self._age:
                self._on_unfit(f"it is {age:.0f} s old (max_age)")
            elif self._memory is not None and memory > self._memory:
                self._on_unfit(f"it has {memory:,} bytes in memory (max_memory)")
