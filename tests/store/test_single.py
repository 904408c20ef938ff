"""Taking one job by its id."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from store.making import SECOND, START, apply, failure, get, put, state, success, take
from treadle.clock import HeldClock
from treadle.model.job import Claimed, JobState
from treadle.store.ops.rescue import rescue
from treadle.store.ops.single import claim_one
from treadle.store.store import Store


def take_one(store: Store, job_id: int, **more: Any) -> Claimed | None:
    """Take a job for a worker of epoch 1."""
    return store.run(partial(claim_one, **{"job_id": job_id, "epoch": 1, "crash_cap": 3, **more}))


def test_it_takes_what_a_claim_would_take(store: Store) -> None:
    """The same job comes in the same form as from a claim, but for its lease; and it is settled like that."""
    options = {"priority": 5, "queue": "q", "extra": '{"meta":{"a":1}}', "version": 2}
    first, second = put(store, 2, **options)
    (claimed,) = take(store, 1)
    taken = take_one(store, second)
    assert taken is not None
    assert taken == claimed._replace(id=second, lease=taken.lease)
    assert taken.lease > claimed.lease
    assert (get(store, second).attempt, get(store, second).state) == (1, JobState.RUNNING)
    assert apply(store, success(claimed), success(taken)) == []
    assert state(store, first) is state(store, second) is JobState.SUCCEEDED


def test_it_takes_a_scheduled_job_early(store: Store) -> None:
    """Neither its due time nor a place behind others keeps it."""
    put(store, 3)
    (late,) = put(store, delay=60 * SECOND)
    assert take_one(store, late) is not None


def test_an_attempt_may_be_made_up(store: Store) -> None:
    """The number of the attempt and of failures are what is asked for."""
    (job_id,) = put(store)
    taken = take_one(store, job_id, attempt=4, failures=2)
    assert taken is not None
    assert (taken.attempt, taken.failures) == (4, 2)
    assert apply(store, failure(taken)) == []
    assert (get(store, job_id).attempt, get(store, job_id).failures) == (4, 3)


def test_others_states_are_left_alone(store: Store) -> None:
    """A running, an ended and a missing job give nothing."""
    (job_id,) = put(store)
    (claimed,) = take(store)
    assert take_one(store, job_id) is None
    apply(store, success(claimed))
    assert take_one(store, job_id) is None
    assert take_one(store, 99) is None


@pytest.mark.parametrize(("cap", "after"), [(3, JobState.READY), (0, JobState.HELD)])
def test_it_is_rescued_like_any_other(store: Store, cap: int, after: JobState) -> None:
    """Its lease belongs to a registration, and its crash cap is kept for whoever rescues it."""
    (job_id,) = put(store)
    taken = take_one(store, job_id, epoch=7, crash_cap=cap)
    assert taken is not None
    store.run(lambda session: rescue(session, 7, "w", "crash: it died", begun=[taken.lease]))
    assert (state(store, job_id), get(store, job_id).crashes) == (after, 1)


def test_times_are_the_clocks(store: Store, clock: HeldClock) -> None:
    """The attempt begins at the store's moment."""
    (job_id,) = put(store)
    clock.advance(seconds=5)
    taken = take_one(store, job_id)
    assert taken is not None
    assert taken.claimed_at == START + 5 * SECOND
