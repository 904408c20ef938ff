"""Several hosts on one PostgreSQL: what one of them holds is taken over when it dies, and only then."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import postgres
from faults.helpers import eventually
from hosts.kit import Fleet, fleet
from treadle import Job
from treadle.model.job import AttemptOutcome


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Fleet]:
    """No workers yet, on a new database."""
    with postgres.database() as url, fleet(url, tmp_path) as made:
        yield made


def done_by(jobs: list[Job[Any]]) -> set[str]:
    """Wait for *jobs*; who ran them, each once (what was claimed ahead and given back is no attempt that ended)."""
    for job in jobs:
        job.result(60)
    attempts = [job.record().attempts for job in jobs]
    assert {len(each) for each in attempts} == {1}
    return {each[0].worker for each in attempts}


def test_a_host_that_dies_loses_nothing(hosts: Fleet) -> None:
    """Kill -9 on one host: another one, which can prove nothing, takes its job over and finishes it, charged once."""
    first = hosts.start("alpha")
    job = hosts.app.remote("held").enqueue(number=1)
    eventually(lambda: hosts.begun(1), "it begins")
    hosts.start("beta")
    first.kill()
    hosts.let_go(1)
    assert job.result(60) == "attempt 2"
    record = job.record()
    assert [attempt.outcome for attempt in record.attempts] == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert [attempt.worker for attempt in record.attempts] == ["alpha", "beta"]
    assert "Worker alpha" in hosts.said("beta")


def test_a_host_that_stands_still_is_fenced_and_comes_back(hosts: Fleet) -> None:
    """SIGSTOP beyond the lease: rescued by another, the late outcome is refused, and the worker registers anew."""
    first = hosts.start("alpha")
    job = hosts.app.remote("held").enqueue(number=1)
    eventually(lambda: hosts.begun(1), "it begins")
    first.send(signal.SIGSTOP)
    hosts.start("beta")
    eventually(lambda: len(hosts.begun(1)) == 2, "beta begins it again")
    hosts.let_go(1)
    assert job.result(60) == "attempt 2"
    first.send(signal.SIGCONT)
    eventually(lambda: "registers anew" in hosts.said("alpha"), "alpha notices")
    eventually(lambda: len(hosts.app.workers()) == 2, "alpha is back")
    outcomes = [attempt.outcome for attempt in job.record().attempts]
    assert outcomes == [AttemptOutcome.CRASHED, AttemptOutcome.SUCCEEDED]
    assert job.result(60) == "attempt 2"
    again = [hosts.app.remote("held").enqueue(number=number) for number in range(10, 18)]
    eventually(lambda: all(hosts.begun(number) for number in range(10, 18)), "both work, five at a time each")
    for number in range(10, 18):
        hosts.let_go(number)
    assert done_by(again) == {"alpha", "beta"}


def test_one_that_is_evicted_by_people_ends(hosts: Fleet) -> None:
    """Evicting is an order: that worker does not come back by itself."""
    first = hosts.start("alpha")
    (worker,) = hosts.app.workers()
    hosts.app.evict(worker.name)
    assert first.finish() != 0
    assert "was evicted" in hosts.said("alpha")
    assert hosts.app.workers() == ()


def test_two_versions_work_beside_each_other_through_a_migration(hosts: Fleet) -> None:
    """A worker of the next version changes the tables under load; the old one goes on, and takes its share."""
    hosts.start("old")
    task = hosts.app.remote("brief")
    hosts.app.enqueue_many(task.job(number=number) for number in range(500))
    hosts.start("new", "newer")
    hosts.app.enqueue_many(task.job(number=number) for number in range(500))
    eventually(hosts.all_succeeded, f"everything is done: {hosts.app.counts()}")
    assert hosts.history() == {1: 1000}
    assert hosts.app.store.read(lambda session: session.value("SELECT count(*) FROM treadle_more")) == 0
    held = [hosts.app.remote("held").enqueue(number=number) for number in range(8)]
    eventually(lambda: all(hosts.begun(number) for number in range(8)), "both work, five at a time each")
    for number in range(8):
        hosts.let_go(number)
    assert done_by(held) == {"old", "new"}
