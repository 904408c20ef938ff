"""Where the jobs of a worker write: progress and lines soon, checkpoints at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from treadle.clock import Clock
from treadle.model.job import LogLine
from treadle.store.ops import notes
from treadle.store.store import Store
from treadle.worker.completion import AttemptCompletion
from treadle.worker.context import JobContext
from treadle.worker.runner import Attempt
from treadle.worker.settler import Settler
from treadle.worker.transacting import Completion


class WorkerDesk:
    """The desk of one worker's jobs; any thread may use it.

    Args:
        store: where checkpoints go.
        store_id: stable name of the database.
        mark: what the environments of programs carry that these jobs start.
        settler: keeps progress and lines until they are written.
        stop: lets the worker drain and end.
    """

    def __init__(
        self, store: Store, store_id: str, mark: str, settler: Settler, stop: Callable[[str], None]
    ) -> None:
        self._store = store
        self._store_id = store_id
        self.mark = mark
        self._settler = settler
        self._stop = stop
        self.find: Callable[[int], tuple[Attempt, int]] = _nobody
        """Finds an attempt that runs, and when it began; set once there is a crew."""

    @property
    def store_id(self) -> str:
        """Stable name of the database, for idempotency keys."""
        return self._store_id

    @property
    def clock(self) -> Clock:
        """Where times come from."""
        return self._store.clock

    def note_progress(self, lease: int, fraction: float, message: str) -> None:
        """Remember a job's last progress."""
        self._settler.note(lease, fraction, message)

    def note_line(self, lease: int, line: LogLine) -> None:
        """Keep a line of a job."""
        self._settler.note_line(lease, line)

    def write_checkpoint(self, lease: int, codec: str, data: bytes) -> Future[None]:
        """Store a job's checkpoint."""
        return self._store.submit(partial(notes.checkpoint, lease=lease, codec=codec, data=data))

    def read_checkpoint(self, job_id: int) -> Future[tuple[str, bytes] | None]:
        """Read a job's last checkpoint."""
        return self._store.submit_read(partial(notes.last_checkpoint, job_id=job_id))

    def completion(self, context: JobContext) -> Completion:
        """What settles a running attempt from inside its handler."""
        attempt, started_at = self.find(context.lease)
        settler = self._settler
        return AttemptCompletion(
            self._store, settler.worker, attempt, started_at, settler.take_lines, settler.note_line
        )

    def stop_soon(self, reason: str) -> None:
        """Let the worker drain and end."""
        self._stop(reason)


def _nobody(lease: int) -> tuple[Attempt, int]:
    raise notes.lost(lease)
