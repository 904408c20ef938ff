"""PostgreSQL: drain by one, two and four worker processes, bulk enqueue and pickup, beside two rivals."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from benchmarks import ROOT, server_floor
from benchmarks.app import CHUNK, Stamps, make
from benchmarks.child import Child, stop_all
from benchmarks.measure import Bench, Figure, Section, Target, median, percentile, ratio
from benchmarks.pickup import pauses
from benchmarks.rivals import installed, missing
from treadle import Treadle

SETTINGS = ("max_connections=200", "shared_buffers=256MB", "max_wal_size=4GB")
RIVALS = ("procrastinate", "pgqueuer")
PROCESSES = (1, 2, 4)
_numbers = itertools.count()


@cache
def server() -> Any:
    """A server of the wheel, with its usual durability; it stops at exit."""
    import atexit

    sys.path.append(str(ROOT / "tests"))
    postgres = importlib.import_module("postgres")
    made = postgres.Server(postgres.needed(), SETTINGS, port=0)
    atexit.register(made.remove)
    return made


def database() -> str:
    """A new, empty database."""
    name = f"bench_{next(_numbers)}"
    with server().admin() as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return str(server().url(name))


def run(bench: Bench) -> Section:
    jobs, fewer = bench.size(40_000, 2_000), bench.size(4_000, 300)
    bulk: dict[str, list[float]] = {}
    waited: dict[str, list[list[float]]] = {"pickup": [], "pickup floor": []}
    variants: dict[str, Callable[[], float]] = {
        f"Treadle, {_processes(count)}": partial(treadle, jobs, count, bulk) for count in PROCESSES
    }
    for name in RIVALS:
        if installed(name):
            amount = jobs if name == "pgqueuer" else fewer
            variants |= {f"{name}, {_processes(count)}": partial(rival, name, amount, count, bulk) for count in (1, 2)}
    found = bench.interleave(variants)
    sent = bench.size(200, 20)
    bench.interleave({
        "pickup": partial(pickup, sent, waited["pickup"]), "floor": partial(floor, sent, waited["pickup floor"])
    })  # fmt: skip
    return Section(
        name="server",
        title="PostgreSQL",
        settings=(
            f"PostgreSQL {_version()} on the same machine, commits synced, {', '.join(SETTINGS)}. "
            f"{jobs:,} ready no-op async jobs with two short text arguments (procrastinate {fewer:,}), stored in "
            f"chunks of {CHUNK:,}, concurrency 10 in each worker process, from the first one's start to the last one's "
            "end. "
            "Pickup: from before enqueue to the first line of the handler, two processes, an idle queue. "
            "Its floor: two statements without a job queue, an INSERT that notifies and an UPDATE, each its own commit."
        ),
        figures=(
            *(Figure(name=f"drain: {name}", values=values, unit="jobs/s") for name, values in found.items()),
            *(Figure(name=f"bulk enqueue: {name}", values=tuple(each), unit="jobs/s") for name, each in bulk.items()),
            *(
                Figure(name=f"{name}, {label}", values=tuple(percentile(one, percent) for one in rounds), unit="ms")
                for name, rounds in waited.items()
                for label, percent in (("p50", 50), ("p99", 99))
            ),
        ),
        targets=tuple(targets(found, bulk, waited["pickup"])),
        notes=(
            *missing(*RIVALS),
            "The server shares the machine's cores with the workers, so more processes gain little on two cores. "
            f"Rivals: {', '.join(f'{name} {installed(name)}' for name in RIVALS if installed(name))}. pgqueuer deletes "
            "a finished job and writes a log row; procrastinate updates its row.",
        ),
    )


def targets(
    found: dict[str, tuple[float, ...]], bulk: dict[str, list[float]], waited: list[list[float]]
) -> list[Target]:
    one = found["Treadle, 1 process"]
    made = [
        Target(name="drain, one process", value=median(one), target=15_000, unit="jobs/s"),
        Target(name="bulk enqueue", value=median(bulk["Treadle"]), target=50_000, unit="jobs/s"),
        Target(
            name="pickup p50", value=median([percentile(one, 50) for one in waited]), target=3, unit="ms", least=False
        ),
    ]
    if "pgqueuer, 1 process" in found:
        made.append(Target(name="drain to pgqueuer", value=ratio(one, found["pgqueuer, 1 process"]), target=1.3))
    return made


def treadle(jobs: int, processes: int, bulk: dict[str, list[float]]) -> float:
    url = database()
    kit = make(url)
    with kit.app:
        made = [kit.job() for _ in range(jobs)]
        begun = time.perf_counter()
        kit.app.enqueue_many(made, chunk=CHUNK)
        bulk.setdefault("Treadle", []).append(jobs / (time.perf_counter() - begun))
        seconds = _run("benchmarks.workers:drain", processes, path=url, durability="full")
        left = kit.app.store.read(lambda session: session.value("SELECT count(*) FROM treadle_jobs WHERE state <> 7"))
        assert left == 0, f"{left} jobs are left"
    return jobs / seconds


def rival(name: str, jobs: int, processes: int, bulk: dict[str, list[float]]) -> float:
    url = database()
    adapter = importlib.import_module(f"benchmarks.rivals.{name}_adapter")
    bulk.setdefault(name, []).append(jobs / asyncio.run(adapter.fill(url, jobs)))
    return jobs / _run(f"benchmarks.rivals.{name}_adapter:drain", processes, url=url)


def pickup(jobs: int, waited: list[list[float]]) -> float:
    url = database()
    Treadle(url).store.close()
    worker = Child("benchmarks.workers:stamp", path=url).ready()
    with Treadle(url) as app:
        task = app.task(name="stamp")(Stamps().stamp)
        for _ in pauses(jobs):
            task.enqueue(time.monotonic_ns())
        time.sleep(0.5)
    found = stop_all([worker])[0]
    assert len(found) == jobs
    waited.append([one / 1e6 for one in found])
    return median(waited[-1])


def floor(jobs: int, waited: list[list[float]]) -> float:
    waited.append(server_floor.run(database(), jobs))
    return median(waited[-1])


def _run(role: str, processes: int, **arguments: object) -> float:
    children = [Child(role, **arguments) for _ in range(processes)]
    for child in children:
        child.ready()
    ended = stop_all(children)
    return float(max(one["ended"] for one in ended) - min(one["begun"] for one in ended))


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _version() -> str:
    with server().admin() as admin:
        return str(admin.execute("SHOW server_version").fetchone()[0])
