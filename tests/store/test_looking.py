"""Reads that people wait for: log lines, names to type, figures of the whole file, and stopping a long one."""

from __future__ import annotations

import logging
import signal
import threading
from functools import partial

import pytest

from store.making import PATIENCE, SECOND, START, apply, change, failure, put, register, registration, success, take
from treadle.clock import HeldClock
from treadle.errors import StoreBusy
from treadle.model.job import JobState, LogLine
from treadle.store import health
from treadle.store.ops import logs, names, pauses, runs, workers
from treadle.store.readers import Readers
from treadle.store.session import Session
from treadle.store.store import Store

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


# Log lines --------------------------------------------------------------------------------------


@pytest.fixture
def talked(store: Store) -> Store:
    """A store in which jobs 1 (task mail) and 2 (task other) have logged by turns, at levels 10, 20, 30, 40."""
    put(store, 1)
    put(store, 1, task="other")
    first, second = take(store, tasks=("mail", "other"))
    for number in range(8):
        lease = (first, second)[number % 2].lease
        line = LogLine(START + number, 10 * (1 + number // 2), "job", f"line {number}")
        store.run(partial(logs.write, lines=[(lease, [line])]))
    return store


def last(store: Store, most: int = 100, **which: object) -> list[str]:
    """The texts of the newest lines."""
    found = store.read(partial(logs.last, which=logs.Lines(**which), most=most))  # type: ignore[arg-type]
    return [line.text[5:] for line in found]


def test_the_newest_lines_oldest_first(talked: Store) -> None:
    """Of all jobs, of one, of a task, from a level on; as many as are asked for."""
    assert last(talked) == list("01234567")
    assert last(talked, 3) == list("567")
    assert last(talked, job=2) == list("1357")
    assert last(talked, task="mail", level=30) == list("46")
    assert last(talked, 1, level=logging.WARNING, job=1) == ["6"]
    assert last(talked, task="none") == last(talked, job=9) == []


def test_news_come_once_and_skip_what_does_not_match(talked: Store) -> None:
    """Each look goes on where the last one ended, also over lines that are not shown."""
    which = logs.Lines(task="mail", level=20)
    found, after = talked.read(partial(logs.news, which=which, after=0, most=2))
    assert [line.text for line in found] == ["line 2", "line 4"]
    found, after = talked.read(partial(logs.news, which=which, after=after, most=2))
    assert [line.text for line in found] == ["line 6"]
    assert after == talked.read(logs.newest)
    assert talked.read(partial(logs.news, which=which, after=after, most=2)) == ((), after)
    change(talked, "DELETE FROM treadle_logs")
    assert talked.read(partial(logs.news, which=which, after=after, most=2)) == ((), after)


# Names ------------------------------------------------------------------------------------------


def test_names_to_type(store: Store) -> None:
    """Queues, tasks and workers from every place that has some, each once and in order; the newest jobs first."""
    ids = put(store, 1, queue="mail", task="send") + put(store, 24, queue="post", task="print")
    store.run(partial(pauses.pause, kind="queue", name="later", by="ada", reason=""))
    store.run(partial(pauses.pause, kind="task", name="a.task", by="ada", reason=""))
    who = registration(2, ("send", "z.task"))._replace(queues=("listed", "mail"))
    store.run(partial(workers.register, who=who, epoch=5))
    assert store.read(names.queues) == ["later", "listed", "mail", "post"]
    assert store.read(names.tasks) == ["a.task", "print", "send", "z.task"]
    assert store.read(names.workers) == ["w2"]
    assert store.read(names.newest_jobs) == sorted(ids, reverse=True)[:20]


# Figures ----------------------------------------------------------------------------------------


def test_figures_of_an_empty_store(store: Store) -> None:
    """Nothing is nothing, not an error."""
    assert store.read(health.queue_states) == []
    assert store.read(health.parked) == []
    assert store.read(health.cancelling) == []
    assert store.read(partial(health.overdue, before=START)) == (0, 0)
    assert store.read(health.log_size) == (0, 0)
    assert store.read(partial(health.ended_since, since=0)) == {
        JobState.SUCCEEDED: 0, JobState.FAILED: 0, JobState.CANCELLED: 0,
    }  # fmt: skip


def test_figures_of_jobs(store: Store, clock: HeldClock) -> None:
    """Averages, what is overdue, what was asked to stop, and what ended since a moment."""
    register(store, 1, epoch=1)
    put(store, 4)
    first, second, third, _ = take(store)
    apply(store, success(first), failure(second, due_at=START + SECOND))
    change(store, "UPDATE treadle_jobs SET cancel_reason = 'no' WHERE id IN (3, 4)")
    states = {one.state: (one.jobs, one.average_attempts) for one in store.read(health.queue_states)}
    assert states == {JobState.SUCCEEDED: (1, 1.0), JobState.SCHEDULED: (1, 1.0), JobState.RUNNING: (2, 1.0)}
    assert store.read(partial(health.overdue, before=START)) == (0, 0)
    assert store.read(partial(health.overdue, before=START + SECOND)) == (1, START + SECOND)
    assert store.read(health.cancelling) == [("w1", 2, third.claimed_at)]
    assert store.read(partial(health.ended_since, since=START + SECOND))[JobState.SUCCEEDED] == 1
    assert store.read(partial(health.ended_since, since=START + SECOND + 1))[JobState.SUCCEEDED] == 0


def test_runs_of_a_task(store: Store) -> None:
    """Every begun attempt of the task's jobs in commit order, page by page; claims count what was given back too."""
    put(store, 2)
    put(store, 1, task="other")
    first, second, other = take(store, tasks=("mail", "other"))
    apply(store, success(second), success(other))
    apply(store, success(first))
    found = store.read(partial(runs.of_task, task="mail", after=0))
    assert [(run.job_id, run.enqueued_at, run.started_at) for run in found] == [
        (second.id, START, second.claimed_at), (first.id, START, first.claimed_at),
    ]  # fmt: skip
    assert store.read(partial(runs.of_task, task="mail", after=found[0].seq)) == found[1:]
    change(store, "UPDATE treadle_jobs SET attempt = 4 WHERE id = 1")
    assert store.read(partial(runs.claims, task="mail")) == 5
    assert store.read(partial(runs.claims, task="none")) == 0


# Stopping ---------------------------------------------------------------------------------------


def test_ctrl_c_stops_a_long_read(store: Store) -> None:
    """It is Ctrl-C that comes out, and not the message about reads that take too long; the reader goes on."""
    begun = threading.Event()

    def endless(session: Session) -> object:
        begun.set()
        return session.value(ENDLESS)

    def press(thread: int) -> None:
        assert begun.wait(PATIENCE)
        signal.pthread_kill(thread, signal.SIGINT)

    thread = threading.Thread(target=press, args=(threading.get_ident(),))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        store.read(endless)
    thread.join(PATIENCE)
    assert store.read(lambda session: session.value("SELECT 1")) == 1


def test_a_read_has_a_deadline_of_its_own(file_store: Store, clock: HeldClock) -> None:
    """Readers stop a read after their deadline and say so."""
    readers = Readers(file_store.engine.facts, clock, deadline=0.01)
    with pytest.raises(StoreBusy, match=r"longer than 0\.01 s"):
        readers.run(lambda session: session.value(ENDLESS))
    readers.close()
