"""What a job is: its states, what is stored of it, and the filters that find it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

from treadle import defaults


class JobState(enum.StrEnum):
    """The nine states of a job; the database stores :attr:`code`, the views show the word."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    READY = "ready"
    BLOCKED = "blocked"
    RUNNING = "running"
    HELD = "held"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def code(self) -> int:
        """The small integer the database stores."""
        return CODES[self]

    @property
    def ended(self) -> bool:
        """True when no attempt will follow unless a person asks for one."""
        return self in ENDED


CODES: Final = {state: number for number, state in enumerate(JobState, start=1)}
STATES: Final = {number: state for state, number in CODES.items()}
ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class AttemptOutcome(enum.StrEnum):
    """How an attempt ended; stored as :attr:`code`."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SNOOZED = "snoozed"
    RELEASED = "released"
    HELD = "held"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    CRASHED = "crashed"

    @property
    def code(self) -> int:
        """The small integer the database stores."""
        return OUTCOME_CODES[self]


OUTCOME_CODES: Final = {outcome: number for number, outcome in enumerate(AttemptOutcome, start=1)}
OUTCOMES: Final = {number: outcome for outcome, number in OUTCOME_CODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything about a job but its arguments; one object is shared by all jobs enqueued alike.

    Times are integer microseconds. *due_at* wins over *delay*; neither means now.
    """

    task: str
    codec: str = "json"
    queue: str = defaults.QUEUE
    priority: int = defaults.PRIORITY
    delay: int = 0
    due_at: int | None = None
    extra: str | None = None
    """JSON object of what only some jobs carry: retry override, meta; None for most."""
    tags: tuple[str, ...] = ()
    expires_in: int | None = None
    expires_at: int | None = None
    """No attempt starts after it; wins over *expires_in*, which counts from the enqueue."""
    version: int = 1
    """The version of the task's parameters that the arguments are stored under."""


class NewJob(NamedTuple):
    """A job to be stored: shared options and encoded arguments."""

    options: Options
    data: bytes


class Claimed(NamedTuple):
    """One attempt a worker owns; made straight from the row the claim returned.

    *lease* is the right to write; *claim_at* and the other times are microseconds.
    """

    id: int
    task: str
    attempt: int
    failures: int
    crashes: int
    priority: int
    due_at: int
    enqueued_at: int
    codec: str
    size: int | None
    extra: str | None
    version: int
    queue: str
    lease: int
    data: bytes | None
    claimed_at: int


class Usage(NamedTuple):
    """What an attempt in a process of its own used.

    Attributes:
        peak_rss: most memory in RAM, bytes; None where unknown.
        cpu: processor time, microseconds, its subprocesses included; None where unknown.
        exit_code: of the process when it ended with the attempt, -9 for signal 9; None when it lived on.
    """

    peak_rss: int | None
    cpu: int | None
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One ended attempt, as history keeps it."""

    job_id: int
    lease: int
    attempt: int
    worker: str
    outcome: AttemptOutcome
    started_at: datetime
    finished_at: datetime
    error_type: str | None = None
    message: str | None = None
    traceback: str | None = None
    seq: int = 0
    """Place in commit order; the cursor of ``app.stream()``."""
    task: str | None = None
    """Only where attempts of many jobs are read together."""
    usage: Usage | None = None


class LogLine(NamedTuple):
    """One line a running attempt logged or printed.

    Attributes:
        logged_at: microseconds since 1970 UTC.
        level: as in Python's ``logging``: 10 debug … 50 critical.
        source: the logger's name, ``stdout``, ``stderr``, or ``job`` for ``job.log()``.
        text: one line, or several of one record.
    """

    logged_at: int
    level: int
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A stored line, as ``app.logs()`` returns it; *seq* is commit order."""

    seq: int
    job_id: int
    lease: int
    logged_at: datetime
    level: int
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A queue or task nobody may start jobs of."""

    kind: Literal["queue", "task"]
    name: str
    paused_at: datetime
    paused_by: str
    reason: str
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The last progress a handler reported: *fraction* 0…1 and a few words."""

    fraction: float
    message: str
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A snapshot of one job, as ``app.get`` and ``app.find`` return it. Times are aware UTC datetimes."""

    id: int
    task: str
    queue: str
    state: JobState
    priority: int
    due_at: datetime
    enqueued_at: datetime
    attempt: int
    failures: int
    crashes: int
    lease: int | None
    started_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    codec: str | None = None
    arguments: bytes | None = None
    meta: dict[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    expires_at: datetime | None = None
    cancel_reason: str | None = None
    """Why its attempt was asked to stop; None when nobody asked. It stays on a job that succeeded all the same: that
    is why a cancel seems to have done nothing."""
    version: int = 1
    worker: str | None = None
    """Name of the worker that runs it; None while nobody does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to find; every field that is given must match.

    Example:
        >>> JobFilter(queue="mail", states=(JobState.FAILED,)).queue
        'mail'
    """

    ids: tuple[int, ...] = ()
    queue: str | None = None
    task: str | None = None
    states: tuple[JobState, ...] = ()
    tag: str | None = None
    error: str | None = None
    """Class of an error one of its attempts ended with, as the history shows it: ``ValueError``."""
    enqueued_after: datetime | None = None
    enqueued_before: datetime | None = None
    started_before: datetime | None = None
    """With ``states=(JobState.RUNNING,)``: what has been running since then or longer."""
    ended_after: datetime | None = None
    ended_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of jobs, newest first; pass *next* as ``before`` to get the following page."""

    jobs: tuple[JobRecord, ...]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One registered worker. *alive* is proved by its lock, not by its age."""

    slot: int
    epoch: int
    name: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int
    alive: bool
    stalled: bool
    running: int
    orders: str | None = None
    """``pause`` or ``drain`` when somebody asked for it."""
    ordered_by: str | None = None
