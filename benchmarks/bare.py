"""A process with what Treadle stands on and nothing of Treadle; it must not import ``benchmarks.app``."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec

from benchmarks.child import Role


def memory() -> Role:
    """Resident megabytes with a connection open, a loop running and a decoder made."""
    yield
    return asyncio.run(_idle())


async def _idle() -> float:
    connection = sqlite3.connect(":memory:")
    decoder = msgspec.json.Decoder(dict[str, int])
    await asyncio.sleep(0.2)
    found = resident()
    connection.close()
    assert decoder.decode(b"{}") == {}
    return found


def resident() -> float:
    """Resident megabytes of this process."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/self/status has no VmRSS.")
