"""A store of its own for a test: nothing reaches the real one, nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from treadle.app import Treadle
from treadle.clock import Clock


@contextmanager
def private_store(app: Treadle, *, clock: Clock | None = None) -> Iterator[Treadle]:
    """Let *app* keep its jobs in a fresh ``memory://`` store while the context is open; then the real one is back.

    The store that the app had stays as it is: not opened, not touched. Contexts may be nested. Child processes
    (``isolation="process"``) do not see the private store.

    Args:
        app: an app, such as a module's.
        clock: where its times come from meanwhile, such as a :class:`HeldClock`; by default the app's own.

    Example:
        >>> app = Treadle("sqlite:///jobs.db")
        >>> with private_store(app):
        ...     app.store.path.name
        'memory.db'
    """
    with app.elsewhere("memory://", clock):
        yield app
