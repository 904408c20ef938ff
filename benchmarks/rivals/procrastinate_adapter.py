"""procrastinate on PostgreSQL: one process, an async worker; a finished job's row stays, as by default."""

from __future__ import annotations

import asyncio
import time

import procrastinate

from benchmarks.app import CHUNK, SUBJECT, TO
from benchmarks.child import Role


def make(url: str) -> tuple[procrastinate.App, procrastinate.tasks.Task]:  # type: ignore[type-arg]
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="noop")
    async def noop(to: str, subject: str) -> None:
        """Nothing."""

    return app, noop


async def fill(url: str, jobs: int) -> float:
    app, noop = make(url)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        begun = time.perf_counter()
        for start in range(0, jobs, CHUNK):
            rows = [{"to": TO, "subject": SUBJECT} for _ in range(min(CHUNK, jobs - start))]
            await noop.batch_defer_async(*rows)
        return time.perf_counter() - begun


def drain(url: str, concurrency: int = 10) -> Role:
    """Work until nothing is left."""
    app, _ = make(url)

    async def work() -> dict[str, float]:
        async with app.open_async():
            begun = time.monotonic()
            await app.run_worker_async(concurrency=concurrency, wait=False, install_signal_handlers=False)
            return {"begun": begun, "ended": time.monotonic()}

    yield
    return asyncio.run(work())
