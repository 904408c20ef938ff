"""assert_enqueued and its kin: what matches, and what a person reads when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from unittest.mock import ANY

import pytest

from treadle import HeldClock, JobState, Treadle, injected
from treadle.errors import ConfigurationError, UnknownTask
from treadle.testing import all_enqueued, assert_enqueued, refute_enqueued, run_pending
from treadle.worker.context import JobContext

Send = Any


@dataclass
class Address:
    """An argument of a kind of its own."""

    street: str
    number: int


@pytest.fixture
def send(held_app: Treadle) -> Send:
    """A task with some parameters."""

    @held_app.task(name="shop.send", aliases=["mail.send"])
    def send(to: str, subject: str = "hi", *, when: datetime | None = None, job: JobContext = injected) -> None: ...

    return send


@pytest.fixture
def other(held_app: Treadle) -> Send:
    """A task without parameters."""
    return held_app.task(name="other")(lambda: None)


def message(call: Callable[[], object]) -> str:
    """What a failing assertion says."""
    with pytest.raises(AssertionError) as caught:
        call()
    return str(caught.value)


# What matches ----------------------------------------------------------------------------------------------------


def test_arguments_match_in_part(held_app: Treadle, send: Send) -> None:
    """Given by position or by name, or not given at all: a parameter is found by its name, with its default."""
    job = send.enqueue("ada", subject="yo")
    assert assert_enqueued(held_app, send, arguments={"to": "ada"}).id == job.id
    assert_enqueued(held_app, send, arguments={"subject": "yo", "when": None})
    send.enqueue("bob")
    assert_enqueued(held_app, send, arguments={"to": "bob", "subject": "hi"}, count=1)
    refute_enqueued(held_app, send, arguments={"to": "ada", "subject": "hi"})


def test_arguments_are_typed(held_app: Treadle) -> None:
    """They are compared as the handler gets them: dataclasses, datetimes, decimals."""

    @held_app.task(name="bill")
    def bill(address: Address, due: datetime, amount: Decimal) -> None: ...

    due = datetime(2030, 1, 1, tzinfo=UTC)
    bill.enqueue(Address("Main Street", 1), due, Decimal("1.10"))
    assert_enqueued(
        held_app, bill, arguments={"address": Address("Main Street", 1), "due": due, "amount": Decimal("1.10")}
    )
    refute_enqueued(held_app, bill, arguments={"amount": Decimal("1.11")})


def test_matchers_decide(held_app: Treadle) -> None:
    """Whatever compares itself may stand for a value."""
    task = held_app.task(name="measure")(lambda kelvin, who: None)
    task.enqueue(0.1 + 0.2, "ada")
    assert_enqueued(held_app, task, arguments={"kelvin": pytest.approx(0.3), "who": ANY})


def test_every_way_of_passing_arguments(held_app: Treadle) -> None:
    """Parameters that only go by position, and the rest of either kind, are found by name."""

    @held_app.task(name="odd")
    def odd(first: int, /, second: int, *rest: int, **more: str) -> None: ...

    odd.enqueue(1, 2, 3, 4, colour="red")
    assert_enqueued(held_app, odd, arguments={"first": 1, "second": 2, "rest": (3, 4), "colour": "red"})


def test_other_fields(held_app: Treadle, clock: HeldClock, send: Send) -> None:
    """Queue, priority, tags, meta and time; each may be left out."""
    send.using(
        queue="mail", priority=5, tags=["a", "b"], meta={"tenant": 7, "x": 1}, delay=timedelta(minutes=5)
    ).enqueue("ada")
    held_app.count()
    due = clock.moment + timedelta(minutes=5)
    assert_enqueued(
        held_app, send, queue="mail", priority=5, tags=["b"], meta={"tenant": 7}, delay=300, run_at=due, count=1,
        state=JobState.SCHEDULED,
    )  # fmt: skip
    assert_enqueued(held_app, queue="mail")
    refute_enqueued(held_app, queue="post")
    refute_enqueued(held_app, priority=0)
    refute_enqueued(held_app, tags=["b", "c"])
    refute_enqueued(held_app, meta={"tenant": 8})
    refute_enqueued(held_app, state=JobState.READY)


def test_times_match_nearly(held_app: Treadle, clock: HeldClock, send: Send) -> None:
    """A second more or less is as good, or what is given as within."""
    send.using(delay=60).enqueue("ada")
    assert_enqueued(held_app, send, delay=timedelta(seconds=61))
    refute_enqueued(held_app, send, delay=61.1)
    assert_enqueued(held_app, send, run_at=clock.moment, within=timedelta(minutes=1))
    refute_enqueued(held_app, send, run_at=clock.moment, within=59)
    clock.advance(hours=1)
    assert_enqueued(held_app, send, delay=60)


def test_a_task_is_given_as_itself_or_by_name(held_app: Treadle, send: Send, other: Send) -> None:
    """Older names count too; without a task any job will do."""
    held_app.remote("mail.send").enqueue(to="ada")
    for task in (send, "shop.send", "mail.send", None):
        assert_enqueued(held_app, task, arguments={"to": "ada"})
    refute_enqueued(held_app, other)


def test_tasks_of_other_programs(held_app: Treadle) -> None:
    """What is known by name only is compared as plain data."""
    held_app.remote("far").enqueue(x=[1, 2])
    assert_enqueued(held_app, "far", arguments={"x": [1, 2]})
    refute_enqueued(held_app, "elsewhere")


def test_ended_jobs_do_not_count(held_app: Treadle, other: Send) -> None:
    """A job that ran is enqueued no more, unless it is asked for by its state."""
    other.enqueue()
    run_pending(held_app)
    refute_enqueued(held_app, other)
    assert_enqueued(held_app, other, state=JobState.SUCCEEDED)


def test_all_of_them_oldest_first(held_app: Treadle, send: Send) -> None:
    """However many there are: pages do not limit it."""
    held_app.enqueue_many(send.job(f"{number}") for number in range(1203))
    found = all_enqueued(held_app, send)
    assert [job.id for job in found] == list(range(1, 1204))
    assert (found[0].task, found[0].arguments["to"]) == ("shop.send", "0")


# What is read ----------------------------------------------------------------------------------------------------


def test_the_nearest_are_compared(held_app: Treadle, send: Send, other: Send) -> None:
    """What was wanted, then the jobs that differ least, each field that differs with both sides."""
    other.enqueue()
    send.using(delay=60, tags=["x"]).enqueue("bob")
    send.using(queue="mail").enqueue("ada")
    told = message(
        lambda: assert_enqueued(held_app, send, arguments={"to": "ada", "subject": "hi"}, queue="slow", delay=90)
    )
    assert told == (
        "No job like this is enqueued:\n"
        "  task       shop.send\n"
        "  arguments  to='ada', subject='hi'\n"
        "  queue      'slow'\n"
        "  delay      0:01:30\n"
        "The 3 other jobs:\n"
        "  job 3 shop.send(to='ada', subject='hi', when=None), ready\n"
        "    queue  wanted 'slow', is 'mail'\n"
        "    delay  wanted 0:01:30, is 0:00:00 (90 s earlier)\n"
        "  job 2 shop.send(to='bob', subject='hi', when=None), scheduled for 2023-11-14 22:14:20+00:00, in 60 s\n"
        "    arguments.to  wanted 'ada', is 'bob'\n"
        "    queue         wanted 'slow', is 'default'\n"
        "    delay         wanted 0:01:30, is 0:01:00 (30 s earlier)\n"
        "  job 1 other(), ready\n"
        "    task  wanted shop.send, is other"
    )


def test_every_field_is_told(held_app: Treadle, clock: HeldClock, send: Send) -> None:
    """Priority, tags, meta and moments are compared like the others."""
    send.using(meta={"tenant": 1}, tags=["a"]).enqueue("ada")
    told = message(
        lambda: assert_enqueued(
            held_app, send, priority=3, tags=["a", "b"], meta={"tenant": 2, "x": 1},
            run_at=clock.moment - timedelta(minutes=1),
        )
    )  # fmt: skip
    for line in (
        "priority     wanted 3, is 0",
        "tags         wanted a, b, is a",
        "meta.tenant  wanted 2, is 1",
        "meta.x       wanted 1, is missing",
        "run_at       wanted 2023-11-14 22:12:20+00:00, is 2023-11-14 22:13:20+00:00 (60 s later)",
    ):
        assert f"    {line}" in told.splitlines()


def test_values_that_look_alike_are_told_apart(held_app: Treadle) -> None:
    """Where both sides print the same, their types are told."""

    class Sly(str):
        __slots__ = ()

        def __eq__(self, _: object) -> bool:
            return False

        __hash__ = str.__hash__

    task = held_app.task(name="work")(lambda name: None)
    task.enqueue("x")
    told = message(lambda: assert_enqueued(held_app, task, arguments={"name": Sly("x")}))
    assert "wanted 'x' (" in told
    assert "Sly), is 'x' (str)" in told


def test_long_values_are_cut(held_app: Treadle, send: Send) -> None:
    """A message stays readable."""
    send.enqueue("x" * 100_000)
    assert len(message(lambda: assert_enqueued(held_app, send, arguments={"to": "y"}))) < 2000


def test_only_three_are_compared(held_app: Treadle, send: Send) -> None:
    """Of many jobs the three nearest are shown, and it is said how many there are."""
    held_app.enqueue_many(send.job(f"{number}") for number in range(10))
    told = message(lambda: assert_enqueued(held_app, send, arguments={"to": "ada"}))
    assert "The nearest 3 of 10 other jobs:" in told
    assert told.count("  job ") == 3


def test_nothing_is_enqueued(held_app: Treadle, send: Send) -> None:
    """An empty store is told as such."""
    assert message(lambda: assert_enqueued(held_app, send)).splitlines()[-1] == "Nothing else is enqueued."
    assert message(lambda: assert_enqueued(held_app)).splitlines()[1] == "  anything"


def test_it_has_ended_already(held_app: Treadle, other: Send) -> None:
    """When the job is as wanted but a worker has run it, that is what is told."""
    other.enqueue()
    run_pending(held_app)
    told = message(lambda: assert_enqueued(held_app, other)).splitlines()
    assert told[2:4] == [
        "It is as wanted, but has ended already; did a worker or run_pending() run it?", "  job 1 other(), succeeded"
    ]  # fmt: skip


@pytest.mark.parametrize("stored", [1, 3])
def test_not_so_many(held_app: Treadle, send: Send, stored: int) -> None:
    """A count that is wrong shows what was found; with too few, what came near."""
    for _ in range(stored):
        send.enqueue("ada")
    send.enqueue("bob")
    told = message(lambda: assert_enqueued(held_app, send, arguments={"to": "ada"}, count=2))
    there = "There is 1 job" if stored == 1 else "There are 3 jobs"
    assert told.splitlines()[0] == f"{there} like this, not 2:"
    assert ("wanted 'ada', is 'bob'" in told) == (stored == 1)


def test_what_should_not_be_there_is_shown(held_app: Treadle, other: Send) -> None:
    """A refutation lists what it found, ten at most."""
    held_app.enqueue_many(other.job() for _ in range(12))
    told = message(lambda: refute_enqueued(held_app, other)).splitlines()
    assert told[0] == "There are 12 jobs like this, and none was wanted:"
    assert told[3:5] == ["  job 1 other(), ready", "  job 2 other(), ready"]
    assert told[-1] == "  and 2 more"


def test_a_held_job_says_why(held_app: Treadle) -> None:
    """The reason of a held job is part of its line."""
    held_app.remote("far").enqueue(x=1)
    run_pending(held_app)
    assert "job 1 far(x=1), held: unknown task" in message(lambda: refute_enqueued(held_app, "far"))


def test_unreadable_arguments_are_shown(held_app: Treadle, send: Send) -> None:
    """Bytes that cannot be read match nothing and stop nothing."""
    send.enqueue_encoded(b"{broken")
    assert "unreadable=" in message(lambda: assert_enqueued(held_app, send, arguments={"to": "ada"}))


# Slips of the pen ------------------------------------------------------------------------------------------------


def test_a_misspelt_question_is_an_error(held_app: Treadle, send: Send) -> None:
    """A refutation must not be true because of a typing error: not in a parameter, an option or a task's name."""
    with pytest.raises(ConfigurationError, match="no parameter 'too'; it has to, subject, when"):
        refute_enqueued(held_app, send, arguments={"too": "ada"})
    with pytest.raises(ConfigurationError, match="by queu; there is"):
        refute_enqueued(held_app, send, queu="mail")  # type: ignore[call-arg]
    with pytest.raises(UnknownTask, match=r"did you mean 'shop.send'\?"):
        refute_enqueued(held_app, "shop.snd")
    with pytest.raises(ConfigurationError, match="time zone"):
        refute_enqueued(held_app, send, run_at=datetime(2030, 1, 1))
    with pytest.raises(ConfigurationError, match="count=0"):
        assert_enqueued(held_app, send, count=0)
