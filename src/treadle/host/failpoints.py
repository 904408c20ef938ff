"""Fail points: named places at every transaction boundary, where a test may raise, stall or kill.

Unarmed, a point is a call that tests one name for None. Armed, it is called after what is being stored:
``claim.before_commit``, ``insert.after_begin``, or ``insert.alone.before_begin`` for an operation that its caller's
own thread runs. A group that shares one transaction reaches the point of each kind of operation in it, in order.

The boundaries, in their order: ``before_begin``, ``after_begin``, ``before_commit``, ``after_commit`` (stored, no
bell has rung), ``before_told`` (others may write again), ``after_told``. In a caller's own transaction there are
``before_own`` and ``after_own``, around the statements.

Nothing here is for production; arming is a call, never a setting or a variable of the environment.

Example: kill this process at every store call of some work, one after another.

    >>> with recording() as points:
    ...     reach("before_commit", "insert")
    ...     reach("after_commit", "insert")
    >>> points
    ['insert.before_commit', 'insert.after_commit']
    >>> trap = arm(kill_self, at=len(points) + 1)  # in a child process, for each number from 1 on
    >>> disarm()
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

Action = Callable[[str], object]
"""What a trap does; it gets the point's name. What it raises is raised at the point."""
ALONE: Final = "alone."
EXIT_CODE: Final = 86


@dataclass(slots=True, kw_only=True)
class Trap:
    """What happens at which time a point is reached, and what came of it so far.

    Attributes:
        action: what happens.
        point: which points, as a shell pattern: ``claim.*``, ``*.before_commit``.
        at: at the how-manieth time, from 1.
        times: how often from then on; None means for ever.
        seen: how often a point that fits was reached.
        sprung: how often the action was run.
    """

    action: Action
    point: str = "*"
    at: int = 1
    times: int | None = 1
    seen: int = 0
    sprung: int = 0

    def meet(self, name: str) -> bool:
        """Count that *name* was reached; True when the action is due."""
        if not fnmatchcase(name, self.point):
            return False
        self.seen += 1
        due = self.seen >= self.at and (self.times is None or self.sprung < self.times)
        self.sprung += due
        return due


@dataclass(slots=True)
class _Plan:
    traps: list[Trap] = field(default_factory=list)
    records: list[list[str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, name: str) -> list[Trap]:
        with self.lock:
            for record in self.records:
                record.append(name)
            return [trap for trap in self.traps if trap.meet(name)]


_plan: _Plan | None = None


def reach(boundary: str, work: object, how: str = "") -> None:
    """Say that *boundary* of *work* is reached; does nothing unless armed.

    Args:
        boundary: such as ``before_commit``.
        work: an operation, a list of works that share a transaction, or a name.
        how: :data:`ALONE` when the caller's own thread does it.
    """
    plan = _plan
    if plan is None:
        return
    for name in _names(work):
        point = f"{name}.{how}{boundary}"
        for trap in plan.meet(point):
            trap.action(point)


def arm(action: Action, point: str = "*", *, at: int = 1, times: int | None = 1) -> Trap:
    """Set a trap beside those that are set already.

    Args:
        action: what happens: :func:`kill_self`, :func:`exit_self`, :class:`Stall`, :func:`raising`, or your own.
        point: which points, as a shell pattern.
        at: at the how-manieth time such a point is reached, from 1.
        times: how often from then on; None means for ever.
    """
    global _plan  # noqa: PLW0603 - the one switch
    trap = Trap(action=action, point=point, at=at, times=times)
    if _plan is None:
        _plan = _Plan()
    with _plan.lock:
        _plan.traps.append(trap)
    return trap


def disarm() -> None:
    """Forget every trap and recording; points do nothing again. Who stalls is not let go by this."""
    global _plan  # noqa: PLW0603
    _plan = None


@contextmanager
def recording() -> Iterator[list[str]]:
    """Gather the names of the points reached meanwhile, by any thread, in order."""
    global _plan  # noqa: PLW0603
    names: list[str] = []
    plan = _plan = _plan or _Plan()
    with plan.lock:
        plan.records.append(names)
    try:
        yield names
    finally:
        with plan.lock:
            plan.records = [record for record in plan.records if record is not names]
        if _plan is plan and not plan.records and not plan.traps:
            _plan = None


# What may happen at a point ------------------------------------------------------------------------------------


def raising(make: Callable[[], BaseException]) -> Action:
    """An action that raises a new error each time.

    Example:
        >>> trap = arm(raising(lambda: RuntimeError("broken")), "claim.before_commit")
        >>> disarm()
    """

    def act(_: str) -> None:
        raise make()

    return act


def exit_self(_: str) -> None:
    """End this process at once, with exit code 86 and no clean-up."""
    os._exit(EXIT_CODE)


def kill_self(_: str) -> None:
    """End this process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


class Stall:
    """An action that stops the thread that reaches the point, until :meth:`release`.

    Attributes:
        reached: set once a thread stands there.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, point: str) -> None:
        """Stand still."""
        self.reached.set()
        self._released.wait()

    def release(self) -> None:
        """Let go who stands here, and who will come."""
        self._released.set()


def _names(work: object) -> list[str]:
    if isinstance(work, str):
        return [work]
    works = work if isinstance(work, list) else [work]
    return list(dict.fromkeys(_name(getattr(one, "operation", one)) for one in works))


def _name(operation: object) -> str:
    """The name of a function, of a partial's function, or of an object's class, as a word."""
    function = getattr(operation, "func", operation)
    named: str = getattr(function, "__name__", type(function).__name__)
    return named.strip("_").lower()
