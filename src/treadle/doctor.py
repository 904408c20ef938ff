"""What may be wrong with a store, each finding with its remedy. Nothing is changed by looking."""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from treadle import defaults
from treadle.clock import Clock, to_datetime, to_duration
from treadle.errors import StoreBusy, StoreError
from treadle.host.files import file_system_problem, free_bytes
from treadle.host.guard import find_second_sqlite
from treadle.model.job import WorkerRecord
from treadle.store import health
from treadle.store.migrate import migrations
from treadle.store.ops import meta
from treadle.store.options import StoreOptions
from treadle.store.roster import roster
from treadle.store.sqlite import check_version, has_wal_reset_bug
from treadle.store.store import Store

DECISIVE: Final = ("SQLite", "file system", "schema")
START: Final = "Start a worker: treadle worker MODULE:APP"
WAL_MOST: Final = 256_000_000
OLD: Final = timedelta(minutes=10)


class Level(enum.StrEnum):
    """How bad a finding is; only a problem makes the store unhealthy."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, in a few words.
        level: how bad it is.
        text: what was found.
        remedy: what to do, None when nothing is wrong.
    """

    check: str
    level: Level
    text: str
    remedy: str | None = None


def examine(path: Path, clock: Clock) -> list[Finding]:
    """Look at the database *path*, at what surrounds it and at what is stuck in it."""
    findings = [_library(), _second_library(), _place(path)]
    if not path.exists():
        text = f"There is no database {path.absolute()}."
        return [*findings, _problem("file", text, "Pass --store or set TREADLE_STORE.")]
    findings += [_modes(path), _disk(path), _wal(path), _schema(path)]
    if any(finding.level is Level.PROBLEM and finding.check in DECISIVE for finding in findings):
        return findings  # opening it would fail for the reason just told
    try:
        store = Store(f"sqlite:///{path}", StoreOptions(auto_migrate=False), clock)
    except StoreError as error:
        return [*findings, _problem("opening", str(error), "Do what it says, then look again.")]
    try:
        return [*findings, *_inside(store)]
    finally:
        store.close()


def wal_bytes(path: Path) -> int:
    """The size of a database's write-ahead log, 0 when there is none."""
    wal = Path(f"{path}-wal")
    return wal.stat().st_size if wal.exists() else 0


# Around the file --------------------------------------------------------------------------------


def _library() -> Finding:
    version = health.library_version()
    try:
        check_version()
    except StoreError as error:
        return _problem("SQLite", str(error), "Use a Python built with a newer SQLite.")
    if has_wal_reset_bug():
        return Finding(
            check="SQLite", level=Level.NOTE,
            text=f"Version {version} has the WAL-reset bug: Treadle cannot trigger it, other programs on the file can.",
            remedy="Let other programs on the file set PRAGMA wal_autocheckpoint=0, or use SQLite 3.51.3 or newer.",
        )  # fmt: skip
    return _ok("SQLite", f"version {version}")


def _second_library() -> Finding:
    found = find_second_sqlite()
    if found:
        return _problem("SQLite library", found, "Use only the standard library's sqlite3 on the file.")
    return _ok("SQLite library", "one copy in this process")


def _place(path: Path) -> Finding:
    found = file_system_problem(path)
    if found:
        return _problem("file system", found, "Move the database's folder to a local disk, or mount the whole folder.")
    return _ok("file system", "local, and not a mount point of its own")


def _modes(path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IWOTH:
        return _problem("file mode", f"{path} has mode {mode:o}: every user can change jobs.", f"chmod o-w {path}")
    if mode & stat.S_IROTH:
        text = f"{path} has mode {mode:o}: every user can read arguments and results."
        return Finding(check="file mode", level=Level.NOTE, text=text, remedy=f"chmod o-r {path}, unless it is meant.")
    return _ok("file mode", f"{mode:o}")


def _disk(path: Path) -> Finding:
    free = free_bytes(path)
    if free < defaults.MIN_FREE:
        text = f"{free:,} bytes are free; below {defaults.MIN_FREE:,} enqueue is refused."
        return _problem("disk", text, "Free space; work resumes by itself.")
    return _ok("disk", f"{free:,} bytes free")


def _wal(path: Path) -> Finding:
    size = wal_bytes(path)
    if size > WAL_MOST:
        remedy = "Find the program that keeps a read transaction open on the file, and end it."
        return _problem("write-ahead log", f"{size:,} bytes: something keeps it from shrinking.", remedy)
    return _ok("write-ahead log", f"{size:,} bytes")


def _schema(path: Path) -> Finding:
    newest = migrations()[-1].version
    try:
        found = health.file_schema(path)
    except StoreError as error:
        return _problem("schema", str(error), "Check --store; restore a backup if the file is damaged.")
    if found < newest:
        text = f"The file has schema {found}, this Treadle needs {newest}."
        return _problem("schema", text, "Run 'treadle migrate'.")
    return _ok("schema", f"version {found}")


# In the file ------------------------------------------------------------------------------------


def _inside(store: Store) -> Iterator[Finding]:
    yield _damage(store)
    made_at = store.read(meta.backup_mark)
    if made_at is not None:
        text = f"This file is a backup copy of {to_datetime(int(made_at)).isoformat()}; workers refuse it."
        yield _problem("backup copy", text, "If the original is gone, run 'treadle adopt'.")
    workers = store.read(partial(roster, store))
    yield from _workers(workers)
    yield from _stuck(store, workers)


def _damage(store: Store) -> Finding:
    try:
        found = store.read(health.damage)
    except StoreBusy:
        text = "The file is too large to check within the time a read may take."
        return Finding(check="integrity", level=Level.NOTE, text=text, remedy="Check a copy made by 'treadle backup'.")
    if found:
        return _problem("integrity", "; ".join(found), "Stop the workers and restore a backup; check the disk.")
    return _ok("integrity", "SQLite's quick check found nothing")


def _workers(workers: tuple[WorkerRecord, ...]) -> Iterator[Finding]:
    alive = [worker for worker in workers if worker.alive]
    yield _ok("workers", f"{len(alive)} alive")
    for worker in workers:
        who = f"Worker {worker.name} (pid {worker.pid} on {worker.host})"
        if worker.stalled:
            text = f"{who} lives, shows no sign since {worker.seen_at.isoformat()} and runs {worker.running} jobs."
            yield _problem("stalled worker", text, "See its log and its stack. Ending it lets others run its jobs.")
        elif not worker.alive and alive:
            text = f"{who} is dead; a live worker is about to take back its {worker.running} jobs."
            yield Finding(check="dead worker", level=Level.NOTE, text=text)
        elif not worker.alive:
            text = f"{who} is dead and no worker lives to take back its {worker.running} jobs."
            yield _problem("dead worker", text, START)


def _stuck(store: Store, workers: tuple[WorkerRecord, ...]) -> Iterator[Finding]:
    for held in store.read(health.held):
        text = f"{held.jobs:,} of {held.task} in queue {held.queue}: {held.reason}"
        yield _problem("held jobs", text, f"See them: treadle jobs list --state held --queue {held.queue}")
    alive = [worker for worker in workers if worker.alive]
    now = store.clock.now()
    for ready in store.read(health.ready):
        oldest = to_datetime(ready.oldest_at).isoformat(timespec="seconds")
        text = f"{ready.jobs:,} in queue {ready.queue}, the oldest since {oldest}"
        if not any(not worker.queues or ready.queue in worker.queues for worker in alive):
            yield _problem("ready jobs", f"{text}; no live worker takes this queue.", START)
        elif now - ready.oldest_at > to_duration(OLD):
            text += ": more arrives than is done."
            remedy = "Start more workers, or raise --concurrency."
            yield Finding(check="ready jobs", level=Level.NOTE, text=text, remedy=remedy)
        else:
            yield _ok("ready jobs", text)


def _ok(check: str, text: str) -> Finding:
    return Finding(check=check, level=Level.OK, text=text)


def _problem(check: str, text: str, remedy: str) -> Finding:
    return Finding(check=check, level=Level.PROBLEM, text=text, remedy=remedy)
