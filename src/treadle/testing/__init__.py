"""Tools for testing programs that use Treadle, on the real engine. See ``docs/testing.md``."""

from __future__ import annotations

from treadle.clock import HeldClock
from treadle.testing.asserting import Like, all_enqueued, assert_enqueued, refute_enqueued
from treadle.testing.crashing import CrashRun, assert_idempotent, assert_survives_crashes
from treadle.testing.inline import aperform, inline, perform
from treadle.testing.private import private_store
from treadle.testing.ran import RanJob
from treadle.testing.running import adrain, arun_pending, drain, run_pending
from treadle.testing.wanted import EnqueuedJob

__all__ = [
    "CrashRun",
    "EnqueuedJob",
    "HeldClock",
    "Like",
    "RanJob",
    "adrain",
    "all_enqueued",
    "aperform",
    "arun_pending",
    "assert_enqueued",
    "assert_idempotent",
    "assert_survives_crashes",
    "drain",
    "inline",
    "perform",
    "private_store",
    "refute_enqueued",
    "run_pending",
]
