"""The floor: Treadle's own tables, indexes and statements in bare loops with no engine around them.

The statements are imported from where the engine keeps them, so the floor moves when they do.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.app import ENCODED, SUBJECT, TO
from benchmarks.child import Role
from treadle import defaults
from treadle.store.dialect import Sql
from treadle.store.ops import claim, insert, sequences, settle
from treadle.store.sqlite import connect, is_busy, probe_dialect

BATCH = 500
EPOCH = 1 << 40
"""No worker's epoch, so that nobody rescues what the floor holds."""
QUEUE = "default"
TASKS = '["noop"]'
IDS_FROM = 1 << 40
"""Far above every id the engine gives, so that both can use one file."""
Row = tuple[Any, ...]
ROWS = msgspec.json.Decoder(list[Row])


def micros() -> int:
    return time.time_ns() // 1000


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Bare:
    """A connection with the engine's pragmas that checkpoints like the engine: each 900 frames, on a second
    connection, while the first holds the write lock. The interval in commits follows what each one found."""

    def __init__(self, path: str, durability: str) -> None:
        self.writer = connect(Path(path), durability=durability)
        self.keeper = connect(Path(path), durability=durability)
        self.text = probe_dialect(self.writer).text
        self._every = 4.0
        self._since = 0
        self.held: list[int] = []
        self._begun = 0

    def close(self) -> None:
        self.keeper.close()
        self.writer.close()

    def run(self, sql: Sql | str, values: Any) -> sqlite3.Cursor:
        return self.writer.execute(self.text(sql), values)

    def begin(self) -> None:
        while True:
            try:
                self.writer.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise

    def commit(self) -> None:
        self.writer.execute("COMMIT")
        self._since += 1
        if self._since >= self._every:
            self.begin()
            _, frames, _ = self.keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self.writer.execute("ROLLBACK")
            change = defaults.CHECKPOINT_FRAMES / max(frames, 1)
            self._every = max(1.0, self._every * min(4.0, max(0.25, change)))
            self._since = 0

    def step(self) -> int:
        """One transaction: settle the last batch, claim the next; returns how many jobs were settled."""
        self.begin()
        settled = self.settle()
        self.claim()
        self.commit()
        return settled

    def drain(self) -> int:
        """Claim and settle until nothing is left."""
        self.step()
        done = 0
        while self.held:
            done += self.step()
        return done

    def settle(self) -> int:
        """Store the success of what is held."""
        held, self.held = self.held, []
        if not held:
            return 0
        now = micros()
        times = [(lease, self._begun, now) for lease in held]
        run = self.run
        stored = run(settle.SUCCEEDED_HISTORY, {"times": encode(times), "worker": "floor"}).rowcount
        changed = run(settle.SUCCEED, {"now": now, "leases": encode(held)}).rowcount
        assert stored == changed == len(held), (stored, changed, len(held))
        return changed

    def claim(self) -> bytes:
        """Take a batch; returns the arguments, joined."""
        now = self._begun = micros()
        run = self.run
        rows, blob = run(claim.PICK, {"queue": QUEUE, "tasks": TASKS, "most": BATCH}).fetchall()[0]
        found = ROWS.decode(rows)
        if not found:
            return b""
        lease = run(sequences.BURN, {"name": "lease", "count": len(found)}).fetchall()[0][0]
        ids = encode([row[0] for row in found])
        run(claim.TAKE, {"lease": lease, "epoch": EPOCH, "ids": ids, "now": now, "cap": defaults.CRASH_CAP})
        self.held = list(range(lease, lease + len(found)))
        return bytes(blob)

    def insert_many(self, ids: Sequence[int], pieces: Sequence[bytes]) -> None:
        """One transaction with the set-based statements."""
        now = micros()
        places, blob = insert.placed(list(zip(ids, pieces, strict=True)))
        text = places.decode()
        self.begin()
        when = {"due_at": now, "now": now, "expires_at": None}
        self.run(insert.JOBS, {"queue": QUEUE, "task": "noop", "state": 3, "priority": 0, "placed": text, **when})
        self.run(insert.PAYLOADS, {"codec": "json", "blob": blob, "extra": None, "version": 1, "placed": text})
        self.commit()

    def insert_one(self, number: int) -> None:
        """One transaction with two INSERTs."""
        now = micros()
        self.begin()
        self.writer.execute(insert.ONE_JOB, (number, QUEUE, "noop", 3, 0, now, now, None))
        self.writer.execute(insert.ONE_PAYLOAD, (number, "json", ENCODED, None, 1))
        self.commit()


def drain(path: str, durability: str) -> Role:
    """Seconds to drain what is ready."""
    bare = Bare(path, durability)
    yield
    begun = time.perf_counter()
    done = bare.drain()
    return {"seconds": time.perf_counter() - begun, "jobs": done}


def bulk(path: str, durability: str, jobs: int, chunk: int, *, encoding: bool) -> Role:
    """Seconds to store *jobs* in chunks, from encoded arguments or encoding them on the way."""
    bare = Bare(path, durability)
    numbers = iter(range(IDS_FROM, IDS_FROM + jobs))
    fields = msgspec.json.encode
    yield
    begun = time.perf_counter()
    while ids := list(islice(numbers, chunk)):
        pieces = [fields({"to": TO, "subject": SUBJECT}) for _ in ids] if encoding else [ENCODED] * len(ids)
        bare.insert_many(ids, pieces)
    return {"seconds": time.perf_counter() - begun}


def single(path: str, durability: str, jobs: int) -> Role:
    """Seconds to store *jobs*, one transaction each."""
    bare = Bare(path, durability)
    yield
    begun = time.perf_counter()
    for number in range(IDS_FROM, IDS_FROM + jobs):
        bare.insert_one(number)
    return {"seconds": time.perf_counter() - begun}


def one_table(path: str, durability: str, jobs: int) -> Role:
    """The same with one INSERT into one table without further indexes."""
    bare = Bare(path, durability)
    bare.writer.execute("CREATE TABLE one (id INTEGER PRIMARY KEY, queue TEXT, task TEXT, due_at INTEGER, data BLOB)")
    yield
    begun = time.perf_counter()
    for _ in range(jobs):
        bare.begin()
        bare.writer.execute(
            "INSERT INTO one (queue, task, due_at, data) VALUES (?, ?, ?, ?)", (QUEUE, "noop", micros(), ENCODED)
        )
        bare.commit()
    return {"seconds": time.perf_counter() - begun}


def produce(path: str, durability: str, seconds: float, place: int) -> Role:
    """Store jobs one by one for a while on SQLite's busy handler; milliseconds each took."""
    bare = Bare(path, durability)
    number = IDS_FROM * (place + 1)
    taken = []
    yield
    until = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        bare.insert_one(number)
        number += 1
        taken.append((time.perf_counter() - begun) * 1e3)
    return taken


def work(path: str, durability: str, seconds: float) -> Role:
    """Drain for a while, 5 ms of sleep when nothing is ready; how many jobs."""
    bare = Bare(path, durability)
    done = 0
    yield
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        done += bare.step()
        if not bare.held:
            time.sleep(0.005)
    return done


def listen(path: str, durability: str, fifo: str, jobs: int) -> Role:
    """Wait on a FIFO, claim, decode, note how long ago each job was sent; settle afterwards."""
    bare = Bare(path, durability)
    waited: list[int] = []
    descriptor = os.open(fifo, os.O_RDWR)
    yield
    while len(waited) < jobs:
        os.read(descriptor, 64)
        bare.begin()
        data = bare.claim()
        bare.commit()
        if data:
            waited.append(time.monotonic_ns() - int(msgspec.json.decode(data)["sent"]))
            bare.begin()
            bare.settle()
            bare.commit()
    return waited


def send(bare: Bare, descriptor: int, number: int) -> None:
    """Store one job that carries the present moment, then ring."""
    now = micros()
    data = msgspec.json.encode({"sent": time.monotonic_ns()})
    bare.begin()
    bare.writer.execute(insert.ONE_JOB, (number, QUEUE, "noop", 3, 0, now, now, None))
    bare.writer.execute(insert.ONE_PAYLOAD, (number, "json", data, None, 1))
    bare.commit()
    os.write(descriptor, b"r")
