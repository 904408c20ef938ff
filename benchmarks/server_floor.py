"""The least a pickup can cost on PostgreSQL: two statements, two synced commits, two processes, and no job queue."""

from __future__ import annotations

import time

import psycopg

from benchmarks.child import Child, Role
from benchmarks.pickup import pauses

TABLE = """
CREATE TABLE floor (id bigserial PRIMARY KEY, taken bool NOT NULL DEFAULT false, sent bigint NOT NULL);
CREATE INDEX ON floor (id) WHERE NOT taken
"""
SEND = "WITH sent AS (INSERT INTO floor (sent) VALUES (%s)) SELECT pg_notify('floor', '')"
TAKE = """
UPDATE floor SET taken = true WHERE id IN (
    SELECT id FROM floor WHERE NOT taken ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED) RETURNING sent
"""


def run(url: str, jobs: int) -> list[float]:
    """Send *jobs* rows at random intervals; milliseconds until another process had taken each."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
        receiver = Child("benchmarks.server_floor:listen", url=url, jobs=jobs).ready().go()
        for _ in pauses(jobs):
            connection.execute(SEND, (time.monotonic_ns(),))
        return [one / 1e6 for one in receiver.result()]


def listen(url: str, jobs: int) -> Role:
    """Take what is notified; nanoseconds from each row's sending."""
    waited: list[int] = []
    with psycopg.connect(url, autocommit=True) as bell, psycopg.connect(url, autocommit=True) as connection:
        bell.execute("LISTEN floor")
        yield
        while len(waited) < jobs:
            for _ in bell.notifies(timeout=1, stop_after=1):
                pass
            taken = connection.execute(TAKE).fetchall()
            now = time.monotonic_ns()
            waited += [now - sent for (sent,) in taken]
    return waited
