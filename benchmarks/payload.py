"""A large payload: what claim and settle add to the write-ahead log."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

from benchmarks.measure import Bench, Figure, Section, Target, median
from treadle.model.job import AttemptOutcome, JobState, NewJob, Options
from treadle.model.settle import Transition
from treadle.store.ops.claim import ClaimRequest, claim
from treadle.store.ops.settle import apply
from treadle.store.store import Store

LARGE, SMALL = 900_000, 100
EPOCH = 1
STEPS = ("enqueue", "claim", "settle")


def run(bench: Bench) -> Section:
    written: dict[int, list[tuple[int, ...]]] = {LARGE: [], SMALL: []}
    bench.interleave({str(size): partial(once, bench, size, written[size]) for size in written})
    figures = [
        Figure(name=f"{size:,} bytes, {step}", values=tuple(one[place] / 1e3 for one in rounds), unit="kB")
        for size, rounds in written.items()
        for place, step in enumerate(STEPS)
    ]
    more = [
        (large[1] + large[2]) / (small[1] + small[2])
        for large, small in zip(written[LARGE], written[SMALL], strict=True)
    ]
    return Section(
        name="payload",
        title="A 900 kB payload",
        settings="Growth of the write-ahead log by each step, emptied before it; one job.",
        figures=tuple(figures),
        targets=(Target(name="claim and settle, to those of a small job", value=median(more), target=2, least=False),),
    )


def once(bench: Bench, size: int, rounds: list[tuple[int, ...]]) -> float:
    path = Path(bench.database())
    store = Store(f"sqlite:///{path}")
    data = b'{"x":"' + b"x" * (size - 8) + b'"}'
    jobs = [NewJob(Options(task="noop"), data)]
    try:
        _ = store.insert(jobs)  # the id block is burned by the first one
        written = [growth(path, partial(store.insert, jobs))]
        claimed: list[Transition] = []
        written.append(growth(path, partial(take, store, claimed)))
        written.append(growth(path, lambda: store.submit(partial(apply, transitions=claimed, worker="bench")).result()))
    finally:
        store.close()
    rounds.append(tuple(written))
    return 0.0


def take(store: Store, claimed: list[Transition]) -> None:
    request = ClaimRequest(None, '["noop"]', 1, EPOCH)
    for job in store.submit(partial(claim, request=request)).result().jobs:
        now = store.clock.now()
        claimed.append(Transition(job.lease, job.id, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, now, now))


def growth(path: Path, action: object) -> int:
    """Bytes *action* adds to the write-ahead log."""
    assert callable(action)
    connection = sqlite3.connect(path)
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.close()
    assert not busy, "someone else uses the file"
    log = path.with_name(path.name + "-wal")
    before = log.stat().st_size
    action()
    return log.stat().st_size - before
