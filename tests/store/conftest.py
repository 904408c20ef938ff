"""Stores for the tests: one set of tests, every kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres
import treadle
from store.making import START
from treadle.clock import HeldClock
from treadle.store.options import StoreOptions
from treadle.store.store import Store

KINDS = ["file", "memory", "postgresql", "postgresql 15"]


@pytest.fixture(autouse=True)
def _children_find_treadle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes import the Treadle under test, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(Path(treadle.__file__).parents[1]))


@pytest.fixture
def clock() -> HeldClock:
    """A clock that stands still."""
    return HeldClock(START)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes a store runs on every kind of database, unless it is about SQLite."""
    given = any("url" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "url" in metafunc.fixturenames and not given:
        sqlite = metafunc.definition.get_closest_marker("sqlite") is not None
        metafunc.parametrize("url", KINDS[:2] if sqlite else KINDS, indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a new store of each kind."""
    kind, _, version = request.param.partition(" ")
    if kind == "postgresql":
        with postgres.database(version) as made:
            yield made
    else:
        yield f"sqlite:///{tmp_path / 'jobs.db'}" if kind == "file" else "memory://"


@pytest.fixture
def store(url: str, clock: HeldClock) -> Iterator[Store]:
    """An empty store of each kind."""
    opened = Store(url, StoreOptions(durability="normal"), clock)
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database file may be made."""
    return tmp_path / "jobs.db"


@pytest.fixture
def file_store(path: Path, clock: HeldClock) -> Iterator[Store]:
    """An empty store on a file, impatient with locks."""
    opened = Store(f"sqlite:///{path}", StoreOptions(durability="normal", lock_timeout=0.4), clock)
    yield opened
    opened.close(timeout=5)
