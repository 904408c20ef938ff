"""What is kept of the lines of one attempt: its beginning at once, its end when it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from treadle import defaults
from treadle.model.job import LogLine
from treadle.model.sanitise import clean_text

END_SHARE: Final = 4
"""One part in so many of the cap is for the end."""
LINE_COST: Final = 64
"""Bytes a line takes beside its text."""


class Lines:
    """The lines of one attempt under a cap; one thread at a time uses it, or a stray line is lost.

    Args:
        cap: bytes of text and of what a line costs beside it.

    Example:
        >>> lines = Lines(cap=400)
        >>> [lines.keep(0, 20, "job", f"line {n}") is not None for n in range(8)]
        [True, True, True, True, False, False, False, False]
        >>> [line.text for line in lines.rest()]
        ['… 3 lines left out: more than 400 bytes of log', 'line 7']
    """

    def __init__(self, cap: int = defaults.LOG_CAP) -> None:
        self._cap = cap
        self._left = cap - cap // END_SHARE
        self._end: deque[LogLine] = deque()
        self._end_size = 0
        self._dropped = 0

    def keep(self, logged_at: int, level: int, source: str, text: str) -> LogLine | None:
        """The line to store now; None when it is kept back, because the beginning is full."""
        line = LogLine(logged_at, level, clean_text(source, 200), clean_text(text, self._cap // END_SHARE))
        size = _size(line)
        if size <= self._left and not self._end:
            self._left -= size
            return line
        self._end.append(line)
        self._end_size += size
        while self._end_size > self._cap // END_SHARE and len(self._end) > 1:
            self._end_size -= _size(self._end.popleft())
            self._dropped += 1
        return None

    def rest(self) -> Sequence[LogLine]:
        """What was kept back, with a line before it that tells how many are missing."""
        lines = list(self._end)
        if self._dropped:
            first = lines[0]
            told = f"… {self._dropped} lines left out: more than {self._cap} bytes of log"
            lines.insert(0, LogLine(first.logged_at, first.level, "job", told))
        self._end.clear()
        return lines


def _size(line: LogLine) -> int:
    return len(line.text.encode()) + LINE_COST
