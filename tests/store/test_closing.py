"""A store that is closed refuses every write of everybody, says why, and is as before once it is open again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from store.making import change, put, register, registration, state, take
from treadle.errors import StoreBusy, StoreMoved
from treadle.model.job import JobState
from treadle.store.ops import closing, logs, meta, notes, pauses, rescue, sequences, workers
from treadle.store.session import Session
from treadle.store.store import Store
from treadle.store.verify import verify

TEXT = "It's at postgresql://db/x?y :z 100% now"


def close(store: Store, degree: str) -> None:
    """Close *store* to a degree."""
    store.run(partial(closing.close, degree=degree, text=TEXT))


def tables(store: Store) -> dict[str, int]:
    """How many rows each table has that a closed store must keep."""
    return {table: store.read(lambda s, t=table: s.value(f"SELECT count(*) FROM {t}")) for table in closing.TABLES}


def apply_in(session: Session) -> object:
    """Settle the running job of lease 1, as a plain statement would."""
    return session.change("UPDATE treadle_jobs SET state = 7, lease = NULL, finished_at = 5 WHERE lease = 1")


WRITES: dict[str, Callable[[Session], Any]] = {
    "register": lambda s: workers.register(s, registration(2), 900),
    "sign of life": lambda s: workers.seen(s, 1, 1),
    "settle": apply_in,
    "progress": lambda s: notes.progress(s, lease=1, fraction=0.5, message="half"),
    "log": lambda s: logs.write(s, lines=[(1, [logs.LogLine(1, 20, "job", "said")])]),
    "pause": lambda s: pauses.pause(s, kind="queue", name="q", by="ada", reason="", until=None),
    "declare": lambda s: meta.declare_queue(s, "q", 5, "refuse"),
    "rescue": lambda s: rescue.rescue(s, 1, "w1", "crash"),
    "plain UPDATE": lambda s: s.change("UPDATE treadle_jobs SET priority = 3"),
    "plain INSERT": lambda s: s.change("INSERT INTO treadle_enqueue (task) VALUES ('mail')"),
    "plain DELETE": lambda s: s.change("DELETE FROM treadle_jobs"),
}


@pytest.fixture
def used(store: Store) -> Store:
    """A store of each kind with a running job (1) of a worker, and a ready one (2)."""
    register(store, 1, epoch=1)
    put(store, 2, tags=("x",))
    take(store, 1)
    return store


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("degree", "error"), [("moved", StoreMoved), ("filling", StoreBusy)])
def test_every_write_is_refused(used: Store, write: str, degree: str, error: type[Exception]) -> None:
    """Whoever writes, whatever it is: nothing is stored, and the words of whoever closed the store are told."""
    before = tables(used)
    close(used, degree)
    with pytest.raises(error) as caught:
        used.run(WRITES[write])
    assert str(caught.value) == TEXT
    assert tables(used) == before
    assert used.read(closing.moved_to) == (TEXT if degree == "moved" else None)


def test_new_jobs_are_refused_one_by_one_and_together(used: Store) -> None:
    """The producers of one shared transaction each hear of it; ids may be burned for nothing."""
    close(used, "moved")
    for number in (1, 5):
        with pytest.raises(StoreMoved, match="It's at"):
            put(used, number)
    assert tables(used)["treadle_jobs"] == 2


def test_a_draining_store_settles_and_takes_jobs_but_starts_none(used: Store) -> None:
    """Outcomes and enqueues are stored; claims and new workers are told to try again later."""
    (running,) = used.read(lambda s: s.rows("SELECT id, lease FROM treadle_jobs WHERE state = 5"))
    close(used, "draining")
    with pytest.raises(StoreBusy, match="It's at"):
        take(used)
    with pytest.raises(StoreBusy):
        register(used, 2, epoch=2)
    put(used, 1)
    used.run(partial(workers.seen, slot=1, epoch=1))
    used.run(apply_in)
    assert state(used, running[0]) is JobState.SUCCEEDED
    used.run(lambda s: workers.leave(s, 1, 1))
    assert tables(used)["treadle_jobs"] == 3


def test_a_late_worker_may_take_its_registration_away(used: Store) -> None:
    """A worker that ends after the store was closed leaves nothing behind."""
    used.run(apply_in)
    close(used, "moved")
    used.run(lambda s: workers.leave(s, 1, 1))
    assert tables(used)["treadle_workers"] == 0


def test_the_gate_is_open_for_its_own_transaction_only(used: Store) -> None:
    """Whoever opens it writes; before and after, and for everybody else, the store is closed."""
    close(used, "filling")

    def write(session: Session) -> None:
        closing.open_gate(session)
        session.change("UPDATE treadle_jobs SET priority = 7")
        closing.shut_gate(session)
        session.change("UPDATE treadle_jobs SET priority = 8")

    with pytest.raises(StoreBusy):
        used.run(write)
    assert used.read(lambda s: s.value("SELECT max(priority) FROM treadle_jobs")) == 0


@pytest.mark.parametrize("degree", ["draining", "moved", "filling"])
def test_an_opened_store_is_as_before(used: Store, degree: str) -> None:
    """No trigger, no function, no mark is left, and everything works; opening an open one does nothing."""
    sound = [verdict.sound for verdict in verify(used)]
    close(used, "draining")
    close(used, degree)
    used.run(closing.reopen)
    used.run(closing.reopen)
    assert [verdict.sound for verdict in verify(used)] == sound
    assert used.read(lambda s: s.value("SELECT count(*) FROM treadle_meta WHERE name IN ('draining', 'moved')")) == 0
    assert len(take(used)) == 1
    change(used, "DELETE FROM treadle_jobs")
    assert used.read(leftovers) == []


def leftovers(session: Session) -> list[object]:
    """Triggers of a closed store that are still there."""
    sql = closing.SERVER_TRIGGERS if session.dialect.shares_rows else closing.TRIGGERS
    return list(session.rows(sql))


@pytest.mark.parametrize("name", sequences.NAMES)
def test_a_store_that_is_filled_gives_no_numbers(store: Store, name: str) -> None:
    """Whoever took some meanwhile would give them to jobs although the move brings jobs of these numbers."""
    before = store.read(partial(sequences.following, name=name))
    close(store, "filling")
    with pytest.raises(StoreBusy, match="It's at"):
        store.run(partial(sequences.burn, name=name, count=3))
    assert store.read(partial(sequences.following, name=name)) == before


def test_numbers_go_on_beyond_what_was_given(store: Store) -> None:
    """A sequence that is told to go on gives no number below, and is never set back."""
    for name in sequences.NAMES:
        given = store.run(partial(sequences.burn, name=name, count=3))[-1]
        following = store.read(partial(sequences.following, name=name))
        assert following > given
        store.run(partial(sequences.go_on, name=name, beyond=1_000_000))
        assert store.run(partial(sequences.burn, name=name, count=1))[0] == 1_000_000
        store.run(partial(sequences.go_on, name=name, beyond=5))
        assert store.run(partial(sequences.burn, name=name, count=1))[0] > 1_000_000
