"""What a process uses: memory, processor time, and the limits it can be given."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


def used_by(resources: Any, inherited: int | None) -> Used:
    """The same from what ``os.wait4`` tells of an ended process.

    Args:
        resources: what it told.
        inherited: peak of the process that had started it. Linux counts that as the other's own, so only more than
            that is known to be.
    """
    peak = resources.ru_maxrss * KILO
    known = inherited is None or peak > inherited + _imprecision()
    return Used(peak if known else None, round((resources.ru_utime + resources.ru_stime) * 1_000_000))


def usage_of(pid: int) -> Used:
    """Memory in RAM now, and processor time so far, of a process that lives."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return Used(None, None)
    fields = text[text.rfind(b")") + 1 :].split()
    ticks = sum(map(int, fields[11:15]))  # its own and that of subprocesses it has waited for
    return Used(resident_bytes(pid), ticks * 1_000_000 // os.sysconf("SC_CLK_TCK"))


def peak_resident(pid: int | str = "self") -> int | None:
    """Most memory a process that lives has had in RAM, bytes; None where the system does not tell."""
    return _status(pid, "VmHWM:")


class Meter:
    """Measures one stretch of this process's life, its ended subprocesses included."""

    def __init__(self) -> None:
        self._resets_peak = _reset_peak()
        self._began = _cpu()

    def read(self) -> Used:
        """What was used since the meter was made."""
        return Used(peak_resident() if self._resets_peak else None, _cpu() - self._began)


@contextmanager
def memory_limit(most: int | None) -> Iterator[None]:
    """Limit the data this process may allocate, and each one it starts, while the context is open.

    Beyond it allocations fail, in Python as MemoryError. Shared mappings are not counted. None limits nothing.
    """
    if sys.platform == "win32" or most is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    finite = [one for one in (most, *before) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(finite), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def memory_of(pid: int) -> int:
    """Bytes in RAM of a process and of everything it started; 0 when it is gone or the system does not tell.

    Pages of files, such as programs and libraries, are left out, as they are for :func:`memory_limit`: they are no
    reason to kill who stays within that.
    """
    return _allocated(pid) + sum(map(_allocated, below(pid)))


def children_are_listed() -> bool:
    """True where the system tells which processes a process has started."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where unknown."""
    try:
        words = OOM_COUNTS.read_text("ascii").split()
    except OSError:
        return 0
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process in RAM, in bytes; 0 when it is gone or the system does not tell.

    Args:
        pid: which; None for this one, for which its peak stands in where the system tells no more.
    """
    if pid is None:
        return resident_bytes(os.getpid()) or _own_peak()
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def below(pid: int) -> Iterator[int]:
    """What a process has started, and what that has started in its turn, dead ones nobody waited for included."""
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
            yield int(child)
            yield from below(int(child))


def alive_below(pid: int) -> list[int]:
    """The same without the dead."""
    return [one for one in below(pid) if resident_bytes(one)]


def _allocated(pid: int) -> int:
    return _status(pid, "RssAnon:", "RssShmem:") or 0


def _status(pid: int | str, *names: str) -> int | None:
    """The sum of some lines of what the system tells of a process, in bytes; None when it does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(names)]
    return sum(found) if found else None


def _imprecision() -> int:
    """Bytes by which two readings of the same memory may differ.

    Linux counts pages of files, of programs and shared ones on each processor apart, and adds them up only when one has
    counted to ``percpu_counter_batch`` of ``lib/percpu_counter.c``.
    """
    processors = os.cpu_count() or 1
    return 3 * processors * max(32, 2 * processors) * os.sysconf("SC_PAGE_SIZE")


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


def _own_peak() -> int:
    return 0 if sys.platform == "win32" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILO
