"""Durable background jobs for Python in one SQLite file."""

from __future__ import annotations

from treadle.app import Treadle
from treadle.clock import HeldClock
from treadle.errors import TreadleError
from treadle.model.job import Attempt, AttemptOutcome, JobFilter, JobRecord, JobState, NewJob, Page, WorkerRecord
from treadle.model.outcome import Abort, RetryAfter, Snooze
from treadle.model.retention import Keep, Retention
from treadle.model.retry import Backoff, Retry
from treadle.tasks import Job, Task
from treadle.worker.context import JobContext, current_job
from treadle.worker.worker import Worker, WorkerOptions

__all__ = [
    "Abort",
    "Attempt",
    "AttemptOutcome",
    "Backoff",
    "HeldClock",
    "Job",
    "JobContext",
    "JobFilter",
    "JobRecord",
    "JobState",
    "Keep",
    "NewJob",
    "Page",
    "Retention",
    "Retry",
    "RetryAfter",
    "Snooze",
    "Task",
    "Treadle",
    "TreadleError",
    "Worker",
    "WorkerOptions",
    "WorkerRecord",
    "current_job",
]
__version__ = "0.1.0"
