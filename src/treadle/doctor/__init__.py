"""What may be wrong with a store, each finding with its remedy. Nothing is changed by looking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from treadle.clock import Clock
from treadle.doctor.around import library, place, surroundings
from treadle.doctor.finding import Finding, Level, problem
from treadle.doctor.inside import contents, file_contents
from treadle.doctor.server import condition, reach
from treadle.errors import StoreError
from treadle.store.opening import file_of
from treadle.store.options import StoreOptions
from treadle.store.store import Store
from treadle.store.urls import is_server

DECISIVE: Final = ("SQLite", "file system", "schema", "server")


def examine(url: str, clock: Clock, options: StoreOptions) -> list[Finding]:
    """Look at the database *url*, at what surrounds it and at what is stuck in it.

    Args:
        url: a file, which need not exist, or a PostgreSQL database.
        clock: tells what is old.
        options: how it would be opened; the limits of enqueue are in it.
    """
    path = None if is_server(url) else file_of(url)
    findings = [*reach(url, options)] if path is None else [*_outside(path, options)]
    if any(finding.level is Level.PROBLEM and finding.check in (*DECISIVE, "file") for finding in findings):
        return findings  # opening it would fail for the reason just told
    try:
        store = Store(url, replace(options, auto_migrate=False), clock)
    except StoreError as error:
        return [*findings, problem("opening", str(error), "Do what it says, then look again.")]
    try:
        about = condition(store) if path is None else file_contents(store)
        return [*findings, *about, *contents(store)]
    finally:
        store.close()


def _outside(path: Path, options: StoreOptions) -> Iterator[Finding]:
    """What can be seen of a file without opening a store on it."""
    yield from library()
    yield place(path)
    if not path.exists():
        yield problem("file", f"There is no database {path.absolute()}.", "Pass --store or set TREADLE_STORE.")
        return
    yield from surroundings(path, options.min_free, options.max_size)
