"""What is stuck or stopped in a store: damage, workers, pauses, jobs that wait, space."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from treadle.clock import to_datetime, to_duration
from treadle.doctor.finding import Finding, counted, note, ok, problem
from treadle.errors import StoreBusy
from treadle.model.job import JobState, Pause, WorkerRecord
from treadle.store import health
from treadle.store.ops import closing, meta, pauses
from treadle.store.roster import roster
from treadle.store.store import Store

START: Final = "Start a worker: treadle worker MODULE:APP"
OLD: Final = timedelta(minutes=10)
OVERDUE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
LOGS_MOST: Final = 1_000_000_000
"""Bytes of log lines beyond which a person should know."""
UNUSED_MOST: Final = 64_000_000
"""Bytes of unused pages, a quarter of the file at least, from which on compacting is worth it."""


class Seen(NamedTuple):
    """What several findings need: the moment, the workers that live and may start jobs, the pauses."""

    now: datetime
    workers: Sequence[WorkerRecord]
    at_work: Sequence[WorkerRecord]
    pauses: Mapping[tuple[str, str], Pause]


def file_contents(store: Store) -> Iterator[Finding]:
    """Look at what only a file has: SQLite's own check, unused pages."""
    yield _damage(store)
    space = store.read(health.space)
    if space.unused > UNUSED_MOST and space.unused * 4 > space.size:
        text = f"{space.unused:,} of {space.size:,} bytes are unused: deleted jobs leave their pages to new ones."
        yield note("unused space", text, "treadle compact, when the disk needs it.")


def contents(store: Store) -> Iterator[Finding]:
    """Look at everything that any store has."""
    made_at = store.read(meta.backup_mark)
    if made_at is not None:
        text = f"This file is a backup copy of {_time(to_datetime(int(made_at)))}; workers refuse it."
        yield problem("backup copy", text, "If the original is gone, run 'treadle adopt'.")
    moved = store.read(closing.moved_to)
    if moved is not None:
        yield problem("moved", moved, "Set that store in your programs. When nobody needs this one more, delete it.")
        return  # nothing here is anybody's concern any more
    workers = store.read(partial(roster, store))
    seen = Seen(
        to_datetime(store.clock.now()), workers, [one for one in workers if one.alive and one.orders is None],
        {(one.kind, one.name): one for one in store.read(pauses.every)},
    )  # fmt: skip
    yield from _workers(store, seen)
    yield from _pauses(store, seen)
    yield from _held(store)
    yield from _ready(store, seen)
    yield from _overdue(store, seen)
    yield from _cancelling(store)
    yield from _failed(store, seen)
    yield _logs(store)


def _damage(store: Store) -> Finding:
    try:
        found = store.read(health.damage)
    except StoreBusy:
        text = "The file is too large to check within the time a read may take."
        return note("integrity", text, "Run 'treadle verify', best on a copy made by 'treadle backup'.")
    if found:
        return problem("integrity", "; ".join(found), "Stop the workers and restore a backup; check the disk.")
    return ok("integrity", "SQLite's quick check found nothing")


# Workers ----------------------------------------------------------------------------------------


def _workers(store: Store, seen: Seen) -> Iterator[Finding]:
    alive = [worker for worker in seen.workers if worker.alive]
    yield ok("workers", f"{len(alive)} alive")
    for worker in seen.workers:
        yield from _worker(worker, others=bool(alive), far=store.engine.is_remote)
    if alive and not seen.at_work:
        text = f"{counted(len(alive), 'live worker')}, all paused or draining: nobody starts jobs."
        yield problem("no worker at work", text, f"treadle workers resume NAME. {START}")


def _worker(worker: WorkerRecord, *, others: bool, far: bool) -> Iterator[Finding]:
    who = f"Worker {worker.name} (pid {worker.pid} on {worker.host})"
    name = shlex.quote(worker.name)
    gone = f"dead or cut off (no sign since {_time(worker.seen_at)})" if far else "dead"
    if worker.stalled:
        text = f"{who} lives, shows no sign since {_time(worker.seen_at)} and runs {counted(worker.running, 'job')}."
        remedy = f"See its log and its stack. End it, or take its jobs away: treadle workers evict {name}"
        yield problem("stalled worker", text, remedy)
    elif not worker.alive and others:
        jobs = counted(worker.running, "job")
        yield note("dead worker", f"{who} is {gone}; a live worker is about to take back its {jobs}.")
    elif not worker.alive:
        text = f"{who} is {gone} and no worker lives to take back its {counted(worker.running, 'job')}."
        yield problem("dead worker", text, START)
    if worker.alive and worker.orders == "pause":
        text = f"{who} was paused by {worker.ordered_by} and starts no job."
        yield note("paused worker", text, f"treadle workers resume {name}")
    elif worker.alive and worker.orders is not None:
        text = f"{who} drains, as {worker.ordered_by} told it, and still runs {counted(worker.running, 'job')}."
        yield note("draining worker", text, f"It ends when they are done. If one hangs: kill {worker.pid}")


# Pauses and jobs --------------------------------------------------------------------------------


def _pauses(store: Store, seen: Seen) -> Iterator[Finding]:
    waiting = {("queue", one.queue): one.jobs for one in store.read(health.ready)}
    waiting |= {("task", task): jobs for task, jobs in store.read(health.parked)}
    for key, pause in seen.pauses.items():
        what = f"{pause.kind.capitalize()} {pause.name}"
        resume = f"treadle {pause.kind}s resume {shlex.quote(pause.name)}"
        if pause.until is not None and pause.until <= seen.now:
            text = f"{what}: the pause was over at {_time(pause.until)}, and nobody has cleared it."
            remedy = f"A worker does within seconds. {START}" if not seen.at_work else resume
            yield note("expired pause", text, remedy)
            continue
        why = f": {pause.reason}" if pause.reason else ""
        end = f" until {_time(pause.until)}" if pause.until else ""
        text = f"{what} is paused by {pause.paused_by} since {_time(pause.paused_at)}{end}{why}. " + (
            f"{counted(waiting.get(key, 0), 'job')} waiting."
        )
        yield note(f"paused {pause.kind}", text, resume)


def _held(store: Store) -> Iterator[Finding]:
    for held in store.read(health.held):
        text = f"{held.jobs:,} of {held.task} in queue {held.queue}: {held.reason}"
        which = f"--state held --queue {shlex.quote(held.queue)} --task {shlex.quote(held.task)}"
        yield problem("held jobs", text, f"See them: treadle jobs list {which}; then retry or cancel them.")


def _ready(store: Store, seen: Seen) -> Iterator[Finding]:
    for ready in store.read(health.ready):
        oldest = to_datetime(ready.oldest_at)
        text = f"{ready.jobs:,} in queue {ready.queue}, the oldest since {_time(oldest)}"
        if _in_force(seen, "queue", ready.queue):
            yield ok("ready jobs", f"{text}; the queue is paused.")
        elif not any(not worker.queues or ready.queue in worker.queues for worker in seen.at_work):
            yield problem("ready jobs", f"{text}; no live worker takes this queue.", START)
        elif seen.now - oldest > OLD:
            remedy = "Start more workers, or raise --concurrency."
            yield note("ready jobs", f"{text}: more arrives than is done.", remedy)
        else:
            yield ok("ready jobs", text)


def _overdue(store: Store, seen: Seen) -> Iterator[Finding]:
    late = store.read(partial(health.overdue, before=_micros(store, OVERDUE)))
    if late.jobs and not seen.at_work:
        text = f"{counted(late.jobs, 'scheduled job')} due, the first since {_time(to_datetime(late.oldest_at))}."
        yield problem("due jobs", f"{text} No worker is there to start them.", START)


def _cancelling(store: Store) -> Iterator[Finding]:
    for one in store.read(health.cancelling):
        text = (
            f"{counted(one.jobs, 'running job')} of worker {one.worker} asked to stop and still there; the oldest runs "
            f"since {_time(to_datetime(one.oldest_at))}."
        )
        remedy = (
            "A plain function has to look at job.cancelled. If one hangs, end its worker: treadle workers drain "
            f"{shlex.quote(one.worker)}, or kill its process."
        )
        yield note("jobs asked to stop", text, remedy)


def _failed(store: Store, seen: Seen) -> Iterator[Finding]:
    failed = store.read(partial(health.ended_since, since=_micros(store, HOUR)))[JobState.FAILED]
    if failed:
        remedy = "See them: treadle jobs list --state failed --ended-after 1h; then: treadle jobs retry, same options."
        yield note("failed jobs", f"{counted(failed, 'job')} failed within the last hour.", remedy)


def _in_force(seen: Seen, kind: str, name: str) -> bool:
    pause = seen.pauses.get((kind, name))
    return pause is not None and (pause.until is None or pause.until > seen.now)


# Space ------------------------------------------------------------------------------------------


def _logs(store: Store) -> Finding:
    lines, size = store.read(health.log_size)
    if size > LOGS_MOST:
        text = f"Log lines of jobs take about {size:,} bytes ({lines:,} lines)."
        remedy = "Log less, or keep jobs for a shorter time (--keep-succeeded); then treadle prune; a file: compact it."
        return note("logs of jobs", text, remedy)
    return ok("logs of jobs", f"about {size:,} bytes in {lines:,} lines")


def _micros(store: Store, ago: timedelta) -> int:
    return store.clock.now() - to_duration(ago)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
