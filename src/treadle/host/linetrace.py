"""Hearing of each line of some functions before it runs: for tests that crash a program between two of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any, NamedTuple

Tracer = Callable[[FrameType, str, Any], Any]


class Place(NamedTuple):
    """Where a function begins: what tells its code in another process too."""

    file: str
    line: int
    name: str

    @classmethod
    def of(cls, code: CodeType) -> Place:
        """The place of some code."""
        return cls(code.co_filename, code.co_firstlineno, code.co_name)


def trace_lines(places: Collection[Place], on_line: Callable[[Place, int], None]) -> None:
    """Call *on_line* before each line of the functions at *places*, on this thread and on those started from now on.

    It slows down everything that runs on these threads, and takes the place of a debugger or a coverage tool.
    """
    wanted = frozenset(places)

    def on_call(frame: FrameType, _event: str, _argument: Any) -> Tracer | None:
        return on_event if Place.of(frame.f_code) in wanted else None

    def on_event(frame: FrameType, event: str, _argument: Any) -> Tracer:
        if event == "line":
            on_line(Place.of(frame.f_code), frame.f_lineno)
        return on_event

    threading.settrace(on_call)
    sys.settrace(on_call)
