"""Which schema a store has, asked without opening it: nothing is created, upgraded or locked."""

from __future__ import annotations

from typing import NamedTuple

from treadle.store import health, migrate
from treadle.store.engines import postgres
from treadle.store.opening import file_of
from treadle.store.options import StoreOptions
from treadle.store.urls import is_server


class Schema(NamedTuple):
    """The schema of a store, and what it lacks.

    Attributes:
        found: its version, 0 without Treadle's tables.
        newest: the version this Treadle makes.
        script: SQL that brings it there; empty when nothing is missing.
    """

    found: int
    newest: int
    script: str


def look(url: str, options: StoreOptions) -> Schema:
    """The schema of the store that *url* names.

    Raises:
        StoreError: it cannot be read.
    """
    if is_server(url):
        opening = postgres("opening")
        found: int = opening.found(url, options)
        newest = migrate.migrations("postgresql")[-1].version
        return Schema(found, newest, opening.script(options.schema, found) if found < newest else "")
    path = file_of(url)
    found = 0 if path is None else health.file_schema(path)
    return Schema(found, migrate.migrations()[-1].version, migrate.pending_sql(after=found))
