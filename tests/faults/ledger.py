"""Append-only ledgers: what every process of a chaos run did, written down outside the database.

One file per process, one JSON object per line, each line one ``write`` to a descriptor opened with O_APPEND: what a
process wrote before SIGKILL stays in the page cache, so no sync is needed. Times are nanoseconds of CLOCK_MONOTONIC,
which all processes of one machine share; ``wall`` is microseconds since 1970.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Ledger:
    """Writes one process's records; safe to use from several threads and after a fork."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = 0
        self._descriptor = -1

    def write(self, kind: str, *, sync: bool = False, **facts: Any) -> None:
        """Append one record; it survives SIGKILL from here on, with *sync* the machine's end too."""
        record = {"kind": kind, "pid": os.getpid(), "at": time.monotonic_ns(), "wall": time.time_ns() // 1000, **facts}
        os.write(self._own(), json.dumps(record, separators=(",", ":")).encode() + b"\n")
        if sync:
            os.fsync(self._descriptor)

    def _own(self) -> int:
        pid = os.getpid()
        if pid != self._pid:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self._folder / f"{pid}-{time.monotonic_ns()}.jsonl", flags, 0o600)
            self._pid = pid
        return self._descriptor


def read_all(folder: Path) -> list[Record]:
    """Every record of every ledger in *folder*, in order of time."""
    found = [record for path in sorted(folder.glob("*.jsonl")) for record in _read(path)]
    return sorted(found, key=lambda record: record["at"])


def _read(path: Path) -> Iterator[Record]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the empty end, or a line cut by a kill: as if it had not been written
