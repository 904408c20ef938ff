"""Roles with a Treadle worker in them; run by ``benchmarks.child``."""

from __future__ import annotations

import asyncio
import resource
import time

from benchmarks.app import FOREVER, Stamps, address, make
from benchmarks.bare import resident
from benchmarks.child import Role
from treadle import Retention, Treadle, Worker


def drain(path: str, durability: str, *, prune: bool = False, concurrency: int = 10) -> Role:
    """Drain what is ready with one worker: seconds from its start to everything stored, and when that was."""
    kit = make(path, durability)
    worker = kit.app.worker(concurrency=concurrency, retention=Retention() if prune else FOREVER, tasks=("noop",))

    async def work() -> dict[str, float]:
        begun = time.monotonic()
        await worker.start()
        await worker.idle()
        ended = time.monotonic()
        await worker.stop()
        return {"begun": begun, "ended": ended, "seconds": ended - begun}

    with kit.app:
        _ = kit.app.store
        yield
        return asyncio.run(work())


def serve(path: str, durability: str = "full", name: str | None = None, queue: str = "default") -> Role:
    """Work on one queue from ready to go."""
    kit = make(path, durability)
    with kit.app, kit.app.worker(queues=[queue], name=name, retention=FOREVER):
        yield
    return None


def stamp(path: str) -> Role:
    """Work from ready to go; nanoseconds from each job's sending to its beginning."""
    app = Treadle(address(path))
    stamps = Stamps()
    app.task(name="stamp")(stamps.stamp)
    with app, app.worker():
        yield
    return stamps.waited


def wait(path: str, seconds: float, settle: float = 1.5) -> Role:
    """What a worker with nothing to do costs: share of a core in percent, and resident bytes."""
    kit = make(path)
    worker: Worker = kit.app.worker()

    async def idle() -> dict[str, float]:
        async with worker:
            await asyncio.sleep(settle)
            before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            await asyncio.sleep(seconds)
            after, ended = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return {"cpu": 100 * used / (ended - begun), "rss": resident()}

    with kit.app:
        yield
        return asyncio.run(idle())
