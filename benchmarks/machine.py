"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from pathlib import Path

from benchmarks.measure import median

SYNCS = 200


def describe(folder: Path) -> dict[str, str]:
    return {
        "CPU": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores usable",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite": sqlite3.sqlite_version,
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _file_system(folder),
        "write + fdatasync of 4 kB": f"{_sync_time(folder) * 1e3:.2f} ms (median of {SYNCS})",
        "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, mount, kind, *_ = line.split(" ")
        inside = mount == "/" or f"{folder}/".startswith(f"{mount}/")
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def _sync_time(folder: Path) -> float:
    path = folder / "sync-probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        taken = []
        for place in range(SYNCS):
            begun = time.perf_counter()
            os.pwrite(descriptor, b"x" * 4096, (place % 16) * 4096)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - begun)
        return median(taken)
    finally:
        os.close(descriptor)
        path.unlink()
