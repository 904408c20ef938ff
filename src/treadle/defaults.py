"""Every default of Treadle, in one table. ``docs/defaults.md`` shows the same rows; a test compares them."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

QUEUE: Final = "default"
PRIORITY: Final = 0
PRIORITY_RANGE: Final = (-100, 100)
CONCURRENCY: Final = 10
GRACE: Final = timedelta(seconds=25)

RETRIES: Final = 10
RETRY_BASE: Final = timedelta(seconds=10)
RETRY_FACTOR: Final = 2.0
RETRY_CAP: Final = timedelta(hours=1)
RETRY_JITTER: Final = 0.1
CRASH_CAP: Final = 3
CANCEL_GRACE: Final = timedelta(seconds=10)
EXIT_PATIENCE: Final = timedelta(seconds=5)

DURABILITY: Final = "full"
LOCK_TIMEOUT: Final = timedelta(seconds=30)
PAYLOAD_CAP: Final = 1_000_000
RESULT_CAP: Final = 1_000_000
ERROR_CAP: Final = 32_000
LOG_CAP: Final = 64_000
NESTING_CAP: Final = 200

MIN_FREE: Final = 32_000_000
CHUNK: Final = 1_000
CHECKPOINT_FRAMES: Final = 900
POLL: Final = timedelta(seconds=1)
BEAT: Final = timedelta(seconds=5)
STALLED_AFTER: Final = timedelta(seconds=60)
RESCUE_EVERY: Final = timedelta(milliseconds=250)

KEEP_SUCCEEDED: Final = timedelta(days=7)
KEEP_CANCELLED: Final = timedelta(days=30)
KEEP_FAILED: Final = timedelta(days=90)
PRUNE_EVERY: Final = timedelta(seconds=30)
PRUNE_SLICE: Final = 500

TRANSACTION_DEADLINE: Final = timedelta(seconds=2)
TRANSACTION_WARN: Final = timedelta(milliseconds=500)

SCHEMA: Final = "treadle"
CONNECTIONS: Final = 6
SERVER_BEAT: Final = timedelta(seconds=1)
SERVER_LEASE: Final = timedelta(seconds=15)
LOST_LOCK_LEASE: Final = timedelta(seconds=3)
