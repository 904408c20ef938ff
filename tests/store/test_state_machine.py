"""One state machine: the same random steps on SQLite, on PostgreSQL and on a dict, compared after each of them.

``TREADLE_TEST_EXAMPLES`` runs more of them than the suite does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import postgres
from store.making import SECOND
from store.pure import Full, Pure
from store.twins import Twin
from treadle.clock import HeldClock
from treadle.errors import JobNotFound, JobStateError
from treadle.model.job import ENDED, Claimed, JobState, Options
from treadle.model.outcome import Aborted, Cancelled, Crashed, Failed, Held, Outcome, Released, Snoozed, Succeeded
from treadle.model.retry import Retry
from treadle.model.settle import settle
from treadle.store.ops import change
from treadle.store.ops.claim import ClaimRequest
from treadle.store.options import StoreOptions
from treadle.store.store import Store

EXAMPLES = int(os.environ.get("TREADLE_TEST_EXAMPLES", "40"))
STEPS = 40
QUEUES, TASKS = ("a", "b", "c"), ("mail", "fragile", "rare")
CAPS = {"fragile": 0}
POLICY = Retry(1, backoff=5, jitter=0)
SHORT = st.sampled_from([0, 1, 5, 60]).map(lambda seconds: seconds * SECOND)
SLOTS = st.integers(1, 2)
PLACES = st.integers(0, 200)
ENDINGS = st.sampled_from(sorted(ENDED))

BEGUN = st.sets(PLACES, max_size=6)
PAUSABLE = st.tuples(st.just("queue"), st.sampled_from(QUEUES)) | st.tuples(st.just("task"), st.sampled_from(TASKS))

def _mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * (3 * len(others)) + list(others))


options = st.builds(
    Options, task=st.sampled_from(TASKS), queue=st.sampled_from(QUEUES), priority=st.integers(-1, 1),
    delay=_mostly(0, 5 * SECOND), expires_in=_mostly(None, 5 * SECOND, 60 * SECOND),
)  # fmt: skip
outcomes: st.SearchStrategy[Outcome] = st.sampled_from([
    Succeeded(), Succeeded(data=b"1"), Succeeded(reason="result not stored: too large"),
    Failed(("ValueError",), "ValueError", "no", "tb"), Snoozed(5 * SECOND), Released("stop"),
    Released("stop", started=False), Held("cannot be read"), Aborted("never again"), Cancelled("asked to"),
    Crashed("signal 9"),
])  # fmt: skip
changes = st.one_of(
    st.tuples(st.just("cancel"), st.sampled_from(["no more", "wrong"])),
    st.tuples(st.just("retry"), st.just("")),
    st.tuples(st.just("reschedule"), SHORT),
    st.tuples(st.just("set_priority"), st.integers(-1, 1)),
    st.tuples(st.just("move"), st.sampled_from(QUEUES)),
    st.tuples(st.just("delete"), st.just("")),
)
# Steps by kind, so that each kind comes about equally often: name and arguments.
life = st.one_of(
    st.tuples(st.just("register"), SLOTS, st.sets(st.sampled_from(TASKS), min_size=2), BEGUN),
    st.tuples(st.just("seen"), PLACES),
    st.tuples(st.just("leave"), PLACES, BEGUN),
    st.tuples(st.just("rescue_dead"), PLACES, st.booleans(), st.none() | BEGUN),
    st.tuples(st.just("evict"), PLACES),
)
work = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(options, min_size=1, max_size=4)),
    st.tuples(
        st.just("claim"), PLACES, st.integers(2, 6), st.integers(0, 3), _mostly(True, False),
        _mostly(None, [], ["b"], ["c", "a"], ["a", "a", "b"]), _mostly(set(TASKS), {"mail"}, set()),
    ),
    st.tuples(st.just("work"), st.lists(outcomes, min_size=1, max_size=4), st.integers(2, 5)),
    st.tuples(st.just("settle"), st.lists(st.tuples(PLACES, outcomes), min_size=1, max_size=3)),
    st.tuples(st.just("release"), st.sets(PLACES, min_size=1, max_size=3)),
    st.tuples(st.just("progress"), PLACES),
)  # fmt: skip
upkeep = st.one_of(
    st.tuples(st.just("look_after")),
    st.tuples(st.just("wait"), st.sampled_from([1, 5, 60])),
    st.tuples(st.just("prune"), ENDINGS, SHORT, PLACES, st.integers(1, 5)),
    st.tuples(st.just("prune_by_count"), ENDINGS, st.integers(0, 3)),
)
people = st.one_of(
    st.tuples(st.just("change"), changes, st.sets(PLACES, min_size=1, max_size=3)),
    st.tuples(st.just("change_one"), changes, PLACES),
)
queues = st.one_of(
    st.tuples(st.just("pause"), PAUSABLE, st.sampled_from(["", "too slow"]), _mostly(SECOND, None, 5 * SECOND)),
    st.tuples(st.just("resume"), PAUSABLE),
    st.tuples(st.just("declare"), st.sampled_from(QUEUES), st.none() | st.integers(2, 6)),
)
MAKE: dict[str, Callable[[Any], change.Change]] = {
    "cancel": change.cancel, "retry": lambda _: change.retry(), "delete": lambda _: change.delete(),
    "reschedule": lambda delay: change.reschedule(delay=delay), "set_priority": change.set_priority,
    "move": change.move,
}  # fmt: skip


class Machine(RuleBasedStateMachine):
    """Random steps; what each comes to is asked of every store.

    Args:
        stores: open ones, of all kinds.
        clock: the clock of all of them.
    """

    def __init__(self, stores: list[Store], clock: HeldClock) -> None:
        super().__init__()
        self.clock = clock
        self.pure = Pure()
        self.twins = [Twin(store) for store in stores]
        self.claimed: list[Claimed] = []
        self.epochs: list[tuple[int, int]] = []  # slot and epoch of every registration so far
        self.jobs = 0

    @property
    def now(self) -> int:
        """The held time."""
        return self.clock.now()

    def same(self, expected: object, ask: Callable[[Twin], object]) -> None:
        """Compare what every store answers with what the model says."""
        for twin in self.twins:
            assert ask(twin) == expected, twin.store.place

    @initialize(wanted=st.lists(options, min_size=2, max_size=6))
    def begin(self, wanted: list[Options]) -> None:
        """Two workers and a few jobs."""
        self.register(1, set(TASKS), set())
        self.register(2, {"mail"}, set())
        self.enqueue(wanted)

    # One rule for all steps: with a rule for each, Hypothesis leaves whole kinds out of most runs.
    @rule(step=st.sampled_from([work, work, work, people, people, life, upkeep, queues]).flatmap(lambda kind: kind))
    def do(self, step: tuple[Any, ...]) -> None:
        """Take one step."""
        name, *given = step
        getattr(self, name)(*given)

    # Producers -------------------------------------------------------------------------------------------------

    def enqueue(self, wanted: list[Options]) -> None:
        """Store a few jobs, or hear that a queue is full."""
        try:
            places = self.pure.enqueue(wanted, self.now)
        except Full:
            for twin in self.twins:
                with pytest.raises(Full):
                    twin.enqueue(wanted)
            return
        self.jobs += len(wanted)
        self.same(places, lambda twin: twin.enqueue(wanted))

    def declare(self, queue: str, cap: int | None) -> None:
        """Give a queue a cap, or take it away."""
        self.pure.caps[queue] = cap
        self.same(None, lambda twin: twin.declare(queue, cap))

    # Workers ---------------------------------------------------------------------------------------------------

    def register(self, slot: int, tasks: set[str], begun: set[int]) -> None:
        """Register a worker; what the slot's last one held is rescued."""
        known, begun_leases = tuple(sorted(tasks)), self.leases(begun)
        self.epochs.append((slot, epoch := len(self.epochs) + 1))
        rescued = self.pure.register(slot, epoch, known, self.now, begun_leases)
        self.same(rescued, lambda twin: twin.register(slot, epoch, known, begun_leases))

    def claim(
        self, place: int, most: int, turn: int, checked: bool, queues: list[str] | None, tasks: set[str]
    ) -> None:
        """Claim jobs, also for a registration that is over."""
        slot, epoch = self.registration(place)
        request = ClaimRequest(
            None if queues is None else tuple(queues), _json(sorted(tasks)), most, epoch, turn, _json(CAPS),
            slot if checked else None,
        )  # fmt: skip
        expected = self.pure.claim(self.now, queues, sorted(tasks), most, epoch, turn, CAPS, request.slot)
        self.claimed += expected.jobs
        self.same(expected, lambda twin: twin.claim(request))

    def work(self, told: list[Outcome], most: int) -> None:
        """Claim jobs and settle some of them at once."""
        first = len(self.claimed)
        if not self.pure.workers:
            self.register(1, set(TASKS), set())
        self.claim(0, most, 0, True, None, set(TASKS))
        self.store(list(zip(self.claimed[first:], told, strict=False)))

    def settle(self, told: list[tuple[int, Outcome]]) -> None:
        """Store a batch of outcomes, those of lost leases among them."""
        if self.claimed:
            self.store([(self.claimed[self.lease(place)], outcome) for place, outcome in told])

    def store(self, told: list[tuple[Claimed, Outcome]]) -> None:
        """Store what attempts came to."""
        batch = [
            settle(job, outcome, POLICY, job.claimed_at, self.now, crash_cap=CAPS.get(job.task, 3))
            for job, outcome in told
        ]
        lost = self.pure.settle(batch, "w")
        self.same(lost, lambda twin: twin.settle(batch, "w"))

    def release(self, places: set[int]) -> None:
        """Give back leases, lost ones and those of others among them."""
        leases = self.leases(places)
        epoch = self.pure.epoch_of(leases)
        released = self.pure.release(leases, epoch, self.now)
        self.same(released, lambda twin: twin.release(leases, epoch))

    def progress(self, place: int) -> None:
        """Note progress, guarded by the lease."""
        if not self.claimed:
            return
        lease = self.lease(place)
        owns = any(job.lease == lease for job in self.pure.jobs.values())
        self.same(owns, lambda twin: twin.progress(lease, "half"))

    def seen(self, place: int) -> None:
        """Show a sign of life, also of a registration that is over."""
        slot, epoch = self.registration(place)
        owns = self.pure.owns(slot, epoch)
        if owns:
            self.pure.workers[slot].seen_at = self.now
        self.same(owns, lambda twin: twin.seen(slot, epoch))

    def leave(self, place: int, begun: set[int]) -> None:
        """Stop in good order."""
        slot, epoch = self.registration(place)
        leases = self.leases(begun)
        self.pure.rescue(epoch, f"slot {slot}", "crash: its worker stopped without settling it", self.now, leases)
        if self.pure.owns(slot, epoch):
            del self.pure.workers[slot]
        self.same(None, lambda twin: twin.leave(slot, epoch, leases))

    def rescue_dead(self, place: int, stale: bool, begun: set[int] | None) -> None:
        """Rescue from a worker; it is left alone when it has shown a sign since."""
        slot, epoch = self.registration(place)
        leases = None if begun is None else self.leases(begun)
        seen_at = self.pure.workers[slot].seen_at - stale if slot in self.pure.workers else 0
        rescued = None
        if self.pure.owns(slot, epoch) and not stale:
            del self.pure.workers[slot]
            rescued = self.pure.rescue(epoch, f"w{slot}", "crash: its worker died", self.now, leases)
        self.same(rescued, lambda twin: twin.rescue_dead(slot, epoch, seen_at, leases))

    def evict(self, place: int) -> None:
        """Evict a worker, and hear what it would hear."""
        slot, epoch = self.registration(place)
        rescued = None
        if self.pure.owns(slot, epoch):
            del self.pure.workers[slot]
            self.pure.evicted.add(epoch)
            rescued = self.pure.rescue(epoch, f"w{slot}", "evicted: stalls", self.now)
        self.same(rescued, lambda twin: twin.evict(slot, epoch))
        self.same(epoch in self.pure.evicted, lambda twin: twin.was_evicted(epoch))

    # Upkeep ----------------------------------------------------------------------------------------------------

    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.advance(seconds=seconds)

    def look_after(self) -> None:
        """Do what upkeep does besides rescuing."""
        self.same(self.pure.expire(self.now), Twin.expire)
        self.same(self.pure.look_after(self.now), Twin.look_after)
        self.same(self.pure.hold_unknown(), Twin.hold_unknown)
        self.same(self.pure.rescue_orphans(self.now), Twin.rescue_orphans)

    def prune(self, state: JobState, ago: int, below: int, most: int) -> None:
        """Delete old jobs by age."""
        deleted = self.pure.prune(state, self.now - ago, below, most)
        self.same(deleted, lambda twin: twin.prune(state, self.now - ago, below, most))

    def prune_by_count(self, state: JobState, keep: int) -> None:
        """Delete old jobs by count."""
        newest = sorted(
            ((job.finished_at or 0, job.place) for job in self.pure.jobs.values() if job.state is state), reverse=True
        )
        cutoff = None
        if len(newest) >= max(keep, 1):
            at, place = newest[max(keep, 1) - 1]
            cutoff = (at, place + (keep == 0))
        self.same(cutoff, lambda twin: twin.cutoff(state, keep))
        if cutoff is not None:
            deleted = self.pure.prune(state, *cutoff, most=100)
            self.same(deleted, lambda twin: twin.prune(state, *cutoff, most=100))

    # People ----------------------------------------------------------------------------------------------------

    def change(self, what: tuple[str, Any], places: set[int]) -> None:
        """Change several jobs, in whatever states they are."""
        name, value = what
        chosen = sorted({self.job(place) for place in places})
        changed = self.pure.change(name, value, chosen, self.now)
        self.same(changed, lambda twin: twin.change(MAKE[name](value), chosen))

    def change_one(self, what: tuple[str, Any], place: int) -> None:
        """Change one job, or hear why not."""
        name, value = what
        place = self.job(place)
        there = place in self.pure.jobs
        refusal = JobStateError if there else JobNotFound
        expected = None if self.pure.change(name, value, [place], self.now) else refusal
        self.same(expected, lambda twin: twin.change_one(MAKE[name](value), place))

    def pause(self, what: tuple[str, str], reason: str, lasting: int | None) -> None:
        """Pause a queue or a task."""
        until = None if lasting is None else self.now + lasting
        self.pure.pauses[what] = ("me", reason, until)
        if what[0] == "task":
            self.pure.look_after(self.now)
        self.same(None, lambda twin: twin.pause(*what, "me", reason, until))

    def resume(self, what: tuple[str, str]) -> None:
        """End a pause, also one that is not there."""
        found = self.pure.resume(*what)
        self.same(found, lambda twin: twin.resume(*what))

    # Always ----------------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_the_same(self) -> None:
        """Jobs, their histories and the registrations are what the model says, on every store."""
        self.same((self.pure.jobs, self.pure.workers), Twin.everything)

    def teardown(self) -> None:
        """The store is sound, and counts what is there."""
        self.look_after()  # a claim without a registration leaves orphans
        self.same(self.pure.counts(), Twin.counts)
        self.same([], Twin.offences)

    def job(self, place: int) -> int:
        """A job, once in a while one that is gone."""
        return _one_of(list(self.pure.jobs), self.jobs, place)

    def lease(self, place: int) -> int:
        """A lease that runs, once in a while one that is over."""
        running = [job.lease for job in self.pure.jobs.values() if job.lease is not None]
        return _one_of(running, len(self.claimed), place)

    def leases(self, places: set[int]) -> list[int]:
        """Several, none while none was given."""
        return sorted({self.lease(place) for place in places}) if self.claimed else []

    def registration(self, place: int) -> tuple[int, int]:
        """A registration, once in a while one that is over."""
        living = [self.epochs.index((slot, worker.epoch)) for slot, worker in self.pure.workers.items()]
        return self.epochs[_one_of(living, len(self.epochs), place)]


def _one_of(living: list[int], count: int, place: int) -> int:
    """One of the living numbers, or, for each fourth place, any one below *count*."""
    place, dead = divmod(place, 4)
    return living[place % len(living)] if living and dead < 3 else place % count


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


@pytest.fixture
def stores(tmp_path: Path, clock: HeldClock) -> Iterator[list[Store]]:
    """A store of each kind that there is here."""
    with ExitStack() as stack:
        urls = [f"sqlite:///{tmp_path / 'jobs.db'}"]
        if postgres.binaries() is not None or {"CI", "TREADLE_TEST_PG_DSN"} & os.environ.keys():
            urls.append(stack.enter_context(postgres.database()))
        opened = [Store(url, StoreOptions(durability="off"), clock) for url in urls]
        for store in opened:
            stack.callback(store.close)
        yield opened


@pytest.mark.timeout(60 + EXAMPLES * 10)
def test_every_store_is_what_the_model_says(stores: list[Store], clock: HeldClock) -> None:
    """Whatever is done in whatever order: SQLite, PostgreSQL and the model agree on every answer, state and history."""
    run_state_machine_as_test(
        partial(Machine, stores, clock),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
