"""A worker on a "host" of its own: a process that shares no file with the others and looks like another machine.

Run as ``python -m hosts.hosts_app URL HOST FOLDER [newer]``.
Leases are short, so that the tests need not wait for long.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path

import treadle.host.process
from treadle import JobContext, Treadle, defaults
from treadle.store.migrate import Migration, migrations
from treadle.store.postgres import opening

defaults.SERVER_LEASE = timedelta(seconds=5)  # type: ignore[misc]
defaults.LOST_LOCK_LEASE = timedelta(seconds=1.5)  # type: ignore[misc]


def build(url: str, folder: Path) -> Treadle:
    """The app: *folder* is where jobs say that they have begun, and where they are told to go on."""
    app = Treadle(url, lock_timeout=20)

    @app.task(name="quick")
    async def quick(number: int) -> int:
        return number

    @app.task(name="brief")
    def brief(number: int) -> int:
        threading.Event().wait(0.002)
        return number

    @app.task(name="held")
    async def held(number: int, job: JobContext) -> str:
        (folder / f"begun-{number}-{job.attempt}").write_text(str(os.getpid()))
        while not (folder / f"go-{number}").exists():
            await asyncio.sleep(0.02)
        return f"attempt {job.attempt}"

    return app


def become_newer() -> None:
    """Be the next version of Treadle, which has one migration more; it only adds."""
    text = "ALTER TABLE treadle_jobs ADD COLUMN more text; CREATE TABLE treadle_more (id bigint)"
    step = Migration(2, "002_more", text)
    setattr(opening, "migrations", lambda dialect: (*migrations(dialect), step))  # noqa: B010


def main(url: str, host: str, folder: str, version: str = "") -> None:
    """Work until told to stop."""
    if version == "newer":
        become_newer()
    own = Path(folder, host)
    own.mkdir(exist_ok=True)
    tempfile.tempdir = str(own)
    os.environ.pop("XDG_RUNTIME_DIR", None)
    treadle.host.process._boot_id = lambda: host
    logging.basicConfig(level="INFO", format="%(asctime)s %(threadName)s %(name)s %(message)s")
    build(url, Path(folder)).worker(name=host, concurrency=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
