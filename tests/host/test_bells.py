"""Doorbells between processes."""

from __future__ import annotations

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from host.children import PATIENCE, child
from treadle.host.bells import Bell, Ringer
from treadle.host.files import side_folder

LISTENER = """
    from pathlib import Path
    from treadle.host.bells import Bell
    bell = Bell(Path(sys.argv[1]))
    say("ready")
    while True:
        say(bell.wait(None).decode())
"""


def test_a_ring_reaches_a_waiting_process(tmp_path: Path) -> None:
    """A worker in another process hears its token."""
    with child(LISTENER, tmp_path / "bell-1") as worker:
        assert worker.hear() == "ready"
        ringer = Ringer(tmp_path)
        assert ringer.ring(b"x") == 1
        assert worker.hear() == "x"
        ringer.close()


def test_one_ring_reaches_every_bell_and_nothing_else(tmp_path: Path) -> None:
    """All bells of the folder ring, other files are left alone."""
    (tmp_path / "note").write_text("quiet")
    bells = [Bell(tmp_path / f"bell-{number}") for number in range(3)]
    ringer = Ringer(tmp_path)
    assert ringer.ring() == 3
    assert [bell.drain() for bell in bells] == [b"r"] * 3
    assert [bell.drain() for bell in bells] == [b""] * 3
    assert bells[0].wait(0) == b""
    assert (tmp_path / "note").read_text() == "quiet"
    ringer.close()
    for bell in bells:
        bell.close()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_bells_that_come_and_go_are_noticed(tmp_path: Path) -> None:
    """Each ring reaches exactly the bells of that moment, however fast they change."""
    ringer = Ringer(tmp_path)
    for _ in range(50):
        assert ringer.ring() == 0
        bell = Bell(tmp_path / "bell-1")
        assert ringer.ring() == 1
        other = Bell(tmp_path / "bell-2")
        assert ringer.ring(b"s") == 2
        assert bell.drain() == b"rs"
        assert other.drain() == b"s"
        bell.close()
        assert ringer.ring() == 1
        other.close()
    ringer.close()


def test_a_killed_listener_is_struck_off_and_its_file_left(tmp_path: Path) -> None:
    """Nobody there is no error; a new bell under the old name is found again."""
    path = tmp_path / "bell-1"
    ringer = Ringer(tmp_path)
    with child(LISTENER, path) as worker:
        assert worker.hear() == "ready"
        assert ringer.ring() == 1
        worker.kill()
    assert ringer.ring() == 0
    assert path.exists()
    assert Ringer(tmp_path).ring() == 0
    successor = Bell(path)
    assert ringer.ring() == 1
    assert successor.drain() == b"r"
    successor.close()
    ringer.close()


def test_a_full_bell_counts_as_rung(tmp_path: Path) -> None:
    """A worker that does not answer blocks nobody."""
    bell, ringer = Bell(tmp_path / "bell-1"), Ringer(tmp_path)
    for _ in range(100):
        assert ringer.ring(b"r" * 1024) == 1
    assert bell.drain() == b"r" * 65536
    bell.close()
    ringer.close()


def test_sigpipe_at_its_default_kills_nobody(tmp_path: Path) -> None:
    """A program that restored SIGPIPE survives ringing at a dead worker's bell."""
    code = """
        import signal
        from pathlib import Path
        from treadle.host.bells import Ringer
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        ringer = Ringer(Path(sys.argv[1]))
        say(ringer.ring())
        hear()
        say(ringer.ring())
        say(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set() and not signal.sigpending())
    """
    bell = Bell(tmp_path / "bell-1")
    with child(code, tmp_path) as program:
        assert program.hear() == "1"
        bell._drop()  # as death would: the file stays
        program.say("again")
        assert program.hear() == "0"
        assert program.hear() == "True"
    bell.close()


def test_a_bell_is_private_or_follows_its_side_folder(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; in a side folder whoever may use the database may ring."""
    database = tmp_path / "jobs.db"
    database.touch()
    database.chmod(0o660)
    old = os.umask(0o077)
    try:
        plain, shared = Bell(tmp_path / "bell-1"), Bell(side_folder(database) / "bell-1")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "bell-1").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "jobs.db-treadle" / "bell-1").st_mode) == 0o660
    plain.close()
    shared.close()


def test_a_closed_end_says_so(tmp_path: Path) -> None:
    """Use after close is a clear error; a second close is fine."""
    bell, ringer = Bell(tmp_path / "bell-1"), Ringer(tmp_path)
    for end in (bell, ringer, bell, ringer):
        end.close()
    with pytest.raises(ValueError, match="closed"):
        bell.wait(0)
    with pytest.raises(ValueError, match="closed"):
        ringer.ring()


def test_an_old_bell_does_not_remove_its_successor(tmp_path: Path) -> None:
    """Closing a bell whose name another one took leaves that one in place."""
    old = Bell(tmp_path / "bell-1")
    new = Bell(tmp_path / "bell-1")
    old.close()
    ringer = Ringer(tmp_path)
    assert ringer.ring() == 1
    new.close()
    ringer.close()


def test_fork_leaves_the_parents_bell_alone(tmp_path: Path) -> None:
    """A forked child neither answers nor removes the bell, and can ring with its copy of a ringer."""
    code = """
        import os
        from pathlib import Path
        from treadle.host.bells import Bell, Ringer
        folder = Path(sys.argv[1])
        bell, ringer = Bell(folder / "bell-1"), Ringer(folder)
        ringer.ring(b"p")
        bell.drain()
        if os.fork() == 0:
            bell.close()
            say(ringer.ring(b"c"))
            os._exit(0)
        os.wait()
        say(bell.drain().decode())
        say(ringer.ring(b"p"))
        say(bell.drain().decode())
    """
    with child(code, tmp_path) as other:
        assert [other.hear() for _ in range(4)] == ["1", "c", "1", "p"]


def test_threads_share_a_ringer(tmp_path: Path) -> None:
    """No token is lost or doubled when four threads ring at once."""
    bell, ringer = Bell(tmp_path / "bell-1"), Ringer(tmp_path)
    start = threading.Barrier(4)

    def ring(token: bytes) -> None:
        start.wait(PATIENCE)
        for _ in range(200):
            ringer.ring(token)

    threads = [threading.Thread(target=ring, args=(token,)) for token in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = bell.drain()
    assert {token: heard.count(token) for token in b"abcd"} == dict.fromkeys(b"abcd", 200)
    bell.close()
    ringer.close()


def test_a_signal_does_not_end_the_wait(tmp_path: Path) -> None:
    """A handled signal during a wait is not a ring."""
    code = """
        import signal
        from pathlib import Path
        from treadle.host.bells import Bell
        bell = Bell(Path(sys.argv[1]))
        signal.signal(signal.SIGUSR1, lambda *_: say("signal"))
        say("ready")
        say(bell.wait(None).decode())
    """
    with child(code, tmp_path / "bell-1") as worker:
        assert worker.hear() == "ready"
        os.kill(worker.pid, signal.SIGUSR1)
        assert worker.hear() == "signal"
        Ringer(tmp_path).ring(b"now")
        assert worker.hear() == "now"
