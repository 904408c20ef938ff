"""Hot backup: a consistent copy made while everybody works, which no worker touches until it is adopted."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from treadle.errors import ConfigurationError, StoreUnusable
from treadle.host.failpoints import reach
from treadle.host.files import create_private
from treadle.store.dialect import SQLITE
from treadle.store.ops.meta import mark_backup
from treadle.store.session import Session
from treadle.store.sqlite import connect, translate
from treadle.store.store import Store
from treadle.store.transaction import begin, commit

PAGES_A_STEP = 1000


def backup(store: Store, target: Path) -> Path:
    """Copy the database of *store* to *target*, checked and synced, and mark the copy.

    Raises:
        ConfigurationError: *target* exists.
        StoreUnusable: the copy failed its check.
    """
    target = target.absolute()
    if target.exists():
        raise ConfigurationError(f"{target} exists; choose another name or remove it first.")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    create_private(partial)
    try:
        _copy(store.path, partial, store)
    except sqlite3.Error as error:
        partial.unlink(missing_ok=True)
        raise translate(error, partial) from error
    os.replace(partial, target)
    return target


def _copy(source_path: Path, partial: Path, store: Store) -> None:
    source = connect(source_path, read_only=True)
    copy = connect(partial)
    try:
        source.backup(copy, pages=PAGES_A_STEP)
        copy.execute("PRAGMA journal_mode = DELETE")
        begin(copy, "backup")
        reach("after_begin", "backup")
        mark_backup(Session(copy, SQLITE, store.clock))
        commit(copy, partial, "backup")
        reach("after_commit", "backup")
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        copy.close()
        source.close()
    if verdict != "ok":
        raise StoreUnusable(f"The copy of {source_path} failed its check: {verdict}. Run 'treadle doctor'.")
