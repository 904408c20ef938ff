"""What a running attempt writes about itself."""

from __future__ import annotations

from functools import partial

import pytest

from store.making import SECOND, START, apply, count, failure, get, one, put, success, take
from treadle.clock import HeldClock, to_datetime
from treadle.errors import LeaseLost
from treadle.model.job import Claimed, Progress
from treadle.store.ops import notes
from treadle.store.store import Store


def progress(store: Store, claimed: Claimed, fraction: float, message: str) -> None:
    """Report progress."""
    store.run(partial(notes.progress, lease=claimed.lease, fraction=fraction, message=message))


def checkpoint(store: Store, claimed: Claimed, data: bytes, codec: str = "json") -> None:
    """Store a checkpoint."""
    store.run(partial(notes.checkpoint, lease=claimed.lease, codec=codec, data=data))


def test_progress_is_kept(store: Store, clock: HeldClock) -> None:
    """Fraction, words and moment are read back with the job."""
    claimed = one(store)
    clock.advance(seconds=2)
    progress(store, claimed, 0.4, "page 4")
    assert get(store, claimed.id).progress == Progress(
        fraction=0.4, message="page 4", updated_at=to_datetime(START + 2 * SECOND)
    )


def test_the_last_progress_wins(store: Store) -> None:
    """A job has one progress."""
    claimed = one(store)
    progress(store, claimed, 0.1, "a")
    progress(store, claimed, 0.2, "b")
    found = get(store, claimed.id).progress
    assert found is not None
    assert (found.fraction, found.message, count(store, "treadle_progress")) == (0.2, "b", 1)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)), b"x" * 900_000])
def test_a_checkpoint_is_kept(store: Store, data: bytes) -> None:
    """A checkpoint comes back byte for byte with its codec."""
    claimed = one(store)
    checkpoint(store, claimed, data, "msgpack")
    assert store.read(partial(notes.last_checkpoint, job_id=claimed.id)) == ("msgpack", data)


def test_the_last_checkpoint_wins(store: Store) -> None:
    """A job has one checkpoint."""
    claimed = one(store)
    checkpoint(store, claimed, b"1")
    checkpoint(store, claimed, b"2")
    assert store.read(partial(notes.last_checkpoint, job_id=claimed.id)) == ("json", b"2")


def test_a_job_without_a_checkpoint_has_none(store: Store) -> None:
    """Nothing stored, nothing found."""
    assert store.read(partial(notes.last_checkpoint, job_id=one(store).id)) is None


def test_a_checkpoint_outlives_its_attempt(store: Store) -> None:
    """The next attempt finds what the last one stored."""
    claimed = one(store)
    checkpoint(store, claimed, b"half")
    apply(store, failure(claimed, due_at=START))
    (again,) = take(store)
    assert store.read(partial(notes.last_checkpoint, job_id=again.id)) == ("json", b"half")


def test_notes_of_one_job_leave_others_alone(store: Store) -> None:
    """The lease names the job."""
    put(store, 2)
    first, second = take(store)
    progress(store, first, 0.5, "a")
    checkpoint(store, second, b"2")
    assert get(store, second.id).progress is None
    assert store.read(partial(notes.last_checkpoint, job_id=first.id)) is None


def test_a_settled_attempt_writes_nothing_more(store: Store) -> None:
    """After the outcome both raise LeaseLost and change nothing."""
    claimed = one(store)
    progress(store, claimed, 0.5, "a")
    checkpoint(store, claimed, b"1")
    apply(store, success(claimed))
    with pytest.raises(LeaseLost, match=f"Lease {claimed.lease} no longer owns"):
        progress(store, claimed, 0.9, "late")
    with pytest.raises(LeaseLost, match="Nothing was written"):
        checkpoint(store, claimed, b"late")
    found = get(store, claimed.id).progress
    assert found is not None
    assert found.message == "a"
    assert store.read(partial(notes.last_checkpoint, job_id=claimed.id)) == ("json", b"1")


def test_a_superseded_attempt_cannot_write_for_its_successor(store: Store) -> None:
    """The old lease is lost although the job runs again."""
    claimed = one(store)
    apply(store, failure(claimed, due_at=START))
    take(store)
    with pytest.raises(LeaseLost):
        checkpoint(store, claimed, b"stale")
    assert store.read(partial(notes.last_checkpoint, job_id=claimed.id)) is None
