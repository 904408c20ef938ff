"""Big tables: what millions of other rows cost drain and enqueue."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from benchmarks.app import ask, fill
from benchmarks.build import build
from benchmarks.drain import drain_seconds
from benchmarks.enqueue import enqueue_rate
from benchmarks.measure import Bench, Figure, Section, Target, ratio

READY = "SELECT count(*) FROM treadle_jobs WHERE state = 3"
OLD = "SELECT count(*) FROM treadle_attempts WHERE worker = 'built'"
Rates = dict[str, tuple[float, ...]]


class Sizes(NamedTuple):
    """How much of everything."""

    jobs: int
    single: int
    finished: int
    scheduled: int
    waiting: int
    due: int
    old: int


def run(bench: Bench) -> Section:
    sizes = Sizes(
        jobs=bench.size(100_000, 1_000), single=bench.size(2_000, 100), finished=bench.size(5_000_000, 50_000),
        scheduled=bench.size(1_000_000, 10_000), waiting=bench.size(100_000, 1_000), due=bench.size(1_000_000, 10_000),
        old=bench.size(1_000_000, 10_000),
    )  # fmt: skip
    crowded, pruned = crowd(bench, sizes), prune(bench, sizes)
    at_once = instant(bench, sizes)
    rates = crowded | at_once | pruned[0]
    return Section(
        name="scale",
        title="Big tables",
        settings=(
            f"Crowded: {sizes.finished:,} finished jobs with history, {sizes.scheduled:,} due in a year, "
            f"{sizes.waiting:,} waiting; then {sizes.jobs:,} jobs are stored in bulk, {sizes.single:,} one by one, and "
            f"all are drained as one backlog. At one instant: {sizes.due:,} scheduled jobs already due, against as "
            f"many stored ready. Pruning: retention lets go of {sizes.old:,} jobs while {sizes.jobs:,} are drained, "
            "against the same file without. Durability full."
        ),
        figures=tuple(Figure(name=name, values=values, unit="jobs/s") for name, values in rates.items()),
        targets=targets(rates),
        notes=(f"rows pruned while draining, round by round: {', '.join(f'{one:,}' for one in pruned[1])}",),
    )


def targets(rates: Rates) -> tuple[Target, ...]:
    pairs = (
        ("drain, crowded to empty", "drain, crowded", "drain, empty", 0.8),
        ("bulk enqueue, crowded to empty", "bulk enqueue, crowded", "bulk enqueue, empty", 0.8),
        ("one by one, crowded to empty", "one by one, crowded", "one by one, empty", 0.8),
        ("due at one instant, to stored ready", "drain, due at one instant", "drain, as many ready", 0.8),
        ("drain while pruning, to without", "drain, pruning", "drain, not pruning", 0.9),
    )
    return tuple(
        Target(name=name, value=ratio(rates[one], rates[base]), target=least) for name, one, base, least in pairs
    )


def crowd(bench: Bench, sizes: Sizes) -> Rates:
    """Bulk, single and drain on a crowded file and on an empty one, side by side."""
    crowded = bench.database("crowded")
    build(crowded, finished=sizes.finished, scheduled=sizes.scheduled, waiting=sizes.waiting)
    steps: dict[str, dict[str, list[float]]] = {"empty": {}, "crowded": {}}

    def once(label: str) -> float:
        path = crowded if label == "crowded" else bench.database()
        found = steps[label]
        found.setdefault("bulk enqueue", []).append(
            enqueue_rate("bulk", sizes.jobs, path=path, jobs=sizes.jobs, encoding=True)
        )
        found.setdefault("one by one", []).append(enqueue_rate("single", sizes.single, path=path, jobs=sizes.single))
        backlog = sizes.jobs + sizes.single
        found.setdefault("drain", []).append(backlog / drain_seconds(path, "full"))
        assert ask(path, READY) == 0
        return 0.0

    bench.interleave({label: partial(once, label) for label in steps})
    return {
        f"{step}, {label}": tuple(steps[label][step])
        for step in ("drain", "bulk enqueue", "one by one")
        for label in steps
    }


def instant(bench: Bench, sizes: Sizes) -> Rates:
    """A crowd of jobs due at the same instant, against as many ready ones."""

    def due() -> float:
        path = bench.database()
        build(path, due=sizes.due)
        return drained(path, sizes.due)

    def ready() -> float:
        path = bench.database()
        fill(path, sizes.due)
        return drained(path, sizes.due)

    return bench.interleave({"drain, due at one instant": due, "drain, as many ready": ready})


def prune(bench: Bench, sizes: Sizes) -> tuple[Rates, list[int]]:
    """Drain while the worker prunes, and on the same file while it does not."""
    pruned: list[int] = []

    def once(*, pruning: bool) -> float:
        path = bench.database()
        build(path, old=sizes.old)
        fill(path, sizes.jobs)
        rate = sizes.jobs / drain_seconds(path, "full", prune=pruning)
        if pruning:
            pruned.append(sizes.old - ask(path, OLD))
        return rate

    variants = {"drain, pruning": partial(once, pruning=True), "drain, not pruning": partial(once, pruning=False)}
    return bench.interleave(variants), pruned


def drained(path: str, jobs: int) -> float:
    rate = jobs / drain_seconds(path, "full")
    ended = ask(path, "SELECT count(*) FROM treadle_jobs WHERE state = 7")
    assert ended == jobs, f"{ended} of {jobs} jobs ended"
    return rate
