"""Making the file as small as what is in it, in place, by SQLite's own VACUUM.

The file keeps its name and inode, so nobody who has it open loses it. The new pages are one transaction in the
write-ahead log: a crash, a kill or a full disk leaves the file as it was before or as it is afterwards. Nobody can
write meanwhile; reads go on.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import Final, NamedTuple

from treadle.errors import StoreFull
from treadle.host.failpoints import reach
from treadle.host.files import free_bytes
from treadle.store import health
from treadle.store.dialect import SQLITE
from treadle.store.opening import patiently
from treadle.store.ops.meta import mark_compacted
from treadle.store.session import Session
from treadle.store.sqlite import connect, translate
from treadle.store.store import Store
from treadle.store.transaction import begin, commit

LOOK_EVERY: Final = 0.05
COMPACT: Final = "compact"


class Compacted(NamedTuple):
    """What compacting came to.

    Attributes:
        before: bytes of the database with its write-ahead log before.
        after: the same afterwards.
        complete: False when somebody's long read kept the log from being copied back; a later checkpoint does it.
    """

    before: int
    after: int
    complete: bool


def needed(store: Store, space: health.Space) -> int:
    """Bytes that must be free: the new pages once in a temporary file and once in the log, and what stays free."""
    return 2 * (space.size - space.unused) + store.options.min_free


def compact(store: Store) -> Compacted:
    """Rebuild the database of *store* without its unused pages.

    Raises:
        StoreFull: there is not enough room for it; nothing was changed.
        StoreBusy: somebody wrote without a pause for ``lock_timeout`` seconds; nothing was changed.
    """
    wanted, free = needed(store, store.read(health.space)), free_bytes(store.path)
    if free < wanted:
        raise StoreFull(f"Compacting {store.path} needs {wanted:,} free bytes and there are {free:,}; free some first.")
    before = health.bytes_of(store.path)
    writer, keeper = connect(store.path), connect(store.path)
    try:
        writer.execute("PRAGMA temp_store = FILE")  # in memory, a file of many GB would be too
        writer.execute("PRAGMA journal_size_limit = 0")
        _checkpoint(store, writer, keeper)
        patiently(lambda: writer.execute("VACUUM"), store.clock, store.options.lock_timeout, store.path)
        complete = _checkpoint(store, writer, keeper)
        _shrink_log(store, writer)
    except sqlite3.Error as error:
        raise translate(error, store.path) from error
    finally:
        keeper.close()
        writer.close()
    return Compacted(before, health.bytes_of(store.path), complete)


def _checkpoint(store: Store, writer: sqlite3.Connection, keeper: sqlite3.Connection) -> bool:
    """Copy the whole log into the database; False when readers kept parts of it for ``lock_timeout`` seconds.

    Under the write lock, as everywhere: SQLite up to 3.51.2 can lose pages when a checkpoint races with a writer.
    """
    until, pause = store.clock.monotonic() + store.options.lock_timeout, threading.Event()
    while True:
        _begin(store, writer)
        try:
            reach("after_begin", COMPACT)
            _, frames, copied = keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            writer.execute("ROLLBACK")
        if copied >= frames:
            return True
        if store.clock.monotonic() >= until:
            return False
        pause.wait(LOOK_EVERY)


def _shrink_log(store: Store, writer: sqlite3.Connection) -> None:
    """Write one row: the first write after a whole checkpoint begins the log anew and cuts it to the size limit."""
    _begin(store, writer)
    try:
        reach("after_begin", COMPACT)
        mark_compacted(Session(writer, SQLITE, store.clock))
        commit(writer, store.path, COMPACT)
        reach("after_commit", COMPACT)
    finally:
        if writer.in_transaction:
            writer.execute("ROLLBACK")


def _begin(store: Store, writer: sqlite3.Connection) -> None:
    patiently(lambda: begin(writer, COMPACT), store.clock, store.options.lock_timeout, store.path)
