"""What the demonstration works on: its folder, and the jobs that copy the source, stored once."""

from __future__ import annotations

import base64
import os
import shutil
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from treadle.app import Treadle
from treadle.demo.tree import Tree, groups
from treadle.demo.verified_copy import QUEUE, TASK
from treadle.errors import ConfigurationError, StoreError
from treadle.model.extra import encode_extra
from treadle.model.job import JobFilter, NewJob
from treadle.store.urls import without_password

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib")).resolve()
LEFT_OUT: Final = ("site-packages", "dist-packages", "__pycache__")
"""Folders of the standard library's place that are not the standard library, or change while Python runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the demonstration runs.

    Attributes:
        source: the folder to copy.
        dest: the folder that gets ``copy/`` and ``jobs.db``.
        workers: how many worker processes.
        kill: kill one of them midway with SIGKILL.
        fresh: begin anew instead of resuming.
        store: a PostgreSQL database for the jobs, None for ``dest/jobs.db``.
    """

    source: Path = STANDARD_LIBRARY
    dest: Path = Path("demo")
    workers: int = 2
    kill: bool = True
    fresh: bool = False
    store: str | None = None

    @property
    def url(self) -> str:
        """The store of the jobs."""
        return self.store or f"sqlite:///{self.database}"

    @property
    def place(self) -> str:
        """The same as messages show it."""
        return without_password(self.store) if self.store else str(self.database)

    @property
    def copy(self) -> Path:
        """Where the copy goes."""
        return self.dest / "copy"

    @property
    def database(self) -> Path:
        """The file of the jobs, unless they have a database of their own."""
        return self.dest / "jobs.db"

    @property
    def skip(self) -> tuple[str, ...]:
        """Names of folders that are left out: only of the standard library."""
        return LEFT_OUT if self.source == STANDARD_LIBRARY else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs that stand in the store.

    Attributes:
        jobs: how many.
        resumed: they were stored by an earlier run.
        ended: how many had ended when this run began.
    """

    jobs: int
    resumed: bool
    ended: int


def prepare(options: Options) -> Options:
    """Resolve the folders, check that nothing foreign is touched, and clean up for a fresh start.

    Raises:
        ConfigurationError: a folder cannot be used; the message says which and why.
    """
    source, dest = options.source.resolve(), options.dest.resolve()
    if not source.is_dir():
        raise ConfigurationError(f"--source {source} is not a folder.")
    if dest == source or source in dest.parents or dest in source.parents:
        raise ConfigurationError(f"--dest {dest} and --source {source} must not lie in one another.")
    options = replace(options, source=source, dest=dest)
    _check_ours(options)
    if options.fresh:
        _clean(options)
    options.copy.mkdir(parents=True, exist_ok=True)
    return options


def store_jobs(app: Treadle, options: Options, tree: Tree) -> Plan:
    """Store one job for each small group of files, all in one transaction, unless an earlier run did.

    Raises:
        ConfigurationError: the stored jobs copy another source.
    """
    found = app.find(JobFilter(task=TASK), size=1).jobs
    if found:
        arguments = msgspec.json.decode(found[0].arguments or b"{}")
        source = Path(os.fsdecode(base64.b64decode(arguments["source"])))
        if source != options.source:
            raise ConfigurationError(
                f"{options.dest} holds a copy of {source}; begin anew with --fresh or choose another --dest."
            )
        ended = sum(number for state, number in app.counts().get(QUEUE, {}).items() if state.ended)
        return Plan(jobs=int(str(found[0].meta["jobs"])), resumed=True, ended=ended)
    jobs = _jobs(app, options, tree)
    app.enqueue_many(jobs)
    return Plan(jobs=len(jobs), resumed=False, ended=0)


def _jobs(app: Treadle, options: Options, tree: Tree) -> list[NewJob]:
    task = app.remote(TASK, queue=QUEUE)
    source, target = os.fsencode(options.source), os.fsencode(options.copy)
    made = [task.job(source=source, target=target, names=names) for names in groups(tree.files)]
    if not made:
        return []
    # Every job knows how many there were, so that the report can tell whether one is missing.
    shared = replace(made[0].options, extra=encode_extra(None, {"jobs": len(made)}))
    return [job._replace(options=shared) for job in made]


def _check_ours(options: Options) -> None:
    database = options.database
    if options.store is None and (not database.exists() or database.stat().st_size == 0):
        _check_no_copy(options)
        return
    try:
        with Treadle(options.url, auto_migrate=options.store is not None) as app:
            queues = app.counts().keys()
            busy = [worker.name for worker in app.workers() if worker.alive]
    except StoreError as error:
        raise ConfigurationError(
            f"{options.place} is not this demonstration's; choose another. ({error})"
        ) from error
    foreign = sorted(queues - {QUEUE})
    if foreign:
        raise ConfigurationError(f"{options.place} has jobs of other queues ({', '.join(foreign)}); choose another.")
    if busy and options.fresh:
        raise ConfigurationError(f"{options.place} is in use by {', '.join(busy)}; stop them before --fresh.")
    if not queues and not options.fresh:
        _check_no_copy(options)


def _check_no_copy(options: Options) -> None:
    if options.copy.exists() and any(options.copy.iterdir()):
        raise ConfigurationError(
            f"{options.copy} is not empty and {options.place} has no jobs; choose another --dest."
        )


def _clean(options: Options) -> None:
    if options.copy.exists():
        shutil.rmtree(options.copy)
    if options.store is not None:
        with Treadle(options.store) as app:
            for worker in app.workers():
                app.evict(worker.slot, reason="a fresh demonstration")  # dead, so that its jobs can be deleted
            app.delete(JobFilter(queue=QUEUE))
        return
    side = Path(f"{options.database}-treadle")
    if side.exists():
        shutil.rmtree(side)
    for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm", "workers.log"):
        (options.dest / name).unlink(missing_ok=True)
