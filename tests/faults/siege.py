"""The slow faults at full size, by command: ``python tests/faults/siege.py [crowd locked blocked stopped full ...]``.

The suite runs each of them cut down (``test_faults.py``, ``test_chaos_smoke.py``); here they take as long as the
promise says: 64 threads in each of 4 processes, a database locked from outside for 60 s, an event loop blocked for
60 s, a worker stopped for 60 s, a disk that is really full (a small tmpfs; needs root).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT.parent / "src")]

from faults.helpers import eventually, process, stop_at_rest  # noqa: E402
from faults.stage import Stage, build  # noqa: E402
from treadle import JobState  # noqa: E402
from treadle.errors import StoreBusy, StoreFull, TreadleError  # noqa: E402

PAUSE = 60.0
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


def crowd(folder: Path) -> None:
    """64 threads in each of 4 processes enqueue while two workers drain; no error reaches anyone."""
    threads, each, stage = 64, 20, build(folder)
    with ExitStack() as stack:
        for name in ("first", "second"):
            stack.enter_context(process("faults.stage", "worker", folder, name, log=folder / "log"))
        logs = [folder / f"producer-{number}" for number in range(4)]
        crowd = [
            stack.enter_context(process("faults.stage", "enqueue", folder, threads, each, log=log)) for log in logs
        ]
        assert [one.finish() for one in crowd] == [0] * 4, [log.read_text() for log in logs]
        wanted = {JobState.SUCCEEDED: 4 * threads * each}
        eventually(lambda: stage.app.counts().get("default") == wanted, "everything is drained", 300)
    assert set(Counter(start["job"] for start in stage.starts()).values()) == {1}
    stage.app.close()


def locked(folder: Path) -> None:
    """Locked from outside for 60 s: enqueue raises StoreBusy after its own timeout, running work is stored after."""
    stage = build(folder, lock_timeout=5.0)
    with process("faults.stage", "worker", folder, "patient", log=folder / "log"):
        waiting = stage.wait.enqueue(name="go")
        eventually(lambda: stage.starts(waiting.id), "the job has begun")
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(stage.app.store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (folder / "go").touch()
        told = refused(stage, StoreBusy)
        threading.Event().wait(PAUSE)
        holder.communicate(b"\n")
        assert f"pid {holder.pid}" in told, told
        assert isinstance(waiting.result(60), int)
        assert stage.quick.enqueue(number=7).result(60) == 7
    assert waiting.record().attempt == 1
    stage.app.close()


def blocked(folder: Path) -> None:
    """An async handler that blocks the event loop for 60 s is not taken for dead while another worker watches."""
    stage = build(folder)
    with process("faults.stage", "worker", folder, "blocked", log=folder / "log"):
        job = stage.block.enqueue(name="go")
        eventually(lambda: stage.starts(job.id), "the job has begun")
        with process("faults.stage", "worker", folder, "watcher", log=folder / "log"):
            threading.Event().wait(PAUSE)
            (folder / "go").touch()
            assert isinstance(job.result(60), int)
    assert [one["job"] for one in stage.starts(job.id)] == [job.id]
    assert job.record().crashes == 0
    stage.app.close()


def stopped(folder: Path) -> None:
    """A worker stopped for 60 s is never rescued while it lives; its job ends after it goes on."""
    stage = build(folder)
    with process("faults.stage", "worker", folder, "stopped", log=folder / "log") as worker:
        job = stage.wait.enqueue(name="go")
        eventually(lambda: stage.starts(job.id), "the job has begun")
        stop_at_rest(worker, stage.app.store.path)
        with process("faults.stage", "worker", folder, "watcher", log=folder / "log"):
            threading.Event().wait(PAUSE)
            (folder / "go").touch()
            assert job.record().state is JobState.RUNNING
            worker.send(signal.SIGCONT)
            assert isinstance(job.result(60), int)
    assert job.record().attempt == 1
    stage.app.close()


def full(folder: Path) -> None:
    """A disk that is really full: enqueue is refused, nothing accepted is lost, all is drained with room again."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], check=True)
    try:
        brim(disk)
        fill(disk, build(disk))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def brim(disk: Path) -> None:
    """Not one byte is free while a job ends: its outcome waits, enqueue is refused, and both go on with room."""
    stage, ballast = build(disk), disk / "ballast"
    with stage.app.worker():
        job = stage.wait.enqueue(name="go")
        eventually(lambda: stage.starts(job.id), "the job has begun")
        (disk / "go").touch()
        with ballast.open("wb", buffering=0) as out:
            try:
                while out.write(bytes(4096)):
                    pass
            except OSError:
                print("  the disk is full to the brim")
        refused(stage, StoreFull)
        ballast.unlink()
        assert isinstance(job.result(60), int)
        assert stage.quick.enqueue(number=7).result(60) == 7
    stage.app.close()


def fill(disk: Path, stage: Stage) -> None:
    """Enqueue until refused, then grow the disk and drain."""
    accepted: list[int] = []
    told = ""
    for number in range(100_000):
        try:
            accepted.append(stage.quick.enqueue(number=number).id)
        except StoreFull as error:
            told = str(error)
            break
    assert told, "the disk never filled"
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    with stage.app.worker():
        states = stage.app.wait(accepted, timeout=300)
    assert set(states.values()) == {JobState.SUCCEEDED}
    assert len(states) == len(accepted)
    print(f"  {len(accepted)} accepted before: {told}")
    stage.app.close()


def refused(stage: Stage, kind: type[TreadleError]) -> str:
    """The message of the refusal that an enqueue must meet."""
    try:
        stage.quick.enqueue(number=1)
    except kind as error:
        return str(error)
    raise AssertionError(f"enqueue went through instead of raising {kind.__name__}")


SIEGES = {"crowd": crowd, "locked": locked, "blocked": blocked, "stopped": stopped, "full": full}


def main() -> int:
    """Run the sieges named on the command line, or all."""
    names = sys.argv[1:] or list(SIEGES)
    failed = 0
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"treadle-{name}-", ignore_cleanup_errors=True) as folder:
            try:
                SIEGES[name](Path(folder))
            except (AssertionError, TreadleError) as error:
                failed += 1
                print(f"{name}: FAILED: {error!r}")
                continue
        print(f"{name}: held, {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
