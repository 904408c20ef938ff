"""Choosing the engine a store URL asks for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from treadle.clock import Clock
from treadle.errors import ConfigurationError
from treadle.store.engine import Engine
from treadle.store.options import StoreOptions
from treadle.store.sqlite_engine import SqliteEngine

POSTGRES: Final = ("postgresql://", "postgres://")


def open_engine(url: str, options: StoreOptions, clock: Clock) -> Engine:
    """Open the database that *url* names.

    Raises:
        ConfigurationError: the URL is not one of ours, or psycopg is not installed.
    """
    if url.startswith(POSTGRES):
        try:
            found = import_module("treadle.store.postgres.engine")
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"PostgreSQL needs psycopg ({error}): pip install 'treadle[postgres]'."
            ) from error
        engine: Engine = found.PostgresEngine(url, options, clock)
        return engine
    return SqliteEngine(url, options, clock)
