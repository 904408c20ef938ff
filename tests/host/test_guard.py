"""Guards around SQLite's own locks, on scratch databases in processes of their own."""

from __future__ import annotations

import os
import sqlite3
import types
from pathlib import Path

import pytest

from host.children import child
from treadle.host.guard import find_second_sqlite, process_name, second_sqlite_library, write_lock_holder
from treadle.host.locktable import Range, read_locks

IDLE = """
    import os, sqlite3
    from pathlib import Path
    from treadle.host.guard import sqlite_locks, write_lock_holder
    db = Path(sys.argv[1])
    def connect():
        connection = sqlite3.connect(db, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("CREATE TABLE IF NOT EXISTS t(x)")
        connection.execute("SELECT count(*) FROM t").fetchall()
        return connection
    def state():
        return sqlite_locks(db).name
"""


def run(tmp_path: Path, code: str) -> list[str]:
    """Run *code* after IDLE; the words it says until it says "end"."""
    with child(IDLE + code + '\n    say("end")\n', tmp_path.resolve() / "jobs.db") as other:
        words: list[str] = []
        while (word := other.hear()) != "end":
            assert word, f"the child died after {words}"
            words.append(word)
        return words


def test_an_idle_connection_holds_its_locks(tmp_path: Path) -> None:
    """HELD with one connection, several, in a write transaction, and after a second one closed."""
    code = """
    a = connect(); say(state())
    b = connect(); say(state())
    b.execute("BEGIN IMMEDIATE"); say(state())
    b.execute("ROLLBACK"); b.close(); say(state())
    """
    assert run(tmp_path, code) == ["HELD"] * 4


@pytest.mark.parametrize("suffix", ["", "-shm"])
def test_a_plain_open_and_close_is_detected(tmp_path: Path, suffix: str) -> None:
    """Closing a hand-opened descriptor of the database or its -shm drops SQLite's locks: LOST."""
    code = f"""
    a = connect(); say(state())
    open(str(db) + "{suffix}", "rb").close(); say(state())
    """
    assert run(tmp_path, code) == ["HELD", "LOST"]


def test_loss_is_detected_beside_other_processes(tmp_path: Path) -> None:
    """Another process's shared locks neither hide a loss nor look like one."""
    waiting = IDLE + '    a = connect()\n    say("open")\n    hear()\n'
    with child(waiting, tmp_path.resolve() / "jobs.db") as neighbour:
        assert neighbour.hear() == "open"
        code = """
    a = connect(); say(state())
    open(db, "rb").close(); say(state())
        """
        assert run(tmp_path, code) == ["HELD", "LOST"]


def test_a_removed_shm_file_is_a_loss(tmp_path: Path) -> None:
    """Without its name the -shm file guards nothing any more."""
    code = """
    a = connect(); say(state())
    os.unlink(str(db) + "-shm"); say(state())
    """
    assert run(tmp_path, code) == ["HELD", "LOST"]


def test_without_a_connection_nothing_is_known(tmp_path: Path) -> None:
    """No file, no connection, or a connection not in WAL mode: UNKNOWN."""
    code = """
    say(state())
    a = connect(); a.close(); say(state())
    a = connect(); a.execute("PRAGMA journal_mode=DELETE").fetchall(); say(state())
    """
    assert run(tmp_path, code) == ["UNKNOWN"] * 3


def test_the_check_itself_drops_no_lock(tmp_path: Path) -> None:
    """A hundred checks and questions for the writer leave everything held."""
    code = """
    a = connect()
    for _ in range(100): state(); write_lock_holder(db)
    say(state())
    """
    assert run(tmp_path, code) == ["HELD"]


def test_the_writer_is_found_in_this_process(tmp_path: Path) -> None:
    """Our own open write transaction is named by our own pid; outside of it nobody is."""
    code = """
    a = connect(); b = connect()
    say(write_lock_holder(db))
    a.execute("BEGIN"); a.execute("SELECT * FROM t").fetchall(); say(write_lock_holder(db))
    a.execute("ROLLBACK")
    a.execute("BEGIN IMMEDIATE"); say(write_lock_holder(db) == os.getpid())
    a.execute("COMMIT"); say(write_lock_holder(db))
    """
    assert run(tmp_path, code) == ["None", "None", "True", "None"]


@pytest.mark.parametrize("connected", [False, True])
def test_the_writer_is_found_in_another_process(tmp_path: Path, *, connected: bool) -> None:
    """The other's pid is found with and without a connection of our own."""
    path = tmp_path.resolve() / "jobs.db"
    code = """
    a = connect(); a.execute("BEGIN IMMEDIATE"); say("writing")
    hear(); a.execute("COMMIT"); say("done")
    hear()
    """
    assert write_lock_holder(path) is None
    with child(IDLE + code, path) as writer:
        assert writer.hear() == "writing"
        own = sqlite3.connect(path) if connected else None
        if own is not None:
            own.execute("SELECT * FROM t").fetchall()
        assert write_lock_holder(path) == writer.pid
        writer.say("commit")
        assert writer.hear() == "done"
        assert write_lock_holder(path) is None
        if own is not None:
            own.close()


def test_a_second_library_is_named() -> None:
    """Known modules and a second mapped libsqlite3 are reported with the remedy; a stand-in is not."""
    standard = types.ModuleType("sqlite3")
    for name in ("apsw", "pysqlite3", "sqlean", "sqlcipher3", "libsql"):
        found = second_sqlite_library({"sqlite3": standard, name: object()}, None)
        assert found is not None
        assert f"module {name} " in found
    stand_in = types.ModuleType("pysqlite3.dbapi2")
    assert second_sqlite_library({"sqlite3": stand_in, "pysqlite3": stand_in}, None) is None
    assert second_sqlite_library({"sqlite3": standard, "json": object()}, "") is None


def test_only_distinct_mapped_libraries_count() -> None:
    """Segments of one file are one library; a copy under another inode is a second one."""
    one = (
        "7f00-7f01 r-xp 00000000 fe:00 111                        /usr/lib/libsqlite3.so.0.8.6\n"
        "7f01-7f02 rw-p 00010000 fe:00 111                        /usr/lib/libsqlite3.so.0.8.6\n"
        "7f03-7f04 rw-p 00000000 00:00 0 \n"
        "7f05-7f06 r-xp 00000000 fe:00 333                        /home/me/libsqlite3-notes.txt\n"
    )
    two = one + "7f07-7f08 r-xp 00000000 fe:00 222      /opt/my app/libsqlite3-5f2a.so.0 (deleted)\n"
    assert second_sqlite_library({}, one) is None
    found = second_sqlite_library({}, two)
    assert found is not None
    assert "/opt/my app/libsqlite3-5f2a.so.0" in found


def test_this_process_has_one_library() -> None:
    """The real maps and modules can be read and hold one SQLite."""
    assert sqlite3.sqlite_version
    assert find_second_sqlite() is None


def test_the_lock_table_is_read() -> None:
    """Granted POSIX locks are rows; waiting ones, flock and description locks are not."""
    text = (
        "1: POSIX  ADVISORY  WRITE 2345 fe:1a:12345 120 120\n"
        "1: -> POSIX  ADVISORY  WRITE 99 fe:1a:12345 120 120\n"
        "2: FLOCK  ADVISORY  WRITE 7 fe:1a:77 0 EOF\n"
        "3: OFDLCK ADVISORY  WRITE -1 fe:1a:77 0 0\n"
        "4: POSIX  ADVISORY  READ 8 00:31:9 100 EOF\n"
    )
    rows = list(read_locks(text))
    assert [(row.pid, row.device, row.inode, row.writes) for row in rows] == [
        (2345, (0xFE, 0x1A), 12345, True),
        (8, (0, 0x31), 9, False),
    ]
    assert [row.meets(Range(120, 1)) for row in rows] == [True, True]
    assert [row.meets(Range(121, 5)) for row in rows] == [False, True]
    assert [row.meets(Range(90, 10)) for row in rows] == [False, False]


def test_processes_are_named_for_people() -> None:
    """The name holds the pid and the command; odd letters cannot forge a line, unknown pids stay numbers."""
    with child("hear()", "evil\nline \x1b[31m") as other:
        name = process_name(other.pid)
    assert name.startswith(f"pid {other.pid} (python")
    assert name.isprintable()
    assert len(name) < 90
    assert process_name(2**22 + 1) == f"pid {2**22 + 1}"
    assert f"pid {os.getpid()} (" in process_name(os.getpid())
