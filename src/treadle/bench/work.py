"""What the benchmark's workers run: a job that does nothing. This is an ordinary Treadle application."""

from __future__ import annotations

from typing import Final

from treadle.app import Treadle

QUEUE: Final = "bench"
TASK: Final = "bench.nothing"

app = Treadle()  # the store comes from `treadle worker --store`


async def nothing(number: int) -> None:
    """Do nothing with *number*."""


app.task(name=TASK, queue=QUEUE)(nothing)
