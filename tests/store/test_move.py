"""Moving a store: everything arrives, numbers go on, conflicts are refused, and a kill at any page loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import postgres
import treadle
from store.making import apply, change, count, failure, get, job, put, register, success, take
from treadle.errors import MoveRefused, StoreBusy, StoreError, StoreMoved
from treadle.model.job import JobState
from treadle.store import move as moves
from treadle.store.backup import backup
from treadle.store.move import Wish, give_up, move
from treadle.store.ops import copying, logs, meta, moving, notes, pauses, sequences
from treadle.store.options import StoreOptions
from treadle.store.session import Row
from treadle.store.store import Store
from treadle.store.verify import verify

FAST = StoreOptions(durability="normal")
WISH = Wish(wait=5)
PATHS = os.pathsep.join((str(Path(treadle.__file__).parents[1]), str(Path(__file__).parents[1])))
WAYS = [("file", "server"), ("server", "file"), ("file", "file"), ("server", "server"), ("server 15", "server")]


@contextmanager
def opened(kind: str, path: Path) -> Iterator[Store]:
    """A new store: a file, or a schema on a server, of a major version when that is said."""
    version = kind.partition(" ")[2]
    with ExitStack() as stack:
        made = f"sqlite:///{path}" if kind == "file" else stack.enter_context(postgres.database(version))
        store = Store(made, FAST)
        stack.callback(store.close)
        yield store


@pytest.fixture(params=WAYS, ids=" to ".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two new stores, of each combination of kinds."""
    here, there = request.param
    with opened(here, tmp_path / "a.db") as source, opened(there, tmp_path / "b.db") as target:
        yield source, target


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two new files."""
    with opened("file", tmp_path / "a.db") as source, opened("file", tmp_path / "b.db") as target:
        yield source, target


def fill(store: Store, jobs: int = 30) -> None:
    """Rows in every table: jobs of all kinds, with bytes and letters of all kinds, and nothing that runs."""
    register(store, 1, epoch=store.run(partial(sequences.burn, name="epoch", count=1))[0])
    put(store, jobs, tags=("vip", "ä"))
    store.insert([job(bytes(range(256)) * 4, codec="msgpack", queue="schnell", priority=-5), job(b"x" * 300_000)])
    put(store, 3, delay=60_000_000, expires_in=90_000_000)
    one, two, *others = take(store, 6)
    store.run(partial(notes.progress, lease=two.lease, fraction=0.1, message="a tenth: ✓"))
    store.run(partial(notes.checkpoint, lease=two.lease, codec="json", data=b"[1,2]"))
    lines = [logs.LogLine(number, 20, "job", f"line {number} with a \N{SNOWMAN} and a \0 in it") for number in range(7)]
    store.run(partial(logs.write, lines=[(one.lease, lines)]))
    apply(store, success(one, data=b"\x00\xff", codec="msgpack"), failure(two, immediate="ValueError", message="nö\0"))
    apply(store, *[success(each) for each in others])
    store.run(partial(pauses.pause, kind="queue", name="mail", by="ada", reason="why", until=None))
    store.run(partial(meta.declare_queue, name="capped", max_length=5, when_full="wait"))
    change(store, "DELETE FROM treadle_workers")


def contents(store: Store, target: Store | None = None) -> dict[str, list[Row]]:
    """Every row that moves, as *target* keeps it."""
    found: dict[str, list[Row]] = {}
    for table in copying.TABLES:
        rows, after = [], None
        while page := store.read(partial(copying.page, table=table, after=after)):
            after = copying.key_of(table, page[-1])
            rows += [(target or store).engine.kept(row) for row in page]
        found[table.name] = rows
    return found


def test_everything_arrives(pair: tuple[Store, Store]) -> None:
    """Every row of every table, and the name of the store; both ends keep their promises; the source takes nothing."""
    source, target = pair
    fill(source)
    before = contents(source, target)
    assert all(before.values())
    name = source.read(meta.store_id)
    done = move(source, target, WISH, lambda _: None)
    assert contents(target) == before == contents(source, target)
    assert done.rows == {table: len(rows) for table, rows in before.items()}
    assert target.read(meta.store_id) == name
    for store in pair:
        assert [verdict for verdict in verify(store) if not verdict.sound] == []
    with pytest.raises(StoreMoved, match="moved to"):
        put(source)
    with pytest.raises(StoreMoved):
        take(source)
    with pytest.raises(MoveRefused, match=r"moved to .* already"):
        move(source, target, WISH, lambda _: None)


def test_numbers_go_on(pair: tuple[Store, Store]) -> None:
    """Ids, leases, epochs and places that come are beyond all that the source has given, used or not."""
    source, target = pair
    fill(source)
    given = {name: source.run(partial(sequences.burn, name=name, count=2))[-1] for name in sequences.NAMES}
    last = max(row[0] for table in ("treadle_attempts", "treadle_logs") for row in contents(source)[table])
    change(source, "DELETE FROM treadle_attempts")  # pruned: a reader of places has passed them all the same
    change(source, "DELETE FROM treadle_logs")
    move(source, target, WISH, lambda _: None)
    assert put(target)[0] > given["job"]
    register(target, 1, epoch=target.run(partial(sequences.burn, name="epoch", count=1))[0])
    claimed = take(target, 1)[0]
    assert claimed.lease > given["lease"]
    target.run(partial(logs.write, lines=[(claimed.lease, [logs.LogLine(1, 20, "job", "later")])]))
    apply(target, success(claimed))
    new = [contents(target)[table][-1][0] for table in ("treadle_attempts", "treadle_logs")]
    assert min(new) > last


def test_there_and_back(tmp_path: Path) -> None:
    """From a file to a server and on into another file: nothing is different, and each step closes the last place."""
    with ExitStack() as stack:
        first, last = (stack.enter_context(opened("file", tmp_path / name)) for name in ("a.db", "c.db"))
        server = stack.enter_context(opened("server", tmp_path))
        fill(first)
        before = contents(first, server)
        move(first, server, WISH, lambda _: None)
        move(server, last, WISH, lambda _: None)
        assert contents(last) == before
        with pytest.raises(StoreMoved, match=r"c\.db"):
            put(server)
        with pytest.raises(MoveRefused, match="old jobs"):
            move(last, server, WISH, lambda _: None)
        with pytest.raises(MoveRefused, match="old jobs"):
            move(last, first, WISH, lambda _: None)
        put(last)


def test_every_table_moves_or_is_known_to_stay(tmp_path: Path) -> None:
    """A table or column that a migration adds has to be in the list of what moves; both kinds of store have all."""
    known = {table.name: set(table.columns) for table in copying.TABLES}
    with opened("file", tmp_path / "a.db") as file, opened("server", tmp_path) as server:
        here = file.read(lambda s: s.rows(
            "SELECT m.name, c.name FROM sqlite_master m CROSS JOIN pragma_table_info(m.name) c"
            " WHERE m.type = 'table' AND m.name GLOB 'treadle_*'"
        ))  # fmt: skip
        there = server.read(lambda s: s.rows(
            "SELECT table_name, column_name FROM information_schema.columns c JOIN information_schema.tables t"
            " USING (table_schema, table_name) WHERE table_schema = 'treadle' AND table_type = 'BASE TABLE'"
        ))  # fmt: skip
    for rows in (here, there):
        found: dict[str, set[str]] = {}
        for table, column in rows:
            found.setdefault(table, set()).add(column)
        assert {table: columns for table, columns in found.items() if table not in copying.STAYS} == known


def test_pages_are_bounded(files: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has so many rows, and so many bytes unless a single row has more; none is skipped or read twice."""
    source, _ = files
    fill(source)
    monkeypatch.setattr(copying, "PAGE_ROWS", 7)
    monkeypatch.setattr(copying, "PAGE_BYTES", 5000)
    table = next(table for table in copying.TABLES if table.name == "treadle_payloads")
    pages, after = [], None
    while page := source.read(partial(copying.page, table=table, after=after)):
        after = copying.key_of(table, page[-1])
        pages.append(page)
    assert len(pages) > 5
    assert [row[0] for page in pages for row in page] == sorted(row[0] for page in pages for row in page)
    assert all(len(page) <= 7 for page in pages)
    sizes = [(len(page), sum(len(row[2]) for row in page)) for page in pages]
    assert all(size <= 5000 or rows == 1 for rows, size in sizes)
    assert sum(rows for rows, _ in sizes) == count(source, "treadle_payloads")


# Refused ----------------------------------------------------------------------------------------


def test_a_target_with_anything_in_it_is_refused(pair: tuple[Store, Store]) -> None:
    """A job, a pause, a worker: both stores stay as they were."""
    source, target = pair
    fill(source)
    put(target)
    with pytest.raises(MoveRefused, match="not empty: it has rows in treadle_jobs"):
        move(source, target, WISH, lambda _: None)
    change(target, "DELETE FROM treadle_jobs")
    register(target, 1, epoch=1)
    with pytest.raises(MoveRefused, match="registered workers"):
        move(source, target, WISH, lambda _: None)
    assert "registered workers" in str(moves.look(source, target).conflict)
    put(source)
    put(target)


def test_a_store_is_not_moved_onto_itself(tmp_path: Path) -> None:
    """The same file as both ends, empty as it may be."""
    with opened("file", tmp_path / "a.db") as one, opened("file", tmp_path / "a.db") as same:
        with pytest.raises(MoveRefused, match="both source and target"):
            move(one, same, WISH, lambda _: None)
        put(one)


def test_a_backup_copy_is_neither_source_nor_target(files: tuple[Store, Store], tmp_path: Path) -> None:
    """Its original may live."""
    source, target = files
    copied = Store(f"sqlite:///{backup(source, tmp_path / 'copy.db')}", FAST)
    try:
        with pytest.raises(MoveRefused, match="backup copy"):
            move(copied, target, WISH, lambda _: None)
        with pytest.raises(MoveRefused, match="backup copy"):
            move(source, copied, WISH, lambda _: None)
    finally:
        copied.close()


def test_running_jobs_that_do_not_end_are_waited_for_and_then_refused(pair: tuple[Store, Store]) -> None:
    """Both stores are as they were: jobs are claimed, stored and moved later on."""
    source, target = pair
    put(source, 2)
    (claimed,) = take(source, 1)
    with pytest.raises(MoveRefused, match=r"1 jobs still ran after 0\.2 s"):
        move(source, target, Wish(wait=0.2), lambda _: None)
    put(target)
    change(target, "DELETE FROM treadle_jobs")
    assert len(take(source)) == 1
    apply(source, success(claimed))
    with pytest.raises(MoveRefused, match="still ran"):
        move(source, target, Wish(wait=0), lambda _: None)
    assert source.read(moving.read) is None


def test_jobs_of_nobody_are_taken_when_asked(pair: tuple[Store, Store]) -> None:
    """A job whose worker is not registered any more is taken back, charged with a crash, and moves."""
    source, target = pair
    (number,) = put(source)
    take(source, 1)
    move(source, target, Wish(wait=5, take_running=True), lambda _: None)
    found = get(target, number)
    assert (found.state, found.crashes) == (JobState.READY, 1)


# Interrupted ------------------------------------------------------------------------------------

VICTIM = """
import sys
from functools import partial
from treadle.host import failpoints
from treadle.store import move as moves
from treadle.store.ops import copying
from treadle.store.options import StoreOptions
from treadle.store.store import Store
source, target, point, at = sys.argv[1:]
copying.PAGE_ROWS = 10
stores = [Store(url, StoreOptions(durability="normal")) for url in (source, target)]
failpoints.arm(failpoints.kill_self, point, at=int(at))
moves.move(*stores, moves.Wish(wait=5), lambda _: None)
"""
POINTS = [
    ("begin_filling.*after_commit", 1), ("begin_draining.*before_commit", 1), ("begin_draining.*after_commit", 1),
    ("close_source.*before_commit", 1), ("close_source.*after_commit", 1), ("store_page.*before_commit", 1),
    ("store_page.*after_commit", 3), ("store_page.*after_begin", 6), ("store_page.*after_commit", 12),
    ("open_target.*before_commit", 1), ("open_target.*after_commit", 1), ("leave.*after_begin", 1),
    ("leave.*after_commit", 1),
]  # fmt: skip


def killed(source: str, target: str, point: str, at: int) -> None:
    """A process that moves, and is killed when it reaches *point* for the *at*-th time."""
    ended = subprocess.run(
        [sys.executable, "-c", VICTIM, source, target, point, str(at)], env={"PYTHONPATH": PATHS}, timeout=60,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -9, ended.stderr


@pytest.mark.parametrize(("point", "at"), POINTS)
@pytest.mark.parametrize("there", ["file", "server"])
def test_killed_at_any_point_the_next_run_goes_on(tmp_path: Path, there: str, point: str, at: int) -> None:
    """In between at most one of the two takes jobs; in the end every row is there once."""
    with ExitStack() as stack:
        source = stack.enter_context(opened("file", tmp_path / "a.db"))
        if there == "file":
            url = f"sqlite:///{tmp_path / 'b.db'}"
        else:
            url = stack.enter_context(postgres.database())
        target = Store(url, FAST)
        stack.callback(target.close)
        fill(source)
        before = contents(source, target)
        killed(f"sqlite:///{tmp_path / 'a.db'}", url, point, at)
        if point.startswith("leave") and point.endswith("after_commit"):
            with pytest.raises(MoveRefused, match="already"):
                move(source, target, WISH, lambda _: None)
        else:
            assert not (takes_jobs(source) and takes_jobs(target))
            move(source, target, WISH, lambda _: None)
        assert contents(target) == before
        assert [verdict for verdict in verify(target) if not verdict.sound] == []
        assert takes_jobs(target)
        assert not takes_jobs(source)


def takes_jobs(store: Store) -> bool:
    """True when jobs can be started in a store that has some to start; what was started is given back."""
    first = "SELECT min(id) FROM treadle_jobs WHERE state = 3"
    try:
        change(store, f"UPDATE treadle_jobs SET state = 5, lease = 99999 WHERE id = ({first})")
    except StoreError:
        return False
    change(store, "UPDATE treadle_jobs SET state = 3, lease = NULL WHERE state = 5")
    return count(store, "treadle_jobs") > 0


def test_a_second_run_beside_the_first_is_refused(files: tuple[Store, Store]) -> None:
    """Both would copy the same page; the one that comes second is told, and nothing is doubled."""
    source, target = files
    fill(source)
    mark = moving.Mark(id="x", role="target", other="a", store_id=source.read(meta.store_id))
    target.run(partial(moving.write, mark=mark))
    target.run(partial(moving.advance, mark=mark, following=moving.Mark(**{**fields(mark), "table": "treadle_jobs"})))
    with pytest.raises(StoreBusy, match="Another 'treadle move'"):
        target.run(partial(moving.advance, mark=mark, following=mark))


def fields(mark: moving.Mark) -> dict[str, Any]:
    """What a mark is made of."""
    return {name: getattr(mark, name) for name in mark.__slots__}


@pytest.mark.parametrize(("point", "at"), [POINTS[0], POINTS[2], POINTS[6], POINTS[9]])
def test_an_unfinished_move_can_be_taken_back(tmp_path: Path, point: str, at: int) -> None:
    """The source works again, the target is empty, and the move can be made anew, elsewhere too."""
    with opened("file", tmp_path / "a.db") as source, opened("server", tmp_path) as target:
        fill(source)
        before = contents(source)
        url = target.engine._url  # type: ignore[attr-defined]
        killed(f"sqlite:///{tmp_path / 'a.db'}", url, point, at)
        give_up(source, target)
        assert contents(source) == before
        assert not any(contents(target).values())
        put(source)
        put(target)
        with opened("file", tmp_path / "b.db") as other:
            move(source, other, WISH, lambda _: None)
            with pytest.raises(MoveRefused, match="is done"):
                give_up(source, other)


def test_another_target_is_refused_while_a_move_is_under_way(tmp_path: Path) -> None:
    """The jobs go where the first run began to bring them."""
    with opened("file", tmp_path / "a.db") as source, opened("file", tmp_path / "c.db") as other:
        fill(source)
        killed(f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}", "store_page.*after_commit", 2)
        with pytest.raises(MoveRefused, match=r"are moving to .*b\.db already"):
            move(source, other, WISH, lambda _: None)
        with opened("file", tmp_path / "b.db") as half, pytest.raises(MoveRefused, match="being filled"):
            move(half, other, WISH, lambda _: None)
        with opened("file", tmp_path / "b.db") as half, pytest.raises(StoreBusy, match="being filled"):
            put(half)


def test_a_difference_is_found_before_anything_is_switched(pair: tuple[Store, Store]) -> None:
    """A row that was changed, lost or added at the target on the way keeps it closed, and can be taken back."""
    source, target = pair
    fill(source)

    def harm(text: str) -> None:
        if text.startswith("treadle_logs"):
            def write(session: Any) -> None:
                session.change("INSERT INTO treadle_meta (name, value) VALUES ('move_page', '')")
                session.change("UPDATE treadle_results SET data = ? WHERE job_id = 1", (b"\x00\xfe",))
                session.change("DELETE FROM treadle_meta WHERE name = 'move_page'")
            target.run(write)

    with pytest.raises(StoreError, match="treadle_results differs"):
        move(source, target, WISH, harm)
    assert not takes_jobs(source)
    assert not takes_jobs(target)
    give_up(source, target)
    assert takes_jobs(source)
