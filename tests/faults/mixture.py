"""Everything at once: ``python3 dev.py chaos --scenario mixture --seconds 300 --seed 7``.

Workers run by the real command, on threads, on the loop and in processes of their own, while jobs fail, snooze, expire,
die with their process, and enqueue others. Meanwhile an operator cancels, retries, moves, deletes, reschedules, pauses,
drains and evicts, one job and many, and workers are killed. Then the history is judged.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.helpers import Process
from faults.shop import Shop
from treadle import Job, JobFilter, JobState, TreadleError

KINDS = ("ok", "ok", "ok", "deaf", "fail", "always", "snooze", "again", "abort", "follow", "die")
TASKS = ("work_sync", "work_async", "work_process")
QUEUES = ("default", "default", "default", "other")
WORKERS, LOST = 3, 70
PAUSE = 5.0
"""Seconds a queue is paused; longer than the checker lets jobs begin that were claimed before."""


@dataclass
class Mixture:
    """Keeps workers running, enqueues, and does to both what people do.

    Args:
        shop: where.
        luck: decides what comes next.
    """

    shop: Shop
    luck: random.Random
    fleet: list[Process] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    jobs: list[Job[Any]] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    paused_until: float = 0.0

    def run(self, seconds: float) -> None:
        """Do something every few milliseconds."""
        for _ in range(WORKERS):
            self.hire()
        recycled = self.shop.worker("--processes", "1", "--max-jobs", "25", "--concurrency", "4", "--name", "recycled")
        try:
            self._storm(seconds)
            for worker in self.fleet:
                self.shop.gone(worker)
                worker.kill()
            recycled.popen.terminate()
            if recycled.finish():
                self.problems.append(f"the supervisor ended with {recycled.popen.returncode}")
            self.resume()
            if self.shop.drain():
                self.problems.append("the last worker did not end well")
        finally:
            for worker in (*self.fleet, recycled):
                worker.close()

    def _storm(self, seconds: float) -> None:
        deeds: list[Callable[[], None]] = [
            *[self.produce] * 30, *[self.waste] * 3, *[self.expire] * 4, *[self.cancel] * 8, *[self.retry] * 8,
            *[self.bulk] * 4, *[self.shuffle] * 6, *[self.pause] * 2, *[self.kill] * 3, self.evict, self.drain,
        ]  # fmt: skip
        # Dealt like cards: by luck alone a rare deed might not come up in a short run.
        dealt: list[Callable[[], None]] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            dealt = dealt or self.luck.sample(deeds, len(deeds))
            deed = dealt.pop()
            try:
                deed()
            except TreadleError as error:
                self.did[f"{deed.__name__} refused: {type(error).__name__}"] += 1
            else:
                self.did[deed.__name__] += 1
            if self.paused_until and time.monotonic() > self.paused_until:
                self.resume()
            self.tend()
            time.sleep(self.luck.uniform(0.0, 0.03))

    # Workers ---------------------------------------------------------------------------------------------------------

    def hire(self) -> None:
        """Start one more worker."""
        self.fleet.append(self.shop.worker("--concurrency", "6", "--grace", "2"))

    def tend(self) -> None:
        """Replace those that have ended; one that nobody told to end is a problem."""
        for worker in [one for one in self.fleet if one.popen.poll() is not None]:
            wanted = self.ends.get(worker.pid)
            if worker.popen.returncode != wanted:
                self.problems.append(f"worker {worker.pid} ended with {worker.popen.returncode}, not {wanted}")
            self.fleet.remove(worker)
            worker.close()
            self.hire()

    def kill(self) -> None:
        """SIGKILL."""
        worker = self.luck.choice(self.fleet)
        if worker.pid not in self.ends:
            self.ends[worker.pid] = -9
            self.shop.gone(worker)
            worker.kill()

    def evict(self) -> None:
        """Take a living worker's jobs; it ends as soon as it notices."""
        for worker in self._one_at_work():
            self.ends[worker.pid] = LOST
            self.shop.ledger.write("evict", victim=worker.pid)
            self.shop.app.evict(f"w{worker.pid}", reason="for a change")
            self.shop.ledger.write("evicted", victim=worker.pid)

    def drain(self) -> None:
        """Let a worker end in good order."""
        for worker in self._one_at_work():
            self.shop.app.drain(f"w{worker.pid}")
            self.ends[worker.pid] = 0

    def _one_at_work(self) -> list[Process]:
        """One of the registered workers whose end nobody has decided yet; none when there is none."""
        registered = {one.pid for one in self.shop.app.workers()}
        free = [worker for worker in self.fleet if worker.pid in registered and worker.pid not in self.ends]
        return self.luck.sample(free, min(1, len(free)))

    # Jobs ------------------------------------------------------------------------------------------------------------

    def produce(self) -> None:
        """Store a job of any kind."""
        options: dict[str, Any] = {"queue": self.luck.choice(QUEUES), "priority": self.luck.randint(-5, 5)}
        if self.luck.random() < 0.2:
            options["delay"] = self.luck.uniform(0, 1)
        self._enqueue(self.luck.choice(TASKS), **options)

    def _enqueue(self, task: str, **options: Any) -> None:
        millis = self.luck.randint(0, 200)
        self.jobs.append(self.shop.enqueue(task, kind=self.luck.choice(KINDS), millis=millis, **options))

    def expire(self) -> None:
        """Store a job that may not be started for long."""
        seconds = self.luck.uniform(0.01, 1)
        self._enqueue(self.luck.choice(TASKS), expires=seconds, priority=-10)

    def waste(self) -> None:
        """Store a job that may be deleted, and delete them all now and then."""
        self.shop.enqueue("waste", delay=self.luck.uniform(0, 0.5), may_vanish=True)
        if self.luck.random() < 0.2:
            self.shop.app.delete(JobFilter(task="waste", states=(JobState.SCHEDULED, JobState.SUCCEEDED)))

    def cancel(self) -> None:
        """Call one job off; where it did not run it never will."""
        job = self._recent()
        job.cancel("not wanted")
        if job.record().state is JobState.CANCELLED:
            self.shop.ledger.write("cancelled", job=job.id)

    def retry(self) -> None:
        """Run a job again that has ended badly."""
        job = self._recent()
        if job.record().state in (JobState.FAILED, JobState.CANCELLED, JobState.HELD):
            self.shop.ledger.write("retry", job=job.id)
            job.retry()
            self.shop.ledger.write("retried", job=job.id)

    def bulk(self) -> None:
        """The same with filters."""
        if self.luck.random() < 0.5:
            self.shop.app.cancel(JobFilter(queue="other", task=self.luck.choice(TASKS), states=(JobState.SCHEDULED,)))
            return
        which = JobFilter(error="ValueError", states=(JobState.FAILED,))
        ids = tuple(job.id for job in self.shop.app.find(which, size=500).jobs)
        for job in ids:  # written before, and no others are retried, so that nobody counts one too few
            self.shop.ledger.write("retry", job=job)
        if ids:
            self.shop.app.retry(replace(which, ids=ids))

    def shuffle(self) -> None:
        """Another time, queue or rank."""
        job = self._recent()
        app, where = self.shop.app, self.luck.choice(QUEUES)
        deeds: tuple[Callable[[], object], ...] = (
            lambda: app.reschedule(job, delay=self.luck.uniform(0, 0.5)), lambda: app.set_priority(job, 7),
        )  # fmt: skip
        if not self.paused_until:  # a job that comes into a paused queue may have begun before
            deeds += (lambda: app.move(job, where),)
        self.luck.choice(deeds)()

    def pause(self) -> None:
        """Pause a queue for a while."""
        if not self.paused_until:
            self.shop.app.pause(queue="other", reason="for a while")
            self.shop.ledger.write("paused", queue="other")
            self.paused_until = time.monotonic() + PAUSE

    def resume(self) -> None:
        """Let it go on."""
        self.shop.ledger.write("resumed_queue", queue="other")
        self.shop.app.resume(queue="other")
        self.paused_until = 0.0

    def _recent(self) -> Job[Any]:
        if not self.jobs:
            self.produce()
        return self.luck.choice(self.jobs[-60:])


def run(folder: Path, seed: int, seconds: float) -> list[str]:
    """Play in *folder*; everything that is wrong."""
    shop = Shop(folder)
    with closing(shop.app):
        mixture = Mixture(shop, random.Random(seed))
        mixture.run(seconds)
        states = shop.app.counts()
    found = mixture.problems + shop.judge().splitlines()[:-1]
    print(", ".join(f"{name} {count}" for name, count in sorted(mixture.did.items())))
    print("jobs " + ", ".join(f"{queue} {state} {n}" for queue, one in states.items() for state, n in one.items()))
    for text in found[:50]:
        print(f"ANOMALY {text}")
    print(f"anomalies {len(found)}", flush=True)
    return found
