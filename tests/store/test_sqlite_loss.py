"""Files that are deleted or replaced under an open store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.making import PATIENCE, count, job, note, put
from treadle.errors import StoreLost
from treadle.store.options import StoreOptions
from treadle.store.store import ROOM_ALWAYS, Store


@contextmanager
def opened(path: Path, max_size: int | None = None) -> Iterator[Store]:
    """A store for the length of the block."""
    store = Store(f"sqlite:///{path}", StoreOptions(durability="normal", max_size=max_size))
    try:
        yield store
    finally:
        store.close()


def remove(path: Path) -> None:
    """Delete the database and what belongs to it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def replace(path: Path) -> None:
    """Put another database in its place."""
    with opened(path.with_name("other.db")):
        pass
    remove(path)
    path.with_name("other.db").rename(path)


@pytest.mark.parametrize("lose", [remove, replace, lambda path: shutil.rmtree(path.parent)])
@pytest.mark.parametrize("max_size", [None, 10**9])
def test_a_lost_file_is_told_and_never_written(
    tmp_path: Path, lose: Callable[[Path], object], max_size: int | None
) -> None:
    """When the file was deleted or replaced, writing raises StoreLost and the new file stays as it is."""
    path = tmp_path / "sub" / "jobs.db"
    with opened(path, max_size=max_size) as store:
        put(store)
        lose(path)
        for _ in range(2):
            with pytest.raises(StoreLost, match="deleted or replaced"):
                put(store)
        assert isinstance(store.submit(note("x")).exception(PATIENCE), StoreLost)
    if path.exists():
        with opened(path) as other:
            assert count(other, "treadle_jobs") == 0


@pytest.mark.parametrize("lose", [remove, lambda path: shutil.rmtree(path.parent)])
def test_the_size_of_a_lost_file_is_not_asked_for(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    """With a size budget too it is the write that fails, with StoreLost; looking for room does not fail before it."""
    path = tmp_path / "sub" / "jobs.db"
    with opened(path, max_size=10**9) as store:
        put(store)
        lose(path)
        store.check_room([job()] * ROOM_ALWAYS)  # so many are looked at each time
        with pytest.raises(StoreLost, match="deleted or replaced"):
            put(store)


def test_a_replaced_file_is_not_read_as_the_old(path: Path) -> None:
    """After the file was replaced, reading says so instead of showing rows of the past."""
    with opened(path) as store:
        put(store)
        count(store, "treadle_jobs")
        replace(path)
        for _ in range(2):
            with pytest.raises(StoreLost, match="deleted or replaced"):
                count(store, "treadle_jobs")
        assert isinstance(store.submit_read(lambda session: None).exception(PATIENCE), StoreLost)


def test_a_deleted_file_is_not_read(path: Path) -> None:
    """Reading a database that lost its name says so, whether a connection to it is still open or not."""
    with opened(path) as warm, opened(path) as cold:
        count(warm, "treadle_jobs")
        remove(path)
        for store in (warm, cold):
            with pytest.raises(StoreLost, match="deleted or replaced"):
                count(store, "treadle_jobs")
