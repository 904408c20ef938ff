"""Claiming by hand, for programs that bring their own loop: leased jobs, settled one by one.

The registration is the same as a worker's: a locked slot, a sign of life, a roll. So a program that dies gives its
jobs to others within a second, and what it says too late changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

import msgspec

from treadle import defaults
from treadle.clock import Clock
from treadle.errors import ConfigurationError, PayloadError, StoreLost, TreadleError
from treadle.model.codec import CodecRegistry
from treadle.model.definition import TaskDefinition
from treadle.model.job import Claimed, LogLine
from treadle.model.outcome import Held
from treadle.model.retry import Retry
from treadle.model.settle import Transition
from treadle.model.signature import Arguments, Signature
from treadle.store.ops import claim, logs, meta, notes, settle, workers
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.worker.completion import AttemptCompletion
from treadle.worker.context import JobContext
from treadle.worker.judging import judge
from treadle.worker.options import WorkerOptions
from treadle.worker.presence import Abilities, Presence
from treadle.worker.registry import Registry
from treadle.worker.runner import Attempt
from treadle.worker.transacting import Completion
from treadle.worker.upkeep import Upkeep

MOST: Final = 1000
log = logging.getLogger("treadle.worker")


class Claims:
    """The registration under which a program claims by hand; threads may share it. It is the desk of its jobs.

    Args:
        store: where jobs are.
        registry: the tasks the program knows.
        codecs: the codecs stored arguments may name.
    """

    def __init__(self, store: Store, registry: Registry, codecs: CodecRegistry) -> None:
        self._store = store
        self._registry = registry
        self._codecs = codecs
        self._failure: TreadleError | None = None
        self._lock = threading.Lock()
        self._attempts: dict[int, Attempt] = {}
        self._tasks = frozenset(registry.names())
        self._store_id = store.read(meta.store_id)
        abilities = Abilities(name=None, queues=(), tasks=self._known(), concurrency=MOST)
        self._presence = Presence.enter(store, abilities)
        self._upkeep = Upkeep(
            store, self._presence, self._known, WorkerOptions(), self._store_id, store.clock, self._gone, self._fail
        )
        self._upkeep.start()

    @property
    def epoch(self) -> int:
        """The number of this registration, which its jobs carry."""
        return self._presence.epoch

    @property
    def has_expired(self) -> bool:
        """True when others took this program for dead, so it may register anew."""
        return self._failure is not None and self._store.engine.leases_expire

    def request(
        self, most: int, tasks: Sequence[str] | None, queues: Sequence[str] | None
    ) -> Callable[[Session], claim.Claim]:
        """The operation that claims up to *most* jobs.

        Raises:
            TreadleError: this registration is over; the message says why.
        """
        self._check()
        if not 1 <= most <= MOST:
            raise ConfigurationError(f"Claim 1 to {MOST} jobs at once, not {most!r}.")
        names = self._registry.names() if tasks is None else tuple(tasks)
        caps = {name: self._definition(name).crash_cap for name in names}
        request = claim.ClaimRequest(
            None if queues is None else tuple(queues), msgspec.json.encode(names).decode(), most, self._presence.epoch,
            caps=msgspec.json.encode(caps).decode(), slot=self._presence.slot,
        )  # fmt: skip
        return partial(self._claim, request=request, names=names)

    def leased(self, jobs: Sequence[Claimed]) -> list[tuple[Attempt, Arguments]]:
        """Claimed jobs with their arguments; those that cannot be read are held at once."""
        found = []
        for claimed in jobs:
            if claimed.data is None:
                data = self._store.read(partial(claim.arguments, job_id=claimed.id))
                claimed = claimed._replace(data=data)  # noqa: PLW2901 - the same job, complete
            definition = self._definition(claimed.task)
            attempt = Attempt(claimed, definition, JobContext(claimed, definition.codec, self))
            with self._lock:
                self._presence.roll.enter(claimed.lease)
                self._attempts[claimed.lease] = attempt
            try:
                found.append((attempt, self._arguments(attempt)))
            except (PayloadError, ConfigurationError) as error:
                held = judge(attempt, Held(f"undecodable: {error}"), claimed.claimed_at, claimed.claimed_at)
                self._store.run(self.settling(held))
        return found

    def settled(self, lease: int) -> None:
        """An attempt was settled by its own transaction."""
        with self._lock:
            self._presence.roll.leave(lease)
            self._attempts.pop(lease, None)

    def settling(self, transition: Transition) -> Callable[[Session], Sequence[int]]:
        """The operation that stores what an attempt came to, and gives the ids of the jobs that follow.

        Raises, when it runs:
            LeaseLost: the job belongs to another attempt; nothing was changed.
        """
        self._check()
        return partial(self._settle, transition=transition)

    def extending(self, context: JobContext) -> Callable[[Session], None]:
        """The operation that makes sure an attempt still owns its job, and learns whether it should stop."""
        self._check()

        def look(session: Session) -> None:
            live = settle.live(session, [context.lease])
            if context.lease not in live:
                raise notes.lost(context.lease)
            if live[context.lease] is not None:
                context.cancel(live[context.lease])

        return look

    def immediates(self, job_id: int) -> Callable[[Session], dict[str, int]]:
        """The read of the immediate retries granted to a job."""
        return partial(settle.immediates, job_id=job_id)

    def close(self) -> None:
        """Deregister; leases that were not settled are rescued at once."""
        self._upkeep.stop()
        if self._failure is None:
            self._presence.leave()
        else:
            self._presence.abandon()

    # The desk of its jobs -----------------------------------------------------------------------

    @property
    def store_id(self) -> str:
        """Stable name of the database, for idempotency keys."""
        return self._store_id

    @property
    def mark(self) -> str:
        """What the environments of programs carry that these jobs start."""
        return self._presence.mark

    @property
    def clock(self) -> Clock:
        """Where times come from."""
        return self._store.clock

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Store the progress soon."""
        self._told(self._store.submit(partial(notes.progress, lease=lease, fraction=fraction, message=message)))

    def note_line(self, lease: int, line: LogLine) -> None:
        """Store a line soon."""
        self._told(self._store.submit(partial(logs.write, lines=[(lease, [line])])))

    def write_checkpoint(self, lease: int, codec: str, data: bytes) -> Future[None]:
        """Store a checkpoint."""
        return self._store.submit(partial(notes.checkpoint, lease=lease, codec=codec, data=data))

    def read_checkpoint(self, job_id: int) -> Future[tuple[str, bytes] | None]:
        """Read a job's last checkpoint."""
        return self._store.submit_read(partial(notes.last_checkpoint, job_id=job_id))

    def completion(self, context: JobContext) -> Completion:
        """What settles an attempt by its own transaction."""
        self._check()
        with self._lock:
            attempt = self._attempts.get(context.lease)
        if attempt is None:
            raise notes.lost(context.lease)
        return AttemptCompletion(self._store, self._presence.name, attempt, attempt.claimed.claimed_at)

    def stop_soon(self, reason: str) -> None:
        """There is no worker to stop."""
        raise ConfigurationError(f"stop_worker() was called for a job that was claimed by hand ({reason}).")

    def _claim(self, session: Session, request: claim.ClaimRequest, names: Sequence[str]) -> claim.Claim:
        if not self._tasks.issuperset(names):
            # Before the claim: a task no registered worker knows would be held.
            self._tasks = self._tasks.union(names)
            workers.learn(session, self._presence.slot, self._presence.epoch, self._known())
        return claim.claim(session, request)

    def _known(self) -> tuple[str, ...]:
        """The names of its tasks, and of those it was asked for."""
        return tuple(sorted(self._tasks))

    def _settle(self, session: Session, transition: Transition) -> Sequence[int]:
        applied = settle.apply(session, [transition], self._presence.name)
        if applied.lost:
            raise notes.lost(transition.lease)
        with self._lock:
            self._presence.roll.leave(transition.lease)
            self._attempts.pop(transition.lease, None)
        return applied.followed

    def _arguments(self, attempt: Attempt) -> Arguments:
        claimed = attempt.claimed
        if claimed.data is None:
            raise PayloadError("the arguments are missing from the database")
        codec = self._codecs.get(claimed.codec)
        if self._registry.find(claimed.task) is not None:
            return attempt.definition.decode(codec, claimed.data, claimed.version)
        found = codec.decode(claimed.data, Any)
        return ([], found) if isinstance(found, dict) else ([found], {})

    def _definition(self, task: str) -> TaskDefinition:
        """The task, or what stands for one this program does not know."""
        return self._registry.find(task) or TaskDefinition(
            name=task, aliases=(), function=_unknown, signature=Signature.of(_unknown), codec=self._codecs.get("json"),
            retry=Retry(), timeout=None, result_cap=defaults.RESULT_CAP, is_async=False,
        )  # fmt: skip

    def _told(self, future: Future[None]) -> None:
        future.add_done_callback(
            lambda done: log.debug("A note came too late: %s", done.exception()) if done.exception() else None
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _gone(self) -> None:
        if self._failure is None:
            words = "is not registered any more: others run its jobs, and nothing it writes counts."
            self._fail(StoreLost(f"{self._presence.name} {words}"))

    def _fail(self, error: TreadleError) -> None:
        self._failure = error
        log.critical("Claims by hand end: %s", error)


def _unknown() -> None:
    """Stands for the function of a task this program does not know."""
