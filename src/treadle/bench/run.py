"""The benchmark from beginning to end: worker processes, a producer, the wait for the last job, an idle while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from treadle.app import Treadle
from treadle.bench.figures import Figures, work_out
from treadle.bench.produce import Produced, produce
from treadle.bench.work import QUEUE, TASK, nothing
from treadle.clock import SystemClock, processor_time
from treadle.demo.crew import Crew, WorkersFailed
from treadle.errors import ConfigurationError
from treadle.model.job import JobFilter, JobState
from treadle.store.engine import About
from treadle.store.opening import file_of
from treadle.store.ops import runs
from treadle.store.urls import is_server

LOOK_EVERY: Final = 0.1
PATIENCE: Final = 60.0
"""Seconds without any progress after which the run is given up."""
SETTLE: Final = 1.0
"""Seconds after the last job before idling is measured: what it made to do must be done."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the benchmark runs.

    Attributes:
        url: a store: a file that does not exist yet, or a schema without jobs.
        log: the file that gets the workers' output.
        jobs: how many jobs.
        every: seconds between two enqueues.
        concurrency: slots of each worker.
        processes: worker processes.
        idle: seconds for which idling is measured, 0 for not at all.
    """

    url: str
    log: Path
    jobs: int = 10_000
    every: float = 0.0007
    concurrency: int = 50
    processes: int = 4
    idle: float = 5.0


class Measured(NamedTuple):
    """What came of a run, and what kind of database it was on."""

    figures: Figures
    about: About


def run(options: Options, tell: Tell) -> Measured:
    """Run it.

    Args:
        options: how.
        tell: gets a line when something begins.

    Raises:
        ConfigurationError: the file exists, or the schema has jobs or workers.
        WorkersFailed: a worker ended by itself, or nothing got on any more.
    """
    url, clock, log = options.url, SystemClock(), options.log
    words = ("treadle.bench.work:app", "--queues", QUEUE, "--concurrency", str(options.concurrency))
    _check_new(url)
    with Treadle(url) as app:
        if app.counts() or app.workers():  # the first use makes the tables before the workers come
            raise ConfigurationError(f"{app.store.place} has jobs or workers; the benchmark needs a store of its own.")
        crew = Crew(url, log, options.processes, clock, words=words, prefix="bench")
        try:
            tell(f"Worker processes: {options.processes}.")
            _wait(crew, log, lambda: sum(worker.alive for worker in app.workers()), options.processes)
            tell(f"Jobs: {options.jobs:,}, one every {options.every * 1000:g} ms.")
            produced = asyncio.run(_produce(app, options, crew, log))
            ended = JobFilter(task=TASK, states=(JobState.SUCCEEDED, JobState.FAILED, JobState.HELD))
            _wait(crew, log, lambda: app.count(ended), options.jobs)
            idle = _idle(crew, clock, options.idle, tell)
        finally:
            crew.stop()
        return Measured(_figures(app, options, produced, idle), app.store.read(app.store.engine.about))


def _check_new(url: str) -> None:
    path = None if is_server(url) else file_of(url)
    if path is not None and path.exists():
        raise ConfigurationError(f"{path} exists; the benchmark needs a file of its own that is new.")


async def _produce(app: Treadle, options: Options, crew: Crew, log: Path) -> Produced:
    """Store the jobs, with an eye on the workers."""
    task = app.task(name=TASK, queue=QUEUE)(nothing)
    producing = asyncio.ensure_future(produce(task, options.jobs, options.every, SystemClock()))
    try:
        while not producing.done():
            await asyncio.wait({producing}, timeout=LOOK_EVERY)
            _mend(crew, log)
    finally:
        producing.cancel()
    return await producing


def _mend(crew: Crew, log: Path) -> None:
    """Start missing workers.

    Raises:
        WorkersFailed: one had ended; the figures would be those of fewer workers.
    """
    crew.mend()
    if crew.deaths:
        raise WorkersFailed(f"A worker ended by itself. The end of its log:\n{_tail(log)}")


def _wait(crew: Crew, log: Path, look: Callable[[], int], wanted: int) -> None:
    """Wait until *look* finds *wanted*, as long as it finds more from time to time."""
    clock, pause = SystemClock(), threading.Event()
    found, until = 0, clock.monotonic() + PATIENCE
    while (now := look()) < wanted:
        _mend(crew, log)
        if now > found:
            found, until = now, clock.monotonic() + PATIENCE
        if clock.monotonic() > until:
            raise WorkersFailed(f"{found} of {wanted} after {PATIENCE:g} s without progress. Log:\n{_tail(log)}")
        pause.wait(LOOK_EVERY)


def _idle(crew: Crew, clock: SystemClock, seconds: float, tell: Tell) -> float | None:
    """Percent of a core that each worker uses while nothing is to do; None when the system does not tell."""
    if not seconds:
        return None
    pause = threading.Event()
    pause.wait(SETTLE)
    tell(f"Idle for {seconds:g} s.")
    begun, before = clock.monotonic(), [processor_time(pid) for pid in crew.pids]
    pause.wait(seconds)
    lasted, after = clock.monotonic() - begun, [processor_time(pid) for pid in crew.pids]
    used = [end - start for start, end in zip(before, after, strict=True) if start is not None and end is not None]
    return 100 * sum(used) / 1e9 / lasted / len(used) if used else None


def _figures(app: Treadle, options: Options, produced: Produced, idle: float | None) -> Figures:
    every: list[runs.Run] = []
    while page := app.store.read(partial(runs.of_task, task=TASK, after=every[-1].seq if every else 0)):
        every += page
    succeeded = app.count(JobFilter(task=TASK, states=(JobState.SUCCEEDED,)))
    return work_out(
        every, jobs=options.jobs, succeeded=succeeded, claims=app.store.read(partial(runs.claims, task=TASK)),
        enqueues=produced.enqueues, producing=produced.seconds, idle=idle,
    )  # fmt: skip


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return "\n".join(lines[-20:]) or "(it is empty)"
