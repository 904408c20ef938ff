"""A server that comes and goes, and a network that cuts: nothing is lost, stuck or done twice, and nobody is blamed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.helpers import eventually
from hosts.kit import Fleet, fleet, server
from hosts.proxy import CuttingProxy
from postgres import SAFE, Server, needed
from treadle import Treadle
from treadle.errors import StoreBusy, StoreUnreachable

JOBS_A_ROUND = 500
SUCCEEDED = 1
CHUNK = 25


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of this test's own, which keeps what it has acknowledged."""
    with server() as made:
        yield made


def enqueue_all(hosts: Fleet, jobs: int, done: threading.Event) -> threading.Thread:
    """Enqueue *jobs* jobs in chunks on another thread, each chunk exactly once; *done* is set after the last one."""
    task = hosts.app.remote("brief")

    def work() -> None:
        for start in range(0, jobs, CHUNK):
            while True:
                try:
                    hosts.app.enqueue_many(task.job(number=number) for number in range(start, start + CHUNK))
                except StoreBusy:
                    continue  # nothing was stored
                break
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def check_all(hosts: Fleet, jobs: int) -> None:
    """Everything was enqueued once and succeeded once, in its first attempt: nobody was taken for dead."""
    eventually(hosts.all_succeeded, f"everything is done: {hosts.app.counts()}")
    assert sum(hosts.app.counts()["default"].values()) == jobs
    assert hosts.history() == {SUCCEEDED: jobs}
    assert hosts.doubled() == 0


def test_a_server_that_is_killed_again_and_again(own_server: Server, tmp_path: Path, rounds: int) -> None:
    """PostgreSQL dies and comes back under load: 0 lost, 0 stuck, 0 doubled, and no worker is taken for dead."""
    with fleet(own_server.url(), tmp_path) as hosts:
        for host in ("alpha", "beta"):
            hosts.start(host)
        done = threading.Event()
        thread = enqueue_all(hosts, JOBS_A_ROUND * rounds, done)
        for _ in range(rounds):
            before = hosts.app.counts().get("default", {})
            own_server.stop("immediate")
            own_server.start()
            eventually(lambda: done.is_set() or hosts.app.counts().get("default", {}) != before, "work goes on")  # noqa: B023
        thread.join(120 * rounds)
        assert done.is_set()
        check_all(hosts, JOBS_A_ROUND * rounds)
        assert {record.name for record in hosts.app.workers()} == {"alpha", "beta"}


def test_connections_that_are_cut_at_random_bytes(tmp_path: Path, rounds: int) -> None:
    """Each connection of every worker and producer ends in the middle of something: 0 lost, 0 stuck, 0 doubled."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Server(needed(), SAFE, port)
    try:
        with CuttingProxy(port, 25_000, seed=7) as proxy:
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
            with fleet(url, tmp_path) as hosts:
                for host in ("alpha", "beta"):
                    hosts.start(host)
                done = threading.Event()
                thread = enqueue_all(hosts, JOBS_A_ROUND * rounds, done)
                thread.join(120 * rounds)
                assert done.is_set()
                eventually(hosts.all_succeeded, f"everything is done: {hosts.app.counts()}")
                assert proxy.cut > 20
                proxy.become_reliable()
                check_all(hosts, JOBS_A_ROUND * rounds)
    finally:
        made.remove()


def test_a_server_that_is_away_is_told_in_time(own_server: Server) -> None:
    """Whoever enqueues or reads hears of it after lock_timeout, in threads and on a loop; nothing was stored."""
    with Treadle(own_server.url(), lock_timeout=0.5) as app:
        job = app.remote("brief").enqueue(number=1)
        own_server.stop("immediate")
        for call in (
            lambda: app.remote("brief").enqueue(number=2),
            lambda: app.enqueue_many([app.remote("brief").job(number=3)]),
            lambda: asyncio.run(app.remote("brief").aenqueue(number=4)),
            lambda: app.get(job.id),
        ):  # fmt: skip
            with pytest.raises(StoreUnreachable, match="cannot be reached"):
                call()
        own_server.start()
        app.remote("brief").enqueue(number=5)
        assert app.count() == 2
