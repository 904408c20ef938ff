"""What may be wrong with a store, each finding with its remedy. Nothing is changed by looking."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from treadle import defaults
from treadle.clock import Clock
from treadle.doctor.around import library, place, surroundings
from treadle.doctor.finding import Finding, Level, problem
from treadle.doctor.inside import contents
from treadle.errors import StoreError
from treadle.store.options import StoreOptions
from treadle.store.store import Store

DECISIVE: Final = ("SQLite", "file system", "schema")


def examine(
    path: Path, clock: Clock, *, min_free: int = defaults.MIN_FREE, max_size: int | None = None
) -> list[Finding]:
    """Look at the database *path*, at what surrounds it and at what is stuck in it.

    Args:
        path: the file, which need not exist.
        clock: tells what is old.
        min_free: bytes of disk below which enqueue is refused.
        max_size: bytes of database beyond which enqueue is refused, None for no such budget.
    """
    findings = [*library(), place(path)]
    if not path.exists():
        text = f"There is no database {path.absolute()}."
        return [*findings, problem("file", text, "Pass --store or set TREADLE_STORE.")]
    findings += surroundings(path, min_free, max_size)
    if any(finding.level is Level.PROBLEM and finding.check in DECISIVE for finding in findings):
        return findings  # opening it would fail for the reason just told
    try:
        store = Store(f"sqlite:///{path}", StoreOptions(auto_migrate=False), clock)
    except StoreError as error:
        return [*findings, problem("opening", str(error), "Do what it says, then look again.")]
    try:
        return [*findings, *contents(store)]
    finally:
        store.close()
