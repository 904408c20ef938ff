"""What handlers log and print, kept with their jobs: a logging handler, and a stand-in for standard output.

Both look at the job that runs in the context of the call; what is said outside a job passes by untouched.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from treadle.worker.context import RUNNING


class JobLogHandler(logging.Handler):
    """Keeps log records with the job in whose context they are made."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        job = RUNNING.get(None)
        if job is None:
            return
        try:
            job.keep_line(record.levelno, record.name, self.format(record))
        except Exception:
            self.handleError(record)


class JobOutput(io.TextIOBase):
    """Passes text on to a stream, and keeps whole lines with the job in whose context they are written.

    Args:
        stream: where text goes as before.
        level: of the kept lines.
        source: ``stdout`` or ``stderr``.
    """

    def __init__(self, stream: TextIO, level: int, source: str) -> None:
        self._stream = stream
        self._level = level
        self._source = source

    def write(self, text: str) -> int:
        """Write *text*."""
        job = RUNNING.get(None)
        if job is not None:
            job.keep_text(self._level, self._source, text)
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def capture_logging(level: int = logging.NOTSET) -> Iterator[None]:
    """Keep what handlers log with their jobs, from *level* on, while the context is open."""
    handler = JobLogHandler(level)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def capture_output() -> Iterator[None]:
    """Keep what handlers print with their jobs while the context is open; it is printed as before, too."""
    before = sys.stdout, sys.stderr
    sys.stdout = JobOutput(before[0], logging.INFO, "stdout")
    sys.stderr = JobOutput(before[1], logging.WARNING, "stderr")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
