"""The app of the fault tests and its worker process: ``python -m faults.stage worker FOLDER NAME [new]``.

Handlers wait for files, so a test decides when each goes on; every attempt is written to a ledger.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults.chaos_app import attempt
from faults.ledger import Ledger, read_all
from treadle import JobContext, Retry, Task, Treadle, TreadleError
from treadle.clock import Clock
from treadle.errors import StoreLost
from treadle.host import failpoints
from treadle.store.sqlite import failure

LOST = 70


class Stage(NamedTuple):
    """An app, its tasks and its ledger folder."""

    app: Treadle
    quick: Task[Any, Any]
    wait: Task[Any, Any]
    block: Task[Any, Any]
    pool: Task[Any, Any]
    ledgers: Path

    def starts(self, job: int | None = None) -> list[dict[str, Any]]:
        """Start records, of one job or of all."""
        return [one for one in read_all(self.ledgers) if one["kind"] == "start" and job in (None, one["job"])]


def double(number: int) -> int:
    """Work for a pool."""
    return number * 2


def build(folder: Path, *, new: bool = False, clock: Clock | None = None, **options: Any) -> Stage:
    """The app on ``folder/jobs.db``; *new* adds a task that older workers do not know."""
    (folder / "ledgers").mkdir(exist_ok=True)
    app = Treadle(f"sqlite:///{folder / 'jobs.db'}", clock=clock, **options)
    ledger = Ledger(folder / "ledgers")

    @app.task(name="quick", retry=Retry(0))
    async def quick(job: JobContext, number: int) -> int:
        with attempt(ledger, job):
            return number

    @app.task(name="wait", retry=Retry(0))
    async def wait(job: JobContext, name: str) -> int:
        with attempt(ledger, job):
            while not (folder / name).exists():
                await asyncio.sleep(0.01)
            return os.getpid()

    @app.task(name="block", retry=Retry(0))
    async def block(job: JobContext, name: str) -> int:
        with attempt(ledger, job):
            while not (folder / name).exists():
                threading.Event().wait(0.01)  # on purpose: the event loop stands still
            return os.getpid()

    @app.task(name="pool", retry=Retry(0))
    def pool(job: JobContext, numbers: list[int]) -> list[int]:
        with attempt(ledger, job), multiprocessing.get_context("fork").Pool(2) as workers:
            return workers.map(double, numbers)

    if new:

        @app.task(name="added", retry=Retry(0))
        async def added(job: JobContext, number: int) -> int:
            with attempt(ledger, job):
                return number

    return Stage(app, quick, wait, block, pool, folder / "ledgers")


def work(folder: Path, name: str, new: str = "") -> None:
    """Work until SIGTERM; exit code 70 when the store is lost."""
    stage = build(folder, new=bool(new))
    try:
        stage.app.worker(name=name).run()
    except StoreLost as error:
        sys.exit(LOST if _told(error) else 1)
    stage.app.close()


def broken(folder: Path, point: str) -> None:
    """The same, on a disk that fails for ever at a fail point."""
    failpoints.arm(failpoints.raising(lambda: failure("SQLITE_IOERR_FSYNC")), point, times=None)
    work(folder, "broken")


def enqueue(folder: Path, threads: str, each: str) -> None:
    """Enqueue from many threads at once; one error of any kind is an exit code of 1."""
    stage, errors = build(folder), []

    def one(number: int) -> None:
        try:
            for place in range(int(each)):
                stage.quick.enqueue(number=number * 1000 + place)
        except BaseException as error:
            errors.append(repr(error))

    running = [threading.Thread(target=one, args=(number,)) for number in range(int(threads))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    stage.app.close()
    print(*errors, sep="\n", flush=True)
    sys.exit(bool(errors))


def fork(folder: Path) -> None:
    """Fork with an open app: both sides enqueue, both go on, and the child's ids are its own."""
    stage = build(folder)
    for number in range(5):
        stage.quick.enqueue(number=number)
    child = os.fork()
    for number in range(20):
        stage.quick.enqueue(number=(100 if child else 200) + number)
    stage.app.close()
    if not child:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def vanish(folder: Path) -> None:
    """Enqueue in every way, say the ids, and die at once by SIGKILL."""
    stage = build(folder)
    ids = [stage.quick.enqueue(number=1).id, *stage.app.enqueue_many(stage.quick.job(number=n) for n in range(10))]
    ids.append(asyncio.run(_soon(stage)))
    connection = sqlite3.connect(folder / "jobs.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    ids.append(stage.quick.using(connection=connection).enqueue(number=2).id)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    stage.quick.using(connection=connection).enqueue(number=3)
    os.write(1, f"{ids}\n".encode())
    os.kill(os.getpid(), 9)


async def _soon(stage: Stage) -> int:
    return (await stage.quick.aenqueue(number=4)).id


def _told(error: TreadleError) -> bool:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return True


ROLES: dict[str, Callable[..., None]] = {
    "worker": work, "broken": broken, "enqueue": enqueue, "fork": fork, "vanish": vanish,
}  # fmt: skip

if __name__ == "__main__":
    ROLES[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
