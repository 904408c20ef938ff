"""Locks that end with their process."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from host.children import PATIENCE, child, until
from treadle.host import bytelocks, locks
from treadle.host.files import identity_of
from treadle.host.locks import Gate, Hold, Probe

HOLDER = """
    from pathlib import Path
    from treadle.host.locks import Hold
    hold = Hold.take(Path(sys.argv[1]), 5)
    say("held" if hold else "busy")
    hear()
"""


@pytest.fixture(params=["here", "flock"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to lock: this system's own and the plain POSIX one."""
    if request.param == "flock":
        monkeypatch.setattr(locks, "_KIND", bytelocks._FileLocks())
    return str(request.param)


def test_two_holds_on_one_slot_conflict_in_one_process(tmp_path: Path, either: str) -> None:
    """One process cannot hold a slot twice, and can hold it again after release."""
    path = tmp_path / "locks"
    first = Hold.take(path, 1)
    assert first is not None
    assert Hold.take(path, 1) is None
    other = Hold.take(path, 2)
    assert other is not None
    first.release()
    first.release()
    again = Hold.take(path, 1)
    assert again is not None
    assert again.still_ours()
    assert not first.still_ours()
    again.release()
    other.release()


def test_probe_sees_holds_without_taking_anything(tmp_path: Path, either: str) -> None:
    """A probe tells held from free, also for its own process, and stands in nobody's way."""
    path = tmp_path / "locks"
    hold = Hold.take(path, 3)
    assert hold is not None
    probe = Probe(path)
    assert probe.identity == hold.identity == identity_of(path)
    assert not probe.is_free(3)
    assert probe.is_free(4)
    neighbour = Hold.take(path, 4)
    assert neighbour is not None
    hold.release()
    assert probe.is_free(3)
    neighbour.release()
    probe.close()
    probe.close()
    with pytest.raises(ValueError, match="closed"):
        probe.is_free(3)


def test_a_probe_without_a_file_knows_of_no_lock(tmp_path: Path, either: str) -> None:
    """Where there is no file of locks a probe says so, makes none, and claims nothing about slots."""
    probe = Probe(tmp_path / "locks")
    assert probe.identity is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no file"):
        probe.is_free(1)
    probe.close()


def test_the_lock_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """A new lock file has mode 0600 and its descriptor is not inherited by exec."""
    old = os.umask(0)
    try:
        hold = Hold.take(tmp_path / "locks", 0)
    finally:
        os.umask(old)
    assert hold is not None
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o600
    assert hold._descriptor is not None
    assert not os.get_inheritable(hold._descriptor)
    hold.release()


def test_a_negative_slot_is_refused(tmp_path: Path) -> None:
    """Slots count from 0."""
    with pytest.raises(ValueError, match="negative"):
        Hold.take(tmp_path / "locks", -1)


def test_a_replaced_file_is_not_ours_any_more(tmp_path: Path) -> None:
    """A hold whose path names another file, or none, says so."""
    path = tmp_path / "locks"
    hold = Hold.take(path, 0)
    assert hold is not None
    path.rename(tmp_path / "moved")
    assert not hold.still_ours()
    path.touch()
    assert not hold.still_ours()
    hold.release()


def test_sigkill_frees_the_slot(tmp_path: Path) -> None:
    """A killed process holds nothing."""
    path = tmp_path / "locks"
    with child(HOLDER, path) as holder:
        assert holder.hear() == "held"
        probe = Probe(path)
        assert not probe.is_free(5)
        assert Hold.take(path, 5) is None
        holder.kill()
        assert probe.is_free(5)
        hold = Hold.take(path, 5)
        assert hold is not None
        hold.release()
        probe.close()


def test_a_stopped_process_keeps_its_slot(tmp_path: Path) -> None:
    """SIGSTOP is not death: the slot stays held."""
    path = tmp_path / "locks"
    with child(HOLDER, path) as holder:
        assert holder.hear() == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        probe = Probe(path)
        assert not probe.is_free(5)
        assert Hold.take(path, 5) is None
        os.kill(holder.pid, signal.SIGCONT)
        probe.close()


def test_a_forked_child_does_not_keep_the_slot(tmp_path: Path) -> None:
    """The slot is free when its holder is killed although a forked child lives on."""
    code = """
        import os
        from pathlib import Path
        from treadle.host.locks import Hold
        hold = Hold.take(Path(sys.argv[1]), 5)
        if os.fork() == 0:
            hold.release()
            say(f"child {os.getpid()}")
            os.read(0, 1)
            os._exit(0)
        os.wait()
    """
    path = tmp_path / "locks"
    with child(code, path) as holder:
        words = holder.hear().split()
        assert words[0] == "child"
        probe = Probe(path)
        assert not probe.is_free(5), "the child's release must not free the parent's lock"
        holder.kill()
        os.kill(int(words[1]), 0)
        assert probe.is_free(5)
        probe.close()


def test_pool_children_do_not_keep_the_slot(tmp_path: Path) -> None:
    """The slot is free when its holder is killed although multiprocessing.Pool's forks live on."""
    code = """
        import multiprocessing, os
        from pathlib import Path
        from treadle.host.locks import Hold
        hold = Hold.take(Path(sys.argv[1]), 5)
        pool = multiprocessing.get_context("fork").Pool(2)
        say(pool.apply(os.getpid))
        hear()
    """
    path = tmp_path / "locks"
    with child(code, path) as holder:
        worker = int(holder.hear())
        os.kill(worker, signal.SIGSTOP)  # it cannot notice the end of its parent
        probe = Probe(path)
        assert not probe.is_free(5)
        holder.kill()
        until(lambda: probe.is_free(5))  # the other one of the pool may have been born just then
        os.kill(worker, signal.SIGKILL)
        probe.close()


def test_a_dropped_hold_frees_its_slot(tmp_path: Path) -> None:
    """Nobody can release a lost object, so its lock goes with it."""
    path = tmp_path / "locks"
    hold = Hold.take(path, 0)
    assert hold is not None
    del hold
    again = Hold.take(path, 0)
    assert again is not None
    again.release()


def test_threads_racing_for_one_slot_have_one_winner(tmp_path: Path, either: str) -> None:
    """Of eight threads exactly one takes the slot."""
    path = tmp_path / "locks"
    start = threading.Barrier(8)
    found: list[Hold | None] = []

    def race() -> None:
        start.wait(PATIENCE)
        found.append(Hold.take(path, 7))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [hold for hold in found if hold is not None]
    assert len(winners) == 1
    winners[0].release()


def test_the_gate_lets_one_process_in_at_a_time(tmp_path: Path) -> None:
    """A second process waits at the gate until the first leaves or dies."""
    code = """
        from pathlib import Path
        from treadle.host.locks import Gate
        gate = Gate(Path(sys.argv[1]))
        say(gate.acquire(blocking=False))
        say(gate.acquire(blocking=True))
        hear()
    """
    path = tmp_path / "gate"
    gate = Gate(path)
    assert gate.acquire(blocking=False)
    with child(code, path) as other:
        assert other.hear() == "False"
        assert other.silent()
        gate.release()
        assert other.hear() == "True"
        assert not gate.acquire(blocking=False)
        other.kill()
        assert gate.acquire(blocking=True)
    gate.close()


def test_two_gates_conflict_in_one_process(tmp_path: Path, either: str) -> None:
    """Lanes of one process queue at the gate like those of two; a closed gate can be used again."""
    one, two = Gate(tmp_path / "gate"), Gate(tmp_path / "gate")
    assert one.acquire(blocking=True)
    assert not two.acquire(blocking=False)
    with pytest.raises(RuntimeError, match="held already"):
        one.acquire(blocking=False)
    one.close()
    assert two.acquire(blocking=False)
    assert not one.acquire(blocking=False)
    two.release()
    two.release()
    assert one.acquire(blocking=False)
    one.close()
    two.close()


def test_a_forked_child_waits_at_the_gate_like_any_process(tmp_path: Path) -> None:
    """A child forked from inside the gate is not inside, and its exit does not open the gate."""
    code = """
        import os
        from pathlib import Path
        from treadle.host.locks import Gate
        gate = Gate(Path(sys.argv[1]))
        gate.acquire(blocking=True)
        if os.fork() == 0:
            gate.release()
            say(gate.acquire(blocking=False))
            os._exit(0)
        os.wait()
        say("forked")
        hear()
    """
    with child(code, tmp_path / "gate") as other:
        assert other.hear() == "False"
        assert other.hear() == "forked"
        gate = Gate(tmp_path / "gate")
        assert not gate.acquire(blocking=False)
        other.kill()
        until(lambda: gate.acquire(blocking=False))
        gate.close()
