"""Child processes that run one job at a time: spawned, never forked, each in a session of its own.

A child watches a pipe from its parent and ends itself with everything it started when the parent is gone. It holds a
lock of its own meanwhile, so that nobody takes its job back before it is gone too.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from treadle.host.bytelocks import anybody_locks
from treadle.host.process import forget_on_fork, no_fork, on_fork, running, spawn_python
from treadle.host.usage import Used, alive_below, below, children_are_listed, peak_resident, used_by

MARK: Final = "TREADLE_CHILD_OF"
"""Environment variable that says whose a process is; what a handler starts inherits it."""
DUMP_SIGNAL: Final = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else None
"""Makes a child write down its stacks; a real-time signal, because programs use the others themselves."""


KILLS_MOST: Final = 100
"""Times, a millisecond apart, that what does not end is killed before other things must go on."""
PR_SET_CHILD_SUBREAPER: Final = 36

_own = {"is_child": False, "adopts": False}


class End(NamedTuple):
    """How a child ended: its exit code, -9 for signal 9, and what it used."""

    code: int
    used: Used


class Child:
    """A spawned Python, its pipes, and what it printed.

    Args:
        module: what it runs, as ``python -m`` with our import path; it gets the numbers of three descriptors: to read
            from, to write to, and for stacks.
        mark: value of :data:`MARK` in its environment.
        on_end: called on a thread of its own once it and everything it started is gone.

    Attributes:
        pid: its process id, and the id of its session and group.
        inward: descriptor to write messages to it.
        outward: descriptor to read messages from.
        stacks: descriptor to read stacks from.
        output: descriptor of what it printed.
        errors: descriptor of what it printed on standard error.
    """

    def __init__(self, module: str, mark: str, on_end: Callable[[End], None]) -> None:
        self._mark = mark
        self._lock = threading.Lock()
        self._gone = False
        self._popen: subprocess.Popen[bytes] | None = None
        with no_fork():
            theirs_in, self.inward = os.pipe()
            self.outward, theirs_out = os.pipe()
            self.stacks, theirs_stacks = os.pipe()
            theirs = (theirs_in, theirs_out, theirs_stacks)
            self._open = True
            # A child forked meanwhile would keep our end of the pipe open when we die.
            on_fork(self, after_in_child=self.close)
        try:
            popen = self._popen = spawn_python(
                running(module, *map(str, theirs)), pass_fds=theirs, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, MARK: mark},
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        assert popen.stdout is not None
        assert popen.stderr is not None
        self._inherited = peak_resident()
        self.pid = popen.pid
        self.output = popen.stdout.fileno()
        self.errors = popen.stderr.fileno()
        for descriptor in (self.outward, self.stacks, self.output, self.errors):
            os.set_blocking(descriptor, False)
        threading.Thread(target=self._wait, args=(popen, on_end), name="treadle-child", daemon=True).start()

    def kill(self) -> None:
        """Kill it with everything in its group; does nothing once it is gone."""
        with self._lock:
            if not self._gone:
                _kill_group(self.pid)

    def ask_stacks(self) -> bool:
        """Make it write its stacks, also when it is busy in C code; False where that cannot be done."""
        with self._lock:
            if self._gone or DUMP_SIGNAL is None:
                return False
            os.kill(self.pid, DUMP_SIGNAL)
            return True

    def close(self) -> None:
        """Close our ends of the pipes; a second call does nothing."""
        forget_on_fork(self)
        if not self._open:
            return
        self._open = False
        for descriptor in (self.inward, self.outward, self.stacks):
            os.close(descriptor)
        for stream in (self._popen.stdout, self._popen.stderr) if self._popen is not None else ():
            if stream is not None:
                stream.close()

    def _wait(self, popen: subprocess.Popen[bytes], on_end: Callable[[End], None]) -> None:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            popen.wait()
        # Before it is reaped: until then its group cannot be anybody else's.
        _kill_group(self.pid)
        until_none(lambda: kill_session(self.pid) + kill_marked(self._mark))
        used = Used(None, None)
        with self._lock:
            if popen.returncode is None:
                _, status, resources = os.wait4(self.pid, 0)
                popen.returncode = os.waitstatus_to_exitcode(status)
                used = used_by(resources, self._inherited)
            self._gone = True
        on_end(End(popen.returncode, used))


def kill_session(leader: int) -> int:
    """Kill what is left of the session that *leader* began, except for ourselves; how many were found."""
    return sum(_kill(pid) for pid, stat in _processes() if stat.session == leader and pid != os.getpid())


def kill_marked(mark: str) -> int:
    """Kill every process whose environment carries *mark*, or *mark* with a dot and more: what its jobs have started.

    Only processes of this account can be seen, on Linux.

    Returns:
        How many were found; they may take a moment to end.
    """
    wanted = re.compile(re.escape(f"{MARK}={mark}".encode()) + rb"(\..*)?", re.DOTALL)
    found = 0
    for pid, _ in _processes():
        try:
            names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # another account's, or gone meanwhile
        if pid != os.getpid() and any(map(wanted.fullmatch, names)):
            found += _kill(pid)
    return found


def kill_started(mark: str) -> None:
    """Kill everything that this process has started, daemons included, and bury it.

    Args:
        mark: what their environments carry; for systems on which :func:`adopt_orphans` does nothing.
    """
    if not _own["adopts"]:
        until_none(lambda: kill_session(os.getpid()) + kill_marked(mark))
    elif any(below(os.getpid())):
        until_none(lambda: sum(map(_kill, alive_below(os.getpid()))))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue


def until_none(kill: Callable[[], int]) -> None:
    """Call *kill* until it finds nothing: what is killed takes a moment to end, and may have started more meanwhile."""
    for _ in range(KILLS_MOST):
        if not kill():
            return
        select.poll().poll(1)


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind, so that no daemon escapes (Linux)."""
    try:
        can = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (OSError, AttributeError):
        can = False
    _own["adopts"] = can and children_are_listed()


def children_live(path: Path) -> bool:
    """True while a child process holds its lock in the file *path*; False also when there is no such file."""
    return anybody_locks(path)


def become_child() -> None:
    """Remember that this process is a child of a worker."""
    _own["is_child"] = True


def own_mark() -> str:
    """The mark that this process was started with; empty outside a child."""
    return os.environ.get(MARK, "")


def is_child() -> bool:
    """True in a child process of a worker."""
    return _own["is_child"]


def keep_from_children(descriptor: int) -> None:
    """Let no program that this process starts inherit *descriptor*."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - the system's own signature


def readable(descriptor: int, timeout: float) -> bool:
    """Wait until *descriptor* can be read or has ended, at most *timeout* seconds."""
    poll = select.poll()  # select() knows no descriptors beyond 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def parent_of() -> int:
    """The process id of our parent; it changes when the parent dies."""
    return os.getppid()


def end_own_session(mark: str) -> NoReturn:
    """Kill everything that we have started, ourselves last."""
    kill_started(mark)
    _kill_group(os.getpid())
    os._exit(1)


def write_stacks_to(descriptor: int) -> None:
    """Write the stacks of all threads to *descriptor* whenever :data:`DUMP_SIGNAL` comes, even inside C code."""
    if DUMP_SIGNAL is not None:
        os.set_blocking(descriptor, False)  # a full pipe must not stop the process
        faulthandler.register(DUMP_SIGNAL, file=descriptor, all_threads=True)


def start_in_session(argv: list[str], mark: str, **popen: object) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, marked as *mark*'s; its environment is ours unless given."""
    env = dict(popen.pop("env", None) or os.environ)  # type: ignore[call-overload]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return] # noqa: S603 - the handler's own wish
        argv, start_new_session=True, env={**env, MARK: mark}, **popen
    )


def how_it_ended(code: int, *, out_of_memory: bool) -> str:
    """How a process ended, for people.

    Args:
        code: its exit code, -9 for signal 9.
        out_of_memory: its control group reached its memory limit meanwhile.

    Example:
        >>> how_it_ended(-11, out_of_memory=False)
        'its process was killed by SIGSEGV (11)'
    """
    if code >= 0:
        return f"its process exited with code {code} before it said what came of it"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    told = f"its process was killed by {name} ({-code})"
    if name != "SIGKILL":
        return told
    if out_of_memory:
        return f"{told}; its control group had reached its memory limit"
    return f"{told}; unless somebody did that, the system ran out of memory"


class _Stat(NamedTuple):
    parent: int
    session: int


def _processes() -> Iterator[tuple[int, _Stat]]:
    for entry in Path("/proc").iterdir() if os.path.isdir("/proc/self") else ():
        if not entry.name.isdecimal():
            continue
        try:
            text = (entry / "stat").read_bytes()
        except OSError:
            continue
        fields = text[text.rfind(b")") + 1 :].split()
        if len(fields) > 3 and fields[0] not in (b"Z", b"X"):
            yield int(entry.name), _Stat(int(fields[1]), int(fields[3]))


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
