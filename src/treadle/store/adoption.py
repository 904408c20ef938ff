"""Adopting a backup copy: the one way to make it a database to work on."""

from __future__ import annotations

import sqlite3

from treadle.store.opening import patiently
from treadle.store.ops import meta
from treadle.store.session import Session
from treadle.store.sqlite import connect, set_wal, translate
from treadle.store.store import Store


def adopt(store: Store) -> int | None:
    """Make the backup copy that *store* is the database to work on.

    Returns:
        How many jobs that ran when the copy was made are ready again; None when the file is no copy, and then
        nothing was changed: adopting takes jobs back without proof that their workers died.
    """
    if store.read(meta.backup_mark) is None:
        return None
    # A copy is made in one file, without a write-ahead log, so that it can be moved; workers need the log.
    connection = connect(store.path)
    try:
        patiently(lambda: set_wal(connection), store.clock, store.options.lock_timeout, store.path)
    except sqlite3.Error as error:
        raise translate(error, store.path) from error
    finally:
        connection.close()
    return store.run(_adopt)


def _adopt(session: Session) -> int | None:
    return None if meta.backup_mark(session) is None else meta.adopt(session)
