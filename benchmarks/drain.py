"""Drain: how fast one worker process ends no-op async jobs, with fencing and history."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from benchmarks.app import ask, fill
from benchmarks.child import Child, stop_all
from benchmarks.measure import Bench, Figure, Section, Target, ratio
from benchmarks.rivals import installed, missing

LEFT = "SELECT count(*) FROM treadle_jobs WHERE state <> 7"
HUEY_DEFAULT = {1: "huey, 1 thread, default", 4: "huey, 4 threads, default"}
HUEY_OFF = "huey, 1 thread, fsync off"
HONKER_EACH = "honker, own loop, claims of 500, acknowledged one by one"
HONKER_BATCH = "honker, own loop, claims of 500, acknowledged together"


def run(bench: Bench) -> Section:
    jobs = bench.size(60_000, 3_000)
    fewer = bench.size(6_000, 500)
    variants = treadle_variants(bench, jobs) | rival_variants(bench, jobs, fewer)
    found = bench.interleave(variants)
    return Section(
        name="drain",
        title="Drain of no-op async jobs",
        settings=(
            f"{jobs:,} ready jobs with two short text arguments (huey, litequeue, single acknowledgements {fewer:,}), "
            "fresh file, concurrency 10, from the worker's start until every outcome and its history row is stored. "
            "Floor: claim and settle with the same statements in one transaction per 500 jobs, no engine, no handler, "
            "arguments fetched and not decoded."
        ),
        figures=tuple(Figure(name=name, values=values, unit="jobs/s") for name, values in found.items()),
        targets=targets(found),
        notes=(*missing("huey", "litequeue", "honker"), *rival_notes()),
    )


def treadle_variants(bench: Bench, jobs: int) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    for durability in ("full", "normal"):
        found[f"Treadle, one worker, {durability}"] = partial(treadle, bench, jobs, durability, 1)
        found[f"floor, {durability}"] = partial(floor, bench, jobs, durability)
        found[f"Treadle, two workers, {durability}"] = partial(treadle, bench, jobs, durability, 2)
    return found


def rival_variants(bench: Bench, jobs: int, fewer: int) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    if installed("huey"):
        for workers, name in HUEY_DEFAULT.items():
            found[name] = partial(huey, bench, fewer, workers, None)
        found[HUEY_OFF] = partial(huey, bench, fewer, 1, False)
    if installed("litequeue"):
        found["litequeue, own loop, normal"] = partial(loop, bench, "litequeue", jobs=fewer)
    if installed("honker"):
        found[HONKER_EACH] = partial(loop, bench, "honker", jobs=fewer, batch=500, together=0)
        found[HONKER_BATCH] = partial(loop, bench, "honker", jobs=jobs, batch=500, together=1)
    return found


def treadle(bench: Bench, jobs: int, durability: str, processes: int) -> float:
    path = bench.database()
    fill(path, jobs)
    rate = jobs / drain_seconds(path, durability, processes)
    left = ask(path, LEFT)
    assert left == 0, f"{left} jobs are left"
    return rate


def drain_seconds(path: str, durability: str, processes: int = 1, *, prune: bool = False) -> float:
    """Seconds from the first worker's start to the last one's end."""
    os.sync()  # what filling left to be written must not disturb the syncs that are measured
    children = [
        Child("benchmarks.workers:drain", path=path, durability=durability, prune=prune) for _ in range(processes)
    ]
    for child in children:
        child.ready()
    ended = stop_all(children)
    return float(max(one["ended"] for one in ended) - min(one["begun"] for one in ended))


def floor(bench: Bench, jobs: int, durability: str) -> float:
    path = bench.database()
    fill(path, jobs)
    os.sync()
    found = Child("benchmarks.floor:drain", path=path, durability=durability).run()
    assert found["jobs"] == jobs
    return jobs / float(found["seconds"])


def huey(bench: Bench, jobs: int, workers: int, fsync: bool | None) -> float:
    child = Child(
        "benchmarks.rivals.huey_adapter:drain", path=bench.database("huey"), jobs=jobs, workers=workers, fsync=fsync
    )
    return jobs / float(child.run()["seconds"])


def loop(bench: Bench, name: str, **arguments: int) -> float:
    child = Child(f"benchmarks.rivals.loops:{name}", path=bench.database(name), **arguments)
    return arguments["jobs"] / float(child.run()["seconds"])


def targets(found: dict[str, tuple[float, ...]]) -> tuple[Target, ...]:
    full, normal = found["Treadle, one worker, full"], found["Treadle, one worker, normal"]
    made = [
        Target(name="one worker at normal", value=sorted(normal)[len(normal) // 2], target=40_000, unit="jobs/s"),
        Target(name="one worker at full", value=sorted(full)[len(full) // 2], target=30_000, unit="jobs/s"),
    ]
    for durability, one in (("full", full), ("normal", normal)):
        two = found[f"Treadle, two workers, {durability}"]
        made += [
            Target(name=f"of the floor, {durability}", value=ratio(one, found[f"floor, {durability}"]), target=0.4),
            Target(name=f"two processes to one, {durability}", value=ratio(two, one), target=1.2),
        ]
    defaults = [values for name, values in found.items() if name in HUEY_DEFAULT.values()]
    if defaults:
        best = min(ratio(full, one) for one in defaults)
        made.append(Target(name="full to huey, which syncs each commit too", value=best, target=10))
        made.append(Target(name="normal to huey, fsync off", value=ratio(normal, found[HUEY_OFF]), target=10))
    if HONKER_EACH in found:
        made.append(Target(name="normal to honker's loop", value=ratio(normal, found[HONKER_EACH]), target=3))
    return tuple(made)


def rival_notes() -> tuple[str, ...]:
    versions = [f"{name} {installed(name)}" for name in ("huey", "litequeue", "honker") if installed(name)]
    if not versions:
        return ()
    return (
        f"Rivals: {', '.join(versions)}. huey acknowledges nothing and loses what a killed consumer ran; fsync off is "
        "synchronous = OFF. The loops of litequeue and honker have no worker around them, run at NORMAL and keep no "
        "history; honker's deletes the row. Acknowledged together means that a kill repeats up to 500 finished jobs.",
    )
