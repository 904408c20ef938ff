"""Durable background jobs for Python in one SQLite file."""

from __future__ import annotations

from treadle.app import Treadle
from treadle.clock import HeldClock
from treadle.errors import TreadleError
from treadle.handles import Arguments, Job
from treadle.leased import LeasedJob
from treadle.model.job import (
    Attempt,
    AttemptOutcome,
    JobFilter,
    JobRecord,
    JobState,
    LogRecord,
    NewJob,
    Page,
    Pause,
    Usage,
    WorkerRecord,
)
from treadle.model.outcome import Abort, RetryAfter, Snooze
from treadle.model.parameters import injected
from treadle.model.retention import Keep, Retention
from treadle.model.retry import Backoff, Retry
from treadle.tasks import Task
from treadle.worker.context import JobContext, current_job
from treadle.worker.events import Event
from treadle.worker.extensions import Call
from treadle.worker.options import WorkerOptions
from treadle.worker.worker import Worker

__all__ = [
    "Abort",
    "Arguments",
    "Attempt",
    "AttemptOutcome",
    "Backoff",
    "Call",
    "Event",
    "HeldClock",
    "Job",
    "JobContext",
    "JobFilter",
    "JobRecord",
    "JobState",
    "Keep",
    "LeasedJob",
    "LogRecord",
    "NewJob",
    "Page",
    "Pause",
    "Retention",
    "Retry",
    "RetryAfter",
    "Snooze",
    "Task",
    "Treadle",
    "TreadleError",
    "Usage",
    "Worker",
    "WorkerOptions",
    "WorkerRecord",
    "current_job",
    "injected",
]
__version__ = "0.1.0"
