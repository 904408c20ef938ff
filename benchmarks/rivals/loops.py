"""litequeue and honker's batch claim: bare loops, without the features of a worker."""

from __future__ import annotations

import importlib
import json
import time

from benchmarks.app import SUBJECT, TO
from benchmarks.child import Role

DATA = {"to": TO, "subject": SUBJECT}


def litequeue(path: str, jobs: int) -> Role:
    """Seconds to pop, decode and finish *jobs* messages; litequeue works one by one, at NORMAL."""
    queue = importlib.import_module("litequeue").LiteQueue(path)
    with queue.transaction():
        for _ in range(jobs):
            queue.put(json.dumps(DATA))
    yield
    begun = time.perf_counter()
    done = 0
    while (message := queue.pop()) is not None:
        json.loads(message.data)
        queue.done(message.message_id)
        done += 1
    assert done == jobs
    return {"seconds": time.perf_counter() - begun}


def honker(path: str, jobs: int, batch: int, together: int) -> Role:
    """Seconds to claim in batches, decode and acknowledge *jobs*, each or a batch *together*; it works at NORMAL."""
    queue = (database := importlib.import_module("honker").open(path)).queue("bench")
    with database.transaction() as transaction:
        for _ in range(jobs):
            queue.enqueue(DATA, tx=transaction)
    yield
    begun = time.perf_counter()
    done = 0
    while found := queue.claim_batch("bench", batch):
        for job in found:
            _ = job.payload
            done += 0 if together else job.ack()
        if together:
            done += queue.ack_batch([job.id for job in found], "bench")
    assert done == jobs, (done, jobs)
    return {"seconds": time.perf_counter() - begun}
