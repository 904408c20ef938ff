"""What becomes of an error that nobody expected in a part of a worker: it is told, and it ends the worker."""

from __future__ import annotations

import logging

from treadle.errors import TreadleError

log = logging.getLogger("treadle.worker")


def broken(part: str, error: BaseException) -> TreadleError:
    """Log *error* with its traceback and wrap it as the reason why the worker ends.

    A worker that went on without the part would hold its jobs and never end them.
    """
    log.critical("%s broke, so the worker ends.", part, exc_info=error)
    wrapped = TreadleError(f"{part} broke: {error!r}. Its jobs go back to other workers; please report this.")
    wrapped.__cause__ = error
    return wrapped
