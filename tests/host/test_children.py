"""Child processes: what they are told and tell, how their end is learned, and that nothing of theirs is left."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.children import PATIENCE, child, until
from host.offspring import SLEEPER
from treadle.host.children import (
    MARK,
    Child,
    End,
    children_live,
    how_it_ended,
    kill_marked,
    kill_session,
    readable,
    start_in_session,
)
from treadle.host.locks import Hold

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
WAYS = ["program", "session", "daemon"]


class Family:
    """A child and what it says."""

    def __init__(self, mark: str) -> None:
        self.ended = threading.Event()
        self.end: End | None = None
        self.child = Child("host.offspring", mark, self._take)

    def _take(self, end: End) -> None:
        self.end = end
        self.ended.set()

    def tell(self, order: str) -> None:
        """Give it a line of Python."""
        os.write(self.child.inward, f"{order}\n".encode())

    def ask(self, order: str) -> str:
        """Give it a line of Python and return what that comes to."""
        self.tell(order)
        assert readable(self.child.outward, PATIENCE)
        return os.read(self.child.outward, 1 << 16).decode().strip()

    def over(self) -> End:
        """Wait for its end."""
        assert self.ended.wait(PATIENCE)
        assert self.end is not None
        return self.end


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mark that only this test has; what is started finds the modules of the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path))))
    return f"{tmp_path.name}-{os.getpid()}"


@contextmanager
def family(mark: str) -> Iterator[Family]:
    """A child for the length of a block."""
    made = Family(mark)
    try:
        yield made
    finally:
        made.child.kill()
        made.over()
        made.child.close()


def alive(pid: int) -> bool:
    """True while a process can still do anything; one that has ended, or is about to without its memory, cannot."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
    except OSError:
        return False


def test_a_child_is_told_and_tells(mark: str) -> None:
    """Messages go both ways; it leads a session of its own, carries the mark, and inherits no other descriptor."""
    with family(mark) as one:
        assert one.ask("os.getsid(0) == os.getpgid(0) == os.getpid()") == "True"
        assert one.ask(f"os.environ[{MARK!r}]") == mark
        assert one.ask("sorted(map(int, os.listdir('/proc/self/fd')))[:3]") == "[0, 1, 2]"
        assert int(one.ask("len(os.listdir('/proc/self/fd'))")) <= 7
        assert one.ask("children.is_child()") == "True"


@pytest.mark.parametrize("way", WAYS)
def test_the_end_is_told_when_everything_is_gone(mark: str, way: str) -> None:
    """A program, one in another session and a daemon are dead before anybody hears that the child has ended."""
    with family(mark) as one:
        grandchild = int(one.ask(f"start({way!r})"))
        assert alive(grandchild)
        one.tell("os._exit(3)")
        assert one.over().code == 3
        assert not alive(grandchild)


def test_the_end_has_code_and_usage(mark: str) -> None:
    """Signals are negative, as everywhere in Python; processor time is that of its whole life."""
    with family(mark) as one:
        one.ask("sum(range(2_000_000))")
        os.kill(one.child.pid, signal.SIGTERM)
        end = one.over()
    assert end.code == -signal.SIGTERM
    assert end.used.cpu is not None
    assert end.used.cpu > 0


def test_killing_what_is_gone_kills_nobody(mark: str) -> None:
    """Its process id may be somebody else's by then."""
    with family(mark) as one:
        one.tell("os._exit(0)")
        one.over()
        one.child.kill()
        assert not one.child.ask_stacks()
        one.child.close()
        one.child.close()


def test_stacks_are_told_whatever_the_child_does(mark: str) -> None:
    """Also when it never comes back from C code, with the interpreter locked."""
    with family(mark) as one:
        assert one.ask("1") == "1"
        one.tell("sum(range(10**15))")
        told = b""
        while b"in main" not in told:
            assert one.child.ask_stacks()
            assert readable(one.child.stacks, PATIENCE)
            told += os.read(one.child.stacks, 1 << 16)
    assert b"offspring.py" in told


def test_a_child_that_cannot_be_started_leaves_no_descriptor(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the system, as for want of memory: the pipes are closed again."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            Family(mark)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_fork_of_the_parent_does_not_keep_the_pipe_open(mark: str) -> None:
    """A child hears the end of its parent although a forked copy of the parent lives on."""
    code = """
        import os
        from treadle.host.children import Child
        one = Child("host.offspring", sys.argv[1], lambda end: None)
        if not os.fork():
            hear()
            os._exit(0)
        say(one.pid)
        hear()
        os.kill(os.getpid(), 9)
    """
    with child(code, mark) as parent:
        pid = int(parent.hear())
        assert alive(pid)
        parent.kill()
        until(lambda: not alive(pid))


def test_any_descriptor_can_be_waited_for() -> None:
    """A worker may have thousands of them open when it starts a child."""
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1500)
    try:
        assert not readable(high, 0)
        os.write(writer, b"x")
        assert readable(high, PATIENCE)
        assert os.read(high, 1) == b"x"
        os.close(writer)
        assert readable(high, PATIENCE), "the end can be read too"
    finally:
        os.close(reader)
        os.close(high)


def test_only_what_carries_the_mark_is_killed(mark: str) -> None:
    """The mark itself, and the mark with a dot and more; not a longer number that begins alike, nor ourselves."""
    started = {name: start_in_session(SLEEPER, name) for name in (mark, f"{mark}.7", f"{mark}7", f"x{mark}")}
    try:
        assert kill_marked(mark) == 2
        for name, one in started.items():
            if name in (mark, f"{mark}.7"):
                assert one.wait(PATIENCE) == -signal.SIGKILL
        assert {name for name, one in started.items() if one.poll() is None} == {f"{mark}7", f"x{mark}"}
        assert kill_marked(f"{mark}.") == 0
    finally:
        for one in started.values():
            one.kill()
            one.wait(PATIENCE)


def test_a_session_is_killed_as_a_whole(mark: str) -> None:
    """Whatever groups its members have made."""
    code = "import subprocess as s, sys; p = s.Popen(sys.argv[1:], process_group=0); print(p.pid, flush=True); p.wait()"
    leader = start_in_session([sys.executable, "-c", code, *SLEEPER], mark, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    assert kill_session(leader.pid) == 2
    assert leader.wait(PATIENCE) == -signal.SIGKILL
    leader.stdout.close()
    until(lambda: not alive(member))


def has_no_children(one: Family) -> bool:
    """True when the first of the family has neither children nor zombies."""
    return one.ask("open(f'/proc/self/task/{os.getpid()}/children').read()") == ""


@pytest.mark.parametrize("adopts", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_child_kills_what_it_has_started(mark: str, way: str, adopts: bool) -> None:
    """It lives on itself, and keeps no zombie; also where the system cannot make it the parent of orphans."""
    with family(mark) as one:
        if adopts:
            one.ask("children.adopt_orphans()")
        grandchild = int(one.ask(f"start({way!r})"))
        assert one.ask(f"children.kill_started({mark!r})") == "None"
        assert not alive(grandchild)
        assert one.ask("children.kill_started('none such')") == "None"
        if adopts:
            # An orphan is handed over by the kernel when its parent is gone, which may be a moment after it was killed.
            until(lambda: one.ask("children.kill_started('none such')") == "None" and has_no_children(one))


def test_locks_of_children_prove_that_one_lives(tmp_path: Path) -> None:
    """Any locked byte counts; without the file nobody lives."""
    path = tmp_path / "children"
    assert not children_live(path)
    hold = Hold.take(path, 41)
    assert hold is not None
    assert children_live(path)
    hold.release()
    assert not children_live(path)


@pytest.mark.parametrize(
    ("code", "out_of_memory", "words"),
    [
        (0, False, "its process exited with code 0 before it said what came of it"),
        (-15, True, "its process was killed by SIGTERM (15)"),
        (-9, True, "its process was killed by SIGKILL (9); its control group had reached its memory limit"),
        (-9, False, "its process was killed by SIGKILL (9); unless somebody did that, the system ran out of memory"),
        (-250, False, "its process was killed by a signal (250)"),
    ],
)
def test_how_it_ended_is_said_in_words(code: int, out_of_memory: bool, words: str) -> None:
    """The signal by name and number, and a hint where memory may be the reason."""
    assert how_it_ended(code, out_of_memory=out_of_memory) == words
