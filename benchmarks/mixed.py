"""Two workers beside three producers: how long an enqueue takes while others write too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.app import make
from benchmarks.child import Child, stop_all
from benchmarks.measure import Bench, Figure, Section, Target, median, percentile

WORKERS, PRODUCERS = 2, 3
Rounds = list[list[float]]


def run(bench: Bench) -> Section:
    seconds = bench.size(10, 2)
    taken: dict[str, Rounds] = {"Treadle": [], "floor": []}
    variants: dict[str, Callable[[], float]] = {
        "Treadle": partial(treadle, bench, seconds, taken["Treadle"]),
        "floor": partial(floor, bench, seconds, taken["floor"]),
    }
    rates = bench.interleave(variants)
    return Section(
        name="mixed",
        title=f"Enqueue beside work: {WORKERS} worker processes, {PRODUCERS} producer processes",
        settings=(
            f"Each producer enqueues one by one at full for {seconds} s while the workers drain. Floor: bare loops "
            "with the same statements on SQLite's busy handler (100 ms, tried again), so without the gate."
        ),
        figures=tuple(figures(taken, rates)),
        targets=(
            Target(
                name="enqueue p99", value=median(per_round(taken["Treadle"], 99)), target=20, unit="ms", least=False
            ),
        ),
    )


def figures(taken: dict[str, Rounds], rates: dict[str, tuple[float, ...]]) -> list[Figure]:
    found = []
    for name, rounds in taken.items():
        found.append(Figure(name=f"{name}, enqueued", values=rates[name], unit="jobs/s"))
        found += [
            Figure(name=f"{name}, {label}", values=per_round(rounds, percent), unit="ms")
            for label, percent in (("p50", 50), ("p99", 99), ("max", 100))
        ]
    return found


def per_round(rounds: Rounds, percent: float) -> tuple[float, ...]:
    return tuple(percentile(values, percent) for values in rounds)


def treadle(bench: Bench, seconds: float, rounds: Rounds) -> float:
    path = bench.database()
    workers = [Child("benchmarks.workers:serve", path=path) for _ in range(WORKERS)]
    producers = [Child("benchmarks.enqueue:produce", path=path, seconds=seconds) for _ in range(PRODUCERS)]
    all_ready(workers, producers)
    rate = collect(producers, seconds, rounds)
    stop_all(workers)
    return rate


def floor(bench: Bench, seconds: float, rounds: Rounds) -> float:
    path = bench.database()
    with make(path).app as app:
        _ = app.store
    given = {"path": path, "durability": "full"}
    workers = [Child("benchmarks.floor:work", **given, seconds=seconds + 1) for _ in range(WORKERS)]
    producers = [
        Child("benchmarks.floor:produce", **given, seconds=seconds, place=place) for place in range(PRODUCERS)
    ]
    all_ready(workers, producers)
    for child in workers:
        child.go()
    rate = collect(producers, seconds, rounds)
    for child in workers:
        child.result()
    return rate


def all_ready(*groups: list[Child]) -> None:
    for child in (one for group in groups for one in group):
        child.ready()


def collect(producers: list[Child], seconds: float, rounds: Rounds) -> float:
    """Let the producers go and keep what each call took; returns jobs stored per second."""
    taken = [one for values in stop_all(producers) for one in values]
    rounds.append(taken)
    return len(taken) / seconds
