"""Opening a file: folders, modes, migrations, and files that are not what they should be."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from host.children import child
from store.making import PATIENCE, count, job, put, take
from treadle.clock import SystemClock
from treadle.errors import ConfigurationError, SchemaTooNew, StoreBusy, StoreUnusable
from treadle.host.process import spawn_python
from treadle.store.migrate import Migration, migrate, migrations, pending_sql, statements, version
from treadle.store.opening import file_of
from treadle.store.options import StoreOptions
from treadle.store.store import Store

SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"

OPENER = """
    from treadle.store.store import Store
    say("ready")
    hear()
    store = Store("sqlite:///" + sys.argv[1])
    say(str(store.read(lambda s: s.value("SELECT count(*) FROM treadle_migrations"))))
    store.close()
"""
GATE_HOLDER = """
    from pathlib import Path
    from treadle.host.locks import Gate
    gate = Gate(Path(sys.argv[1]))
    gate.acquire(blocking=True)
    say("held")
    hear()
"""
# The process kills itself before its nth statement: every moment of a migration, without luck.
KILLED = """
import os, signal, sqlite3, sys
left = int(sys.argv[2])

class Mortal(sqlite3.Connection):
    def execute(self, *args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*args)

real = sqlite3.connect
sqlite3.connect = lambda *args, **more: real(*args, **{**more, "factory": Mortal})
from treadle.store.store import Store
Store("sqlite:///" + sys.argv[1])
print("alive")
"""


@contextmanager
def opened(path: Path, **options: object) -> Iterator[Store]:
    """A store for the length of the block."""
    store = Store(f"sqlite:///{path}", StoreOptions(**{"durability": "normal", **options}))  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


@contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that knows nothing of Treadle."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A process whose files are open to everybody unless somebody cares."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


# --- addresses --------------------------------------------------------------------------------------


def test_missing_folders_are_created(tmp_path: Path) -> None:
    """A store may be opened in a folder that does not exist yet."""
    with opened(tmp_path / "a" / "b" / "jobs.db") as store:
        assert len(put(store)) == 1


@pytest.mark.parametrize("name", ["jobs?mode=ro#x.db", "50%20 off.db", "ünï ©ode.db", "-wal", "a'b\".db", "a;b.db"])
def test_any_file_name_is_a_file_name(tmp_path: Path, name: str) -> None:
    """Nothing in a name is read as an option or an escape."""
    with opened(tmp_path / name) as store:
        assert len(put(store)) == 1
    assert (tmp_path / name).stat().st_size > 0


def test_a_link_and_its_file_are_one_store(tmp_path: Path) -> None:
    """Symlinks are resolved, so locks and log lie beside the real file."""
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with opened(tmp_path / "link.db") as one, opened(tmp_path / "real.db") as other:
        assert one.path == other.path == tmp_path / "real.db"
        put(one)
        assert count(other, "treadle_jobs") == 1


@pytest.mark.parametrize("url", ["", "jobs.db", "sqlite://jobs.db", "sqlite:///", "mysql:///x", "memory:///x"])
def test_what_is_no_store_is_refused(url: str) -> None:
    """The message shows what a store's address looks like."""
    with pytest.raises(ConfigurationError, match=r"sqlite:///jobs\.db"):
        file_of(url)


@pytest.mark.usefixtures("no_umask")
def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Database, log and folders are for their owner only."""
    path = tmp_path / "sub" / "jobs.db"
    with opened(path) as store:
        put(store)
        assert [mode(Path(f"{path}{suffix}")) for suffix in ("", "-wal", "-shm")] == [0o600] * 3
        assert [mode(folder) for folder in (path.parent, Path(f"{path}-treadle"))] == [0o700] * 2
        assert {mode(each) & 0o077 for each in Path(f"{path}-treadle").rglob("*")} == {0}


def test_an_existing_file_keeps_its_mode(path: Path) -> None:
    """A database that its owner shared stays shared."""
    path.touch()
    path.chmod(0o640)
    with opened(path):
        assert mode(path) == 0o640


def test_a_private_store_is_gone_after_close() -> None:
    """A memory:// store leaves no file behind."""
    store = Store("memory://")
    folder = store.path.parent
    put(store)
    assert folder.exists()
    store.close()
    assert not folder.exists()


def test_private_stores_share_nothing() -> None:
    """Two memory:// stores are two databases."""
    one, other = Store("memory://"), Store("memory://")
    put(one)
    assert count(other, "treadle_jobs") == 0
    one.close()
    other.close()


# --- unusable paths ---------------------------------------------------------------------------------


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(StoreUnusable, match="is not a file"), opened(tmp_path):
        pass


def test_another_kind_of_file_is_refused_and_left_alone(path: Path) -> None:
    """A file that is no database is not overwritten."""
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(StoreUnusable, match="not a database"), opened(path):
        pass
    assert path.read_bytes() == b"precious" * 1000


@pytest.mark.parametrize("bad", ["/proc/jobs.db", "/dev/null/jobs.db", "/tmp/" + "x" * 300])
def test_a_path_that_cannot_be_is_refused(bad: str) -> None:
    """Where no file can be created, StoreUnusable says what to check."""
    with pytest.raises(StoreUnusable, match="cannot be created"):
        Store(f"sqlite:///{bad}")


def test_a_path_with_a_nul_is_refused() -> None:
    """Not even the system can name such a file; it is told as one of ours."""
    with pytest.raises((StoreUnusable, ConfigurationError)):
        Store("sqlite:////tmp/a\0b")


def test_a_side_folder_that_is_a_file_is_refused(path: Path) -> None:
    """When the name for locks and bells is taken, StoreUnusable says so."""
    side = Path(f"{path}-treadle")
    side.write_text("mine")
    side.chmod(0o644)
    with pytest.raises(StoreUnusable, match="is not a folder"), opened(path):
        pass
    assert (side.read_text(), mode(side)) == ("mine", 0o644)


def test_a_side_folder_that_leads_nowhere_is_refused(path: Path) -> None:
    """A dangling link under the name for locks and bells is told."""
    Path(f"{path}-treadle").symlink_to(path.parent / "nowhere")
    with pytest.raises(StoreUnusable, match="is not a folder"), opened(path):
        pass


@pytest.mark.parametrize(("name", "is_folder"), [("gate", True), ("waiters", False)])
def test_a_side_folder_with_wrong_contents_is_refused(path: Path, name: str, is_folder: bool) -> None:
    """When a name inside it is taken by something else, StoreUnusable says so."""
    side = Path(f"{path}-treadle")
    side.mkdir()
    (side / name).mkdir() if is_folder else (side / name).touch()
    with pytest.raises(StoreUnusable, match=r"folder of (locks|bells)"), opened(path):
        pass


def test_a_second_name_for_the_file_is_refused(path: Path) -> None:
    """A hard link would get a log of its own, so it is refused with the remedy."""
    with opened(path):
        pass
    os.link(path, f"{path}.second")
    with pytest.raises(StoreUnusable, match="hard link"), opened(path):
        pass


@pytest.mark.parametrize("durability", ["", "FULL", "maybe"])
def test_unknown_durability_is_refused(path: Path, durability: str) -> None:
    """The message lists the choices."""
    with pytest.raises(ConfigurationError, match="full, normal, off"), opened(path, durability=durability):
        pass


# --- migrations -------------------------------------------------------------------------------------


def test_twenty_processes_open_a_new_file_at_once(path: Path) -> None:
    """One of them migrates, none fails."""
    with ExitStack() as stack:
        children = [stack.enter_context(child(OPENER, path)) for _ in range(20)]
        assert {each.hear() for each in children} == {"ready"}
        for each in children:
            each.say("go")
        assert {each.hear() for each in children} == {str(len(migrations()))}


def test_killed_at_any_moment_a_migration_is_whole_or_absent(tmp_path: Path) -> None:
    """After kill -9 before any statement of the first opening, the next opening finds or makes sound tables."""
    with opened(tmp_path / "sound.db") as store:
        sound = store.read(lambda session: session.rows(SCHEMA))
    moments = [*range(2, 75, 5)]
    dead = []
    for moment in moments:
        path = tmp_path / f"{moment}.db"
        process = spawn_python(["-c", KILLED, str(path), str(moment)], stdout=subprocess.DEVNULL)
        dead.append(process.wait(PATIENCE) == -signal.SIGKILL)
        with opened(path) as store:
            assert store.read(lambda session: session.rows(SCHEMA)) == sound
            assert store.read(lambda session: session.value("PRAGMA integrity_check")) == "ok"
            assert len(put(store)) == 1
    assert sum(dead) >= 8


def test_a_half_done_opening_on_one_file_recovers(path: Path) -> None:
    """Killed again and again on the same file, it opens in the end with everything in place."""
    for moment in (13, 15, 20, 30):
        spawn_python(["-c", KILLED, str(path), str(moment)], stdout=subprocess.DEVNULL).wait(PATIENCE)
    with opened(path) as store:
        assert len(put(store)) == 1
        assert count(store, "treadle_migrations") == len(migrations())


def test_opening_again_changes_nothing(path: Path) -> None:
    """A current file is not written to."""
    with opened(path) as store:
        put(store)
        before = store.read(lambda session: session.rows("SELECT * FROM treadle_migrations"))
    with opened(path) as store:
        assert store.read(lambda session: session.rows("SELECT * FROM treadle_migrations")) == before
        assert count(store, "treadle_jobs") == 1


def test_a_newer_file_is_refused(path: Path) -> None:
    """A file that demands a newer reader is refused with both numbers and left alone."""
    with opened(path):
        pass
    with plain(path) as connection:
        connection.execute("INSERT INTO treadle_migrations VALUES (99, '099_future', 7, 0)")
    with pytest.raises(SchemaTooNew, match=r"schema 99, which needs reader 7; this Treadle is reader \d"), opened(path):
        pass


def test_a_newer_file_for_the_same_reader_is_welcome(path: Path) -> None:
    """Additive migrations leave older programs working."""
    with opened(path):
        pass
    with plain(path) as connection:
        connection.execute("INSERT INTO treadle_migrations VALUES (99, '099_more', 1, 0)")
    with opened(path) as store:
        assert len(put(store)) == 1


def test_the_printed_script_makes_the_same_tables(tmp_path: Path) -> None:
    """Applying pending_sql() by hand and migrating give the same schema."""
    with opened(tmp_path / "a.db") as store:
        migrated = store.read(lambda session: session.rows(SCHEMA))
    with plain(tmp_path / "b.db") as connection:
        connection.executescript(pending_sql())
        assert connection.execute(SCHEMA).fetchall() == migrated


def test_a_file_made_by_the_script_can_be_used(path: Path) -> None:
    """After the script, opening migrates nothing, switches to the log, and works."""
    with plain(path) as connection:
        connection.executescript(pending_sql())
    with opened(path, auto_migrate=False) as store:
        assert store.read(lambda session: session.value("PRAGMA journal_mode")) == "wal"
        put(store)
        assert len(take(store)) == 1


def test_nothing_is_pending_after_the_last_version() -> None:
    """The script after the newest version is empty."""
    assert pending_sql(after=migrations()[-1].version) == ""


def test_migrations_are_numbered_in_order() -> None:
    """Versions count up from 1 without a gap."""
    assert [each.version for each in migrations()] == list(range(1, len(migrations()) + 1))


def test_without_auto_migrate_a_new_file_is_refused(path: Path) -> None:
    """The message says which schema is there, which is needed and what to run."""
    with pytest.raises(StoreUnusable, match=r"schema 0.*needs \d+.*treadle migrate"), opened(path, auto_migrate=False):
        pass
    with plain(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_migration_that_fails_leaves_nothing() -> None:
    """Script and version row commit together or not at all."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        steps = [Migration(1, "001_good", "CREATE TABLE a (x);"), Migration(2, "002_bad", "CREATE TABLE b (x); OOPS;")]
        with pytest.raises(sqlite3.OperationalError, match="OOPS"):
            migrate(connection, SystemClock(), steps)
        connection.execute("ROLLBACK")
        assert version(connection) == 0
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_only_missing_migrations_are_applied() -> None:
    """What is recorded is not run again."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        steps = [Migration(1, "001_a", "CREATE TABLE a (x);")]
        assert migrate(connection, SystemClock(), steps) == 1
        steps.append(Migration(2, "002_b", "CREATE TABLE b (x);"))
        assert migrate(connection, SystemClock(), steps) == 1
        assert (version(connection), migrate(connection, SystemClock(), steps)) == (2, 0)


@pytest.mark.parametrize(
    "script",
    [
        "SELECT 1; SELECT 2;",
        "SELECT ';'; SELECT 2;",
        "-- a; b\nSELECT 1;\n-- end\nSELECT 2;",
        "CREATE TRIGGER t AFTER DELETE ON a BEGIN DELETE FROM b; DELETE FROM c; END; SELECT 1;",
    ],
)
def test_scripts_are_cut_into_whole_statements(script: str) -> None:
    """Semicolons in texts, remarks and triggers cut nothing in two."""
    found = list(statements(script))
    assert len(found) == 2
    assert all(sqlite3.complete_statement(each) for each in found)


def test_the_tables_live_beside_the_applications(path: Path) -> None:
    """An application's own database keeps its tables and gets ours."""
    with plain(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.execute("INSERT INTO orders VALUES (1)")
    with opened(path) as store:
        put(store)
        assert count(store, "orders") == 1


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("page_size", [1024, 65536])
def test_files_of_any_encoding_and_page_size_work(path: Path, encoding: str, page_size: int) -> None:
    """An existing database keeps its shape, and arguments come back byte for byte."""
    with plain(path) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE TABLE orders (name TEXT)")
    every = bytes(range(256))
    with opened(path) as store:
        store.insert([job(every, task="päck"), job(b"\0" + every, task="päck"), job(b"", task="päck")])
        assert [each.data for each in take(store, tasks=("päck",))] == [every, b"\0" + every, b""]


def test_opening_does_not_wait_for_ever_at_the_gate(path: Path) -> None:
    """A process that was stopped while it held the gate keeps who makes the tables no longer than lock_timeout."""
    Path(f"{path}-treadle").mkdir()
    with child(GATE_HOLDER, f"{path}-treadle/gate") as holder:
        assert holder.hear() == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreBusy, match=r"kept the gate .* for 0\.3 s"), opened(path, lock_timeout=0.3):
                pass
        finally:
            os.kill(holder.pid, signal.SIGCONT)
        holder.kill()
        with opened(path) as store:
            assert len(put(store)) == 1


def test_opening_a_file_that_is_ready_needs_no_gate(path: Path) -> None:
    """Who holds the gate may wait for the very transaction in which another program opens its store."""
    with opened(path):
        pass
    with child(GATE_HOLDER, f"{path}-treadle/gate") as holder:
        assert holder.hear() == "held"
        with opened(path, lock_timeout=0.3) as store:
            assert count(store, "treadle_jobs") == 0


def test_opening_waits_for_a_foreign_lock_and_gives_up(path: Path) -> None:
    """A program that holds a new file locked is told after lock_timeout."""
    with plain(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match=r"locked by another program for 0\.3 s"), opened(path, lock_timeout=0.3):
            pass
