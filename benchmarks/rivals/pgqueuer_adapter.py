"""pgqueuer on PostgreSQL: asyncpg, batches of 500, its drain mode; a finished job leaves one row in its log."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.app import CHUNK, ENCODED
from benchmarks.child import Role

BATCH = 500


async def fill(url: str, jobs: int) -> float:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    begun = time.perf_counter()
    for start in range(0, jobs, CHUNK):
        count = min(CHUNK, jobs - start)
        await queries.enqueue(["noop"] * count, [ENCODED] * count, [0] * count)
    taken = time.perf_counter() - begun
    await connection.close()
    return taken


def drain(url: str) -> Role:
    """Work until nothing is left."""

    async def work() -> dict[str, float]:
        pool = await asyncpg.create_pool(url, min_size=2, max_size=6)
        app = PgQueuer.from_asyncpg_pool(pool)

        @app.entrypoint("noop")
        async def noop(job: Job) -> None:
            """Nothing."""

        begun = time.monotonic()
        await app.run(batch_size=BATCH, mode=QueueExecutionMode.drain, dequeue_timeout=timedelta(seconds=1))
        ended = time.monotonic()
        await pool.close()
        return {"begun": begun, "ended": ended}

    yield
    return asyncio.run(work())
