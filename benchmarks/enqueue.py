"""Enqueue: bulk, one by one, and from 64 coroutines at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from benchmarks.app import CHUNK, SUBJECT, TO, ask, make
from benchmarks.child import Child, Role
from benchmarks.measure import Bench, Figure, Section, Target, median, ratio
from benchmarks.rivals import installed, missing

ALL = "SELECT count(*) FROM treadle_payloads"
CALLERS = 64
Found = dict[str, tuple[float, ...]]


def run(bench: Bench) -> Section:
    many, few = bench.size(100_000, 5_000), bench.size(3_000, 200)
    together = bench.size(300, 10)
    found = bench.interleave(bulk_variants(bench, many))
    found |= bench.interleave(single_variants(bench, few))
    found |= bench.interleave(together_variants(bench, together))
    return Section(
        name="enqueue",
        title="Enqueue",
        settings=(
            f"Durability full, fresh file, no worker. Bulk: {many:,} jobs, one transaction per {CHUNK:,}. One by one: "
            f"{few:,} calls, one commit each. Together: {CALLERS} coroutines with {together:,} jobs each. Floors: the "
            "same statements in a bare loop; 'encoded before' leaves out binding and encoding the arguments on both "
            "sides."
        ),
        figures=tuple(Figure(name=name, values=values, unit="jobs/s") for name, values in found.items()),
        targets=targets(found),
        notes=missing("huey"),
    )


def bulk_variants(bench: Bench, jobs: int) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    for label, encoding in (("", True), (", encoded before", False)):
        found[f"bulk, Treadle{label}"] = partial(treadle, bench, "bulk", jobs, jobs=jobs, encoding=encoding)
        found[f"bulk, floor{label}"] = partial(floor, bench, "bulk", jobs, jobs=jobs, chunk=CHUNK, encoding=encoding)
    return found


def single_variants(bench: Bench, jobs: int) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {
        "one by one, Treadle": partial(treadle, bench, "single", jobs, jobs=jobs),
        "one by one, floor": partial(floor, bench, "single", jobs, jobs=jobs),
        "one by one, one-table INSERT": partial(floor, bench, "one_table", jobs, jobs=jobs),
    }
    if installed("huey"):
        found["one by one, huey"] = partial(huey, bench, jobs)
    return found


def together_variants(bench: Bench, each: int) -> dict[str, Callable[[], float]]:
    jobs = CALLERS * each
    return {
        f"together, Treadle, {CALLERS} coroutines": partial(treadle, bench, "together", jobs, each=each),
        f"together, floor, one transaction per {CALLERS}": partial(
            floor, bench, "bulk", jobs, jobs=jobs, chunk=CALLERS, encoding=True
        ),
    }


def treadle(bench: Bench, role: str, total: int, /, **arguments: object) -> float:
    path = bench.database()
    rate = enqueue_rate(role, total, path=path, **arguments)
    stored = ask(path, ALL)
    assert stored == total, f"{stored} of {total} jobs were stored"
    return rate


def enqueue_rate(role: str, total: int, /, **arguments: object) -> float:
    """Jobs per second that a Treadle in a process of its own stores."""
    return total / float(Child(f"benchmarks.enqueue:{role}", **arguments).run()["seconds"])


def floor(bench: Bench, role: str, total: int, /, **arguments: object) -> float:
    path = bench.database()
    with make(path).app as app:
        _ = app.store
    child = Child(f"benchmarks.floor:{role}", path=path, durability="full", **arguments)
    return total / float(child.run()["seconds"])


def huey(bench: Bench, jobs: int) -> float:
    child = Child("benchmarks.rivals.huey_adapter:enqueue", path=bench.database("huey"), jobs=jobs)
    return jobs / float(child.run()["seconds"])


def targets(found: Found) -> tuple[Target, ...]:
    bulk, single = found["bulk, Treadle"], found["one by one, Treadle"]
    together = found[f"together, Treadle, {CALLERS} coroutines"]
    encoded = ratio(found["bulk, Treadle, encoded before"], found["bulk, floor, encoded before"])
    table = ratio(single, found["one by one, one-table INSERT"])
    return (
        Target(name="bulk", value=median(bulk), target=120_000, unit="jobs/s"),
        Target(name="bulk, of the floor", value=ratio(bulk, found["bulk, floor"]), target=0.8),
        Target(name="bulk encoded before, of the floor", value=encoded, target=0.8),
        Target(name="one by one, of the floor", value=ratio(single, found["one by one, floor"]), target=0.8),
        Target(name="one by one, of a one-table INSERT", value=table, target=0.6),
        Target(name=f"{CALLERS} coroutines at full", value=median(together), target=12_000, unit="jobs/s"),
    )


# Roles


def bulk(path: str, jobs: int, encoding: bool, durability: str = "full") -> Role:
    """Seconds to store *jobs*, from calls or from jobs that were made before."""
    kit = make(path, durability)
    with kit.app:
        _ = kit.app.store
        before = None if encoding else [kit.job() for _ in range(jobs)]
        yield
        begun = time.perf_counter()
        kit.app.enqueue_many(before or (kit.job() for _ in range(jobs)), chunk=CHUNK)
        return {"seconds": time.perf_counter() - begun}


def single(path: str, jobs: int, durability: str = "full") -> Role:
    """Seconds to store *jobs*, one call each."""
    kit = make(path, durability)
    with kit.app:
        _ = kit.app.store
        yield
        begun = time.perf_counter()
        for _ in range(jobs):
            kit.noop.enqueue(TO, SUBJECT)
        return {"seconds": time.perf_counter() - begun}


def together(path: str, each: int) -> Role:
    """Seconds until 64 coroutines have stored *each* jobs, one call at a time each."""
    kit = make(path)

    async def call() -> None:
        for _ in range(each):
            await kit.noop.aenqueue(TO, SUBJECT)

    async def main() -> dict[str, float]:
        await kit.app.aopen()
        begun = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return {"seconds": time.perf_counter() - begun}

    with kit.app:
        yield
        return asyncio.run(main())


def produce(path: str, seconds: float) -> Role:
    """Store jobs one by one for a while; milliseconds each call took."""
    kit = make(path)
    taken = []
    with kit.app:
        _ = kit.app.store
        yield
        until = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < until:
            kit.noop.enqueue(TO, SUBJECT)
            taken.append((time.perf_counter() - begun) * 1e3)
    return taken
