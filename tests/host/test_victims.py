"""Processes that are meant to die: forked or fresh, waited for, and with nothing left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.host import linetrace, victims
from treadle.host.linetrace import Place, trace_lines
from treadle.host.victims import KILLED, READY, Nursery, open_now, run_fresh, why_not_fork

SOURCE = str(Path(victims.__file__).parents[2])
PATIENCE = 30.0
BREED = """
import os, signal, subprocess, sys, time
from treadle.host.victims import breed

def run(order):
    print("order", order, "of", os.getppid(), flush=True)
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "raise":
        raise ValueError("on purpose")
    if order == "wait":
        time.sleep(60)
    if order == "leave":
        print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
    if order == "read":
        print(repr(sys.stdin.read()), flush=True)

breed(run, {reason!r})
"""


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes find the package."""
    monkeypatch.setenv("PYTHONPATH", SOURCE)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where processes print to."""
    return tmp_path / "output"


@pytest.fixture
def nursery(output: Path) -> Iterator[Nursery]:
    """A process that forks."""
    made = Nursery(["-c", BREED.format(reason=None)], output)
    yield made
    made.close()


def command(file: Path) -> str:
    """The command line of a process, empty for one that is gone."""
    try:
        return file.read_text()
    except OSError:
        return ""


def is_there(pid: int) -> bool:
    """True while a process runs; one that waits to be buried does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_order_has_a_process_of_its_own(nursery: Nursery, output: Path) -> None:
    """Exit codes come back in order, whatever the processes before came to; what they print is kept."""
    assert nursery.hello(PATIENCE) == READY
    codes = [nursery.run(order, PATIENCE) for order in ("end", "kill", "raise", "read", "end")]
    assert codes == [0, KILLED, 1, 0, 0]
    told = output.read_text()
    assert [line.split()[1] for line in told.splitlines() if line.startswith("order")] == [
        "end", "kill", "raise", "read", "end"
    ]  # fmt: skip
    assert "ValueError: on purpose" in told
    assert "''" in told  # its input is empty: the orders of others are not for it


def test_a_victim_that_takes_too_long_is_killed(output: Path) -> None:
    """After the timeout there is no exit code, and after the end no process."""
    nursery = Nursery(["-c", f"{BREED.format(reason=None)}# {output}"], output)
    nursery.hello(PATIENCE)
    assert nursery.run("wait", 1) is None
    nursery.close()
    assert [one for one in Path("/proc").glob("[0-9]*/cmdline") if str(output) in command(one)] == []


def test_what_a_victim_leaves_is_killed(nursery: Nursery, output: Path) -> None:
    """A program it has started does not outlive it."""
    nursery.hello(PATIENCE)
    assert nursery.run("leave", PATIENCE) == 0
    assert not is_there(int(output.read_text().split()[-1]))


def test_a_nursery_that_must_not_fork_says_so(output: Path) -> None:
    """The reason is its first and last word."""
    nursery = Nursery(["-c", BREED.format(reason="it has 3 threads")], output)
    assert nursery.hello(PATIENCE) == "it has 3 threads"
    assert nursery.run("end", PATIENCE) is None
    nursery.close()


def test_a_nursery_that_cannot_start_says_nothing(output: Path) -> None:
    """What went wrong is in its output."""
    nursery = Nursery(["-c", "raise ImportError('no app')"], output)
    assert nursery.hello(PATIENCE) is None
    nursery.close()
    assert "no app" in output.read_text()


def test_what_is_open_forbids_a_fork() -> None:
    """A descriptor that was opened meanwhile or a second thread is a reason; neither is none."""
    code = """
import os, socket, threading
from treadle.host.victims import open_now, why_not_fork
before = open_now()
print(why_not_fork(before))
made = socket.socket()
print(why_not_fork(before))
made.close()
event = threading.Event()
thread = threading.Thread(target=event.wait)
thread.start()
print(why_not_fork(before))
event.set()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None", "it has opened 1 files or connections", "it has 2 threads"]


def test_where_the_system_does_not_tell_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In doubt a fresh process is taken."""
    monkeypatch.setattr(victims, "FDS", Path("/nowhere"))
    assert why_not_fork(open_now()) == "the system does not tell what is open"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", KILLED), ("1 / 0", 1)],
)
def test_a_fresh_victim_tells_its_end(output: Path, code: str, wanted: int) -> None:
    """Its exit code, as the system has it."""
    assert run_fresh(["-c", code], output, PATIENCE) == wanted


def test_a_fresh_victim_that_takes_too_long_is_killed(output: Path) -> None:
    """With whatever it has started."""
    code = "import os, subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    assert run_fresh(["-c", code], output, 2) is None
    assert [pid for pid in output.read_text().split() if is_there(int(pid))] == []


# Lines -----------------------------------------------------------------------------------------------------------


def traced(number: int) -> int:
    """A function with a loop."""
    for _ in range(2):
        number += 1
    return number


async def traced_too() -> int:
    """A coroutine."""
    return 1


def test_lines_are_heard_before_they_run() -> None:
    """On this thread and on later ones, of the named functions only; the count starts at the function's first line."""
    before = sys.gettrace()
    heard: list[tuple[str, int]] = []
    first = traced.__code__.co_firstlineno
    place = Place.of(traced.__code__)
    try:
        trace_lines([place], lambda place, line: heard.append((place.name, line - first)))
        traced(1)
        here, heard[:] = list(heard), []
        thread = threading.Thread(target=traced, args=(1,))
        thread.start()
        thread.join()
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]
    wanted = [("traced", line) for line in (2, 3, 2, 3, 2, 4)]
    assert here == heard == wanted
    assert os.path.samefile(place.file, __file__)
    assert linetrace.Place.of(traced_too.__code__).name == "traced_too"
