"""A private store for an app that has a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from treadle import HeldClock, Treadle
from treadle.errors import StoreClosed
from treadle.testing import assert_enqueued, private_store, refute_enqueued, run_pending
from worker.kit import open_app, states


def test_the_real_store_is_not_touched(path: Path) -> None:
    """An app that was never opened has no file afterwards."""
    app = open_app(path)
    task = app.task(name="work")(lambda: "done")
    with private_store(app) as same:
        assert same is app
        assert app.settings.store == "memory://"
        job = task.enqueue()
        run_pending(app)
        assert job.result(0) == "done"
    assert not path.exists()
    assert app.settings.store == f"sqlite:///{path}"


def test_the_real_store_goes_on(path: Path) -> None:
    """An app that was open has its jobs again, and its own worker saw none of the test's."""
    with open_app(path) as app:
        task = app.task(name="work")(lambda: "real")
        before = task.enqueue()
        with private_store(app):
            task.using(queue="private").enqueue()
            assert states(app) == ["ready"]
        refute_enqueued(app, queue="private")
        run_pending(app)
        assert before.result(0) == "real"


def test_nothing_is_left_behind(app: Treadle) -> None:
    """The private store's file is gone after the block, also when that was left by an error."""
    folders: list[Path] = []

    def fail() -> None:
        folders.append(app.store.path.parent)
        assert folders[0].exists()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), private_store(app):
        fail()
    assert not folders[0].exists()
    assert states(app) == []


def test_it_may_have_a_clock_of_its_own(app: Treadle, clock: HeldClock) -> None:
    """The held clock reaches everything stored inside; the app's own clock is back afterwards."""
    own = app.clock
    task = app.task(name="work")(lambda: None)
    with private_store(app, clock=clock):
        assert task.enqueue().record().enqueued_at == clock.moment
    assert app.clock is own


def test_they_nest(app: Treadle) -> None:
    """A store within a store starts empty, and the outer one is as it was."""
    task = app.task(name="work")(lambda: None)
    with private_store(app):
        task.enqueue()
        with private_store(app):
            assert states(app) == []
        assert_enqueued(app, task, count=1)


def test_queue_caps_come_along(app: Treadle) -> None:
    """What the app has declared is declared in the private store too."""
    app.queue("mail", max_length=3)
    with private_store(app):
        assert app.queues() == {"mail": (3, "refuse")}


def test_claims_by_hand_stay_with_their_store(app: Treadle) -> None:
    """A registration made inside ends with the private store; one of the real store goes on."""
    app.task(name="work")(lambda: None).enqueue()
    (outside,) = app.claim()
    with private_store(app):
        assert app.claim() == []
        assert len(app.workers()) == 1
    outside.complete()
    assert states(app) == ["succeeded"]


def test_a_closed_app_may_be_used_in_it(path: Path) -> None:
    """Closing inside closes the private store; a closed app is closed again afterwards."""
    app = open_app(path)
    app.close()
    with private_store(app):
        asyncio.run(app.acounts())
        app.close()
        with pytest.raises(StoreClosed):
            app.counts()
    with pytest.raises(StoreClosed):
        app.counts()
