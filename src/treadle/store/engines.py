"""Choosing the engine a store URL asks for."""

from __future__ import annotations

from treadle.clock import Clock
from treadle.store.engine import Engine
from treadle.store.options import StoreOptions
from treadle.store.sqlite_engine import SqliteEngine


def open_engine(url: str, options: StoreOptions, clock: Clock) -> Engine:
    """Open the database that *url* names.

    Raises:
        ConfigurationError: the URL is not one of ours.
    """
    return SqliteEngine(url, options, clock)
