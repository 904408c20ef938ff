"""Where running code stands now, as text: for attempts that take longer than they may."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any, Final

from treadle.model.sanitise import clean_text

FRAMES: Final = 40
CAP: Final = 16_000


def stack_of_thread(ident: int | None) -> str:
    """The stack of a thread of this process, outermost call first; a remark when it has none."""
    frame = None if ident is None else sys._current_frames().get(ident)
    return "Its thread has ended." if frame is None else _text("Its thread stood here:", reversed(list(_back(frame))))


def stack_of_coroutine(coroutine: Any) -> str:
    """Where a suspended coroutine waits, outermost call first.

    asyncio itself shows one frame of it only: the others are reached through what each coroutine awaits.
    """
    return _text("Its coroutine waited here:", _awaited(coroutine))


def _back(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    for _ in range(FRAMES * 2):
        frame = _first(coroutine, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            return
        yield frame
        coroutine = _first(coroutine, "cr_await", "gi_yieldfrom", "ag_await")


def _first(of: Any, *names: str) -> Any:
    """The first attribute that there is and that is not None."""
    return next((found for name in names if (found := getattr(of, name, None)) is not None), None)


def _text(head: str, frames: Iterable[FrameType]) -> str:
    found = [FrameSummary(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in frames]
    lines = StackSummary.from_list(found[-FRAMES:]).format()
    return clean_text(f"{head}\n{''.join(lines)}", CAP)
