"""What a process uses: memory, processor time, and the limits it can be given."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

if sys.platform != "win32":
    import resource

KILO: Final = 1 if sys.platform == "darwin" else 1024
"""Unit of ``ru_maxrss``."""
OOM_COUNTS: Final = Path("/sys/fs/cgroup/memory.events")


class Used(NamedTuple):
    """Peak memory in RAM (bytes) and processor time (microseconds); None where unknown."""

    peak_rss: int | None
    cpu: int | None


def used_by(resources: Any) -> Used:
    """The same from what ``os.wait4`` tells of an ended process."""
    return Used(resources.ru_maxrss * KILO, round((resources.ru_utime + resources.ru_stime) * 1_000_000))


class Meter:
    """Measures one stretch of this process's life, its ended subprocesses included."""

    def __init__(self) -> None:
        self._resets_peak = _reset_peak()
        self._began = _cpu()

    def read(self) -> Used:
        """What was used since the meter was made."""
        return Used(_peak() if self._resets_peak else None, _cpu() - self._began)


def limit_memory(most: int | None) -> None:
    """Limit the data this process may allocate, and each one it starts; None takes the limit away.

    Beyond it allocations fail, in Python as MemoryError. Shared mappings are not counted.
    """
    if sys.platform == "win32":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = hard if most is None else most
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard) if wanted != resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def memory_of(pid: int) -> int:
    """Bytes in RAM of a process and of everything it started; 0 when it is gone or the system does not tell."""
    return sum(_resident(one) for one in _family(pid))


def resident_bytes() -> int:
    """Memory of this process in RAM, in bytes (its peak outside Linux; 0 where unknown)."""
    if sys.platform == "win32":
        return 0
    return _resident(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILO


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where unknown."""
    try:
        words = OOM_COUNTS.read_text("ascii").split()
    except OSError:
        return 0
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        try:
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _cpu() -> int:
    if sys.platform == "win32":
        return round(sum(os.times()[:2]) * 1_000_000)
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(one.ru_utime + one.ru_stime for one in used) * 1_000_000)


def _reset_peak() -> bool:
    """Let the kernel count the peak of memory from now on; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
