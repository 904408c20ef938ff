"""The kernel's table of file locks, ``/proc/locks``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Range(NamedTuple):
    """Bytes of a file."""

    start: int
    length: int


class Row(NamedTuple):
    """One granted lock of /proc/locks; last is None for "to the end"."""

    pid: int
    device: tuple[int, int]
    inode: int
    first: int
    last: int | None
    writes: bool

    def meets(self, wanted: Range) -> bool:
        """Whether the lock covers a byte of *wanted*."""
        ends_before = self.last is not None and self.last < wanted.start
        return not ends_before and self.first < wanted.start + wanted.length


def lock_table() -> list[Row]:
    """All granted locks; none when /proc counts pids of another namespace than ours."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return []
        text = Path("/proc/locks").read_text("ascii", "replace")
    except OSError:
        return []
    return list(read_locks(text))


def read_locks(text: str) -> Iterator[Row]:
    """Read the text of ``/proc/locks``: granted POSIX locks only, waiting ones and others left out."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 8 or fields[1] != "POSIX":
            continue
        major, minor, inode = fields[5].split(":")
        last = None if fields[7] == "EOF" else int(fields[7])
        device = int(major, 16), int(minor, 16)
        yield Row(int(fields[4]), device, int(inode), int(fields[6]), last, fields[3] == "WRITE")
