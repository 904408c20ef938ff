"""Exactly one visible effect: ``python3 dev.py effects [--trials 10000] [--store both] [--control]``.

A trial is a process that works on jobs which write a row in ``job.transaction()``, and that is killed by SIGKILL: at a
fail point between the row and the acknowledgement, or at any moment. In the end a worker drains what is left, and every
job must have succeeded with exactly one row. With ``--control`` the row is committed by itself, as without
transactions: then rows must be doubled, or the trials would prove nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT.parent / "src")]

import psycopg  # noqa: E402

import postgres  # noqa: E402
from treadle import JobContext, NewJob, Treadle  # noqa: E402
from treadle.host.failpoints import arm, kill_self, reach  # noqa: E402

OWN = ("effect.inside", "effect.behind")
"""Points in the handlers: the row is written; the block has ended."""
SERVER = (
    "transaction.before_begin", "transaction.after_begin", "transaction.before_commit", "transaction.after_commit",
    "buffered.before_begin", "buffered.after_begin", "buffered.before_commit", "buffered.after_commit",
)  # fmt: skip
FILE = (*SERVER, "transaction.after_told", "buffered.before_told", "buffered.after_told")
MOMENT = "any moment"
LATEST = 1.5
"""Seconds after which a process is killed although its point was not reached."""
STUCK = 60
LONGEST_MOMENT = 0.06
JOBS_EACH = 3


class Arena(NamedTuple):
    """Where trials take place: a database, and whether effects are part of the transaction."""

    url: str
    control: bool

    @property
    def is_file(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def points(self) -> tuple[str, ...]:
        if self.control:
            return ("effect.inside",)
        return (*OWN, *(FILE if self.is_file else SERVER), MOMENT, MOMENT)

    def run(self, sql: str, *values: object) -> list[Any]:
        """One statement of an outsider's, committed by itself."""
        if self.is_file:
            path = self.url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                return connection.execute(sql, values).fetchall()
        with psycopg.connect(self.url, autocommit=True) as server:
            cursor = server.execute(sql.replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []


ADD = "INSERT INTO effects (job) VALUES (?)"


def build(arena: Arena) -> tuple[Treadle, list[NewJob]]:
    """The app of every process, and the jobs of one trial."""
    app = Treadle(arena.url, durability="normal")
    add = ADD if arena.is_file else ADD.replace("?", "%s")

    @app.task(name="plain", crashes=1000)
    def plain(job: JobContext) -> None:
        if arena.control:
            arena.run(ADD, job.id)
            reach("inside", "effect")
            return
        with job.transaction() as tx:
            tx.execute(add, (job.id,))
            reach("inside", "effect")
        reach("behind", "effect")

    @app.task(name="buffered", crashes=1000)
    async def buffered(job: JobContext) -> None:
        async with job.transaction() as tx:
            await tx.execute(add, (job.id,))
            reach("inside", "effect")
        reach("behind", "effect")

    kinds = [plain] if arena.control else [plain, buffered]
    return app, [kinds[number % len(kinds)].job() for number in range(JOBS_EACH)]


def prepare(arena: Arena, _: int) -> None:
    """Make the tables."""
    with build(arena)[0] as app:
        app.counts()
    arena.run("CREATE TABLE effects (job BIGINT)")


def work_until_killed(arena: Arena, seed: int, told: int) -> None:
    """Enqueue a few jobs, work, and die at a point that chance has chosen."""
    chance = random.Random(seed)
    app, jobs = build(arena)
    app.enqueue_many(jobs)
    point = chance.choice(arena.points)
    latest = LATEST
    if point == MOMENT:
        latest = chance.uniform(0, LONGEST_MOMENT)
    else:
        arm(lambda name: (os.write(told, name.encode()), kill_self(name)), point, at=chance.choice((1, 1, 2)))
    with app.worker(concurrency=2):
        threading.Event().wait(latest)
        os.write(told, MOMENT.encode())
        kill_self(MOMENT)


def drain(arena: Arena, told: int) -> None:
    """Work until every job has ended, then count."""
    app, _ = build(arena)
    with app.worker(concurrency=4):
        until = time.monotonic() + 600
        while set(state for states in app.counts().values() for state in states) - {"succeeded"}:
            assert time.monotonic() < until, f"not drained: {app.counts()}"
            time.sleep(0.05)
    states = [sum(counts.values()) for counts in app.counts().values()]
    app.close()
    rows = arena.run("SELECT count(*) FROM effects GROUP BY job")
    found = {"jobs": sum(states), "effects": sum(row[0] for row in rows), "with": len(rows),
             "doubled": sum(row[0] > 1 for row in rows)}  # fmt: skip
    os.write(told, json.dumps(found).encode())


def forked(action: Callable[[int], None]) -> tuple[int, str]:
    """Run *action* in a fork; its exit status and what it told. This process never opens a database itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            signal.alarm(STUCK * 10 if action.__name__ == "draining" else STUCK)
            logging.disable(logging.CRITICAL)
            action(writing)
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def trials(arena: Arena, count: int, seed: int) -> dict[str, Any]:
    """Run *count* trials, drain, and say what is there."""
    assert forked(lambda told: prepare(arena, told))[0] == 0, "the tables could not be made"
    points: Counter[str] = Counter()
    for number in range(count):
        code, point = forked(lambda told, number=number: work_until_killed(arena, seed + number, told))  # type: ignore[misc]
        assert code == -signal.SIGKILL, f"trial {number} of seed {seed} ended with {code}"
        points[point] += 1
        if sys.stderr.isatty() and number % 100 == 0:
            print(f"\r{number} of {count}", end="", file=sys.stderr)

    def draining(told: int) -> None:
        drain(arena, told)

    code, said = forked(draining)
    assert code == 0, f"draining ended with {code}"
    return {**json.loads(said), "points": points}


@contextmanager
def database(store: str) -> Iterator[str]:
    """A new database of that kind."""
    with tempfile.TemporaryDirectory() as folder:
        if store == "sqlite":
            yield f"sqlite:///{folder}/jobs.db"
            return
        server = postgres.Server(postgres.needed())
        try:
            yield server.url()
        finally:
            server.remove()


def one(store: str, count: int, seed: int, *, control: bool) -> int:
    """Trials on one kind of store; 1 when the promise was broken, or the control saw nothing."""
    began = time.monotonic()
    with database(store) as url:
        found = trials(Arena(url, control), count, seed)
    took = time.monotonic() - began
    for point, times in sorted(found.pop("points").items()):
        print(f"  {store}: killed at {point}: {times}")
    missing = found["jobs"] - found["with"]
    print(
        f"{store}: {count} kills in {took:.0f} s (seed {seed}): {found['jobs']} jobs succeeded, "
        f"{found['effects']} effects, {missing} jobs without, {found['doubled']} with more than one", flush=True,
    )  # fmt: skip
    if control:
        return int(found["doubled"] == 0)
    return int(found["effects"] != found["jobs"] or bool(missing) or bool(found["doubled"]))


def main(words: list[str]) -> int:
    """Run what was asked for; both stores side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="kills on each store")
    parser.add_argument("--store", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--control", action="store_true", help="without transactions: effects must be doubled")
    given = parser.parse_args(words)
    seed = given.seed if given.seed is not None else random.randrange(10**9)
    if given.store != "both":
        return one(given.store, given.trials, seed, control=given.control)
    rest = ["--trials", str(given.trials), "--seed", str(seed), *(["--control"] if given.control else [])]
    running = [
        subprocess.Popen([sys.executable, __file__, "--store", store, *rest]) for store in ("sqlite", "postgresql")
    ]
    return int(any([process.wait() for process in running]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
