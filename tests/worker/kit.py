"""What the tests of the app and the worker share: fixtures, patience, and a place for signals between threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import postgres
from treadle import HeldClock, JobFilter, JobRecord, Treadle
from worker import isolated

PATIENCE = 30.0
"""Seconds after which a test gives up on something that must happen; no test measures time."""
SOURCE = str(Path(__file__).parents[2] / "src")
LOOKS = int(PATIENCE / 0.005)


KINDS = ("memory", "postgresql")


def on_every_store(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes a store on every kind of database, unless it is about SQLite."""
    if "store_url" in metafunc.fixturenames:
        sqlite = metafunc.definition.get_closest_marker("sqlite") is not None
        metafunc.parametrize("store_url", KINDS[:1] if sqlite else KINDS, indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store that is gone after the test."""
    if request.param == "memory":
        yield "memory://"
        return
    with postgres.database() as url:
        yield url


@pytest.fixture
def app(store_url: str) -> Iterator[Treadle]:
    """A private store that is gone after the test."""
    with Treadle(store_url) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of a test lies."""
    return tmp_path / "jobs.db"


@pytest.fixture
def file_app(path: Path) -> Iterator[Treadle]:
    """A store in a real file."""
    with open_app(path) as made:
        yield made


@pytest.fixture
def clock() -> HeldClock:
    """A clock that the test moves."""
    return HeldClock()


@pytest.fixture
def held_app(store_url: str, clock: HeldClock) -> Iterator[Treadle]:
    """A private store whose time the test moves."""
    with Treadle(store_url, clock=clock) as made:
        yield made


@pytest.fixture
def shop(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Treadle]:
    """The app of :mod:`worker.isolated` on a file of its own; its children find both."""
    monkeypatch.setenv(isolated.STORE, f"sqlite:///{path}")
    monkeypatch.setenv(isolated.FOLDER, str(tmp_path))
    made = isolated.build()
    monkeypatch.setattr(isolated, "app", made)
    with made:
        yield made


def open_app(path: Path, **given: Any) -> Treadle:
    """A Treadle on the file *path*."""
    return Treadle(f"sqlite:///{path}", **given)


def eventually(truth: Callable[[], object]) -> None:
    """Wait until *truth* holds."""
    pause = threading.Event()
    for _ in range(LOOKS):
        if truth():
            return
        pause.wait(0.005)
    raise AssertionError("it never came true")


async def aeventually(truth: Callable[[], object]) -> None:
    """The same on an event loop."""
    for _ in range(LOOKS):
        if truth():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def heard(event: threading.Event) -> None:
    """Wait for a thread's signal."""
    assert event.wait(PATIENCE), "the signal never came"


async def aheard(event: asyncio.Event) -> None:
    """Wait for a coroutine's signal."""
    async with asyncio.timeout(PATIENCE):
        await event.wait()


def every_job(app: Treadle) -> list[JobRecord]:
    """All jobs, oldest first; a test has at most 500."""
    return list(reversed(app.find(JobFilter(), size=500).jobs))


def states(app: Treadle) -> list[str]:
    """The states of all jobs, oldest first."""
    return [str(job.state) for job in every_job(app)]


def change(path: Path, sql: str, *values: object) -> None:
    """Change the file as a person at the sqlite3 prompt would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as connection:
        connection.execute(sql, values)


def run_all(app: Treadle) -> None:
    """Run what is due now, with a worker that then stops."""

    async def main() -> None:
        async with app.worker() as worker:
            await worker.idle()

    asyncio.run(main())


def failing(app: Treadle, error: Callable[[], BaseException], **policy: Any) -> Any:
    """A task that always raises."""

    @app.task(name="fail", **policy)
    def fail() -> None:
        raise error()

    return fail
