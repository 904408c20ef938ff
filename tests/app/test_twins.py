from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from treadle import Job, LeasedJob, Task, Treadle
from treadle.tasks import Bound, Remote

ODD = {"wait": "await_jobs"}
"""Verbs whose twin is not called by their name with an a in front."""
BLOCKING = {
    Treadle: {
        "enqueue_many", "get", "find", "counts", "queues", "workers", "next_due", "wait", "result",
        "retry", "cancel", "reschedule", "set_priority", "move", "delete", "unschedule", "count", "logs", "pauses",
        "pause", "resume", "drain", "evict", "claim", "settled",
    },
    LeasedJob: {"complete", "fail", "snooze", "abort", "release", "extend"},
    Job: {"result", "retry", "cancel"}, Bound: {"enqueue"}, Task: {"enqueue", "unschedule"}, Remote: {"enqueue"},
}  # fmt: skip
PARTS = {"aopen", "store_soon"}
"""Coroutines that are no twins: what verbs are made of."""


def signature(verb: Callable[..., Any]) -> tuple[list[tuple[object, ...]], object]:
    """Parameters and what is returned; an async source is as good as a plain one."""
    found = inspect.signature(verb)
    parameters = [
        (one.name, one.kind, one.default, str(one.annotation).removesuffix(" | AsyncIterable[NewJob]"))
        for one in found.parameters.values()
    ]
    return parameters, found.return_annotation


@pytest.mark.parametrize("kind", BLOCKING, ids=lambda kind: kind.__name__)
def test_every_blocking_verb_has_a_twin(kind: type) -> None:
    """A verb that waits for the disk has a coroutine with the same parameters and answer, and an a in front."""
    for name in BLOCKING[kind]:
        verb, twin = getattr(kind, name), getattr(kind, ODD.get(name, f"a{name}"))
        assert inspect.iscoroutinefunction(twin)
        assert not inspect.iscoroutinefunction(verb)
        assert signature(twin) == signature(verb), name


@pytest.mark.parametrize("kind", BLOCKING, ids=lambda kind: kind.__name__)
def test_there_are_no_other_coroutines(kind: type) -> None:
    """Whoever knows the plain verbs knows every coroutine."""
    found = {
        name for name in dir(kind) if not name.startswith("_") and inspect.iscoroutinefunction(getattr(kind, name))
    }
    assert found - PARTS == {ODD.get(name, f"a{name}") for name in BLOCKING[kind]}


def test_twins_answer_the_same(app: Treadle) -> None:
    """Each reading verb and its twin see the same database."""
    app.queue("mail", max_length=7)
    task = app.task(name="work")(lambda: None)
    task.enqueue()
    task.using(run_at=datetime(2100, 1, 1, tzinfo=UTC), queue="mail").enqueue()

    async def twins() -> list[object]:
        return [
            await app.aget(1), await app.afind(), await app.acounts(), await app.aqueues(), await app.aworkers(),
            await app.anext_due(), await app.await_jobs([]),
        ]  # fmt: skip

    plain = [app.get(1), app.find(), app.counts(), app.queues(), app.workers(), app.next_due(), app.wait([])]
    assert asyncio.run(twins()) == plain
    assert app.queues() == {"mail": (7, "refuse")}
