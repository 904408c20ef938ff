"""Choosing the engine a store URL asks for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from treadle.clock import Clock
from treadle.errors import ConfigurationError
from treadle.store.engine import Engine
from treadle.store.options import StoreOptions
from treadle.store.sqlite_engine import SqliteEngine
from treadle.store.urls import is_server


def open_engine(url: str, options: StoreOptions, clock: Clock) -> Engine:
    """Open the database that *url* names.

    Raises:
        ConfigurationError: the URL is not one of ours, or psycopg is not installed.
    """
    if is_server(url):
        engine: Engine = postgres("engine").PostgresEngine(url, options, clock)
        return engine
    return SqliteEngine(url, options, clock)


def postgres(module: str) -> Any:
    """A module of the room for PostgreSQL, which is entered only when a store URL asks for it.

    Raises:
        ConfigurationError: psycopg is not installed.
    """
    try:
        return import_module(f"treadle.store.postgres.{module}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"PostgreSQL needs psycopg ({error}): pip install 'treadle[postgres]'.") from error
