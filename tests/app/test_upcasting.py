"""Old payloads under new code: versions of parameters and what brings them up."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from treadle import JobState, Treadle
from treadle.errors import ConfigurationError, SignatureMismatch
from worker.kit import PATIENCE, eventually, open_app


def old_app(path: Path) -> Treadle:
    """Yesterday's program."""
    app = open_app(path)

    @app.task(name="mail.send")
    def send(address: str, when: date) -> None: ...

    send.using(tags=["old"]).enqueue("ada@example.org", date(2030, 1, 2))
    return app


def new_app(path: Path, *, steps: int = 2) -> tuple[Treadle, Any]:
    """Today's, two versions on."""
    app = open_app(path)

    @app.task(name="mail.send", version=3)
    def send(to: list[str], when: date, urgent: bool) -> str:
        return f"{to} {when} {urgent}"

    if steps > 0:

        @send.upcast(1)
        def _(arguments: dict[str, Any]) -> dict[str, Any]:
            return {"to": arguments.pop("address"), **arguments}

    if steps > 1:

        @send.upcast(2)
        def _(arguments: dict[str, Any]) -> dict[str, Any]:
            return {**arguments, "to": [arguments["to"]], "urgent": False}

    return app, send


def test_old_arguments_are_brought_up_step_by_step(path: Path) -> None:
    """Through every version, and then checked as new ones are."""
    old_app(path).close()
    app, send = new_app(path)
    with app, app.worker():
        assert app.result(1, timeout=PATIENCE) == "['ada@example.org'] 2030-01-02 False"
        assert send.enqueue(["b"], date(2030, 1, 1), urgent=True).result(PATIENCE) == "['b'] 2030-01-01 True"
        assert [app.get(number).version for number in (1, app.find().jobs[0].id)] == [1, 3]


def test_a_missing_step_holds_the_job(path: Path) -> None:
    """Nothing is spent, and the reason names the step."""
    old_app(path).close()
    app, _ = new_app(path, steps=1)
    with app, app.worker():
        eventually(lambda: app.get(1).state is JobState.HELD)
        record = app.get(1)
    assert "no upcaster from version 2 to 3" in str(record.reason)
    assert (record.failures, record.crashes) == (0, 0)


def test_a_newer_version_than_the_code_is_held(path: Path) -> None:
    """As after a roll-back: a newer worker can run it."""
    app, send = new_app(path)
    send.enqueue(["a"], date(2030, 1, 1), urgent=True)
    app.close()
    app = open_app(path)
    app.task(name="mail.send")(lambda address, when: None)
    with app, app.worker():
        eventually(lambda: app.get(1).state is JobState.HELD)
        assert "of version 3, this code knows mail.send up to version 1" in str(app.get(1).reason)
    app, _ = new_app(path)
    with app, app.worker():
        app.retry(1)
        assert app.result(1, timeout=PATIENCE) == "['a'] 2030-01-01 True"


def test_a_failing_upcaster_holds_the_job(path: Path) -> None:
    """Its error is told."""
    old_app(path).close()
    app, send = new_app(path, steps=0)
    send.upcast(1)(lambda arguments: arguments["nothing"])
    with app, app.worker():
        eventually(lambda: app.get(1).state is JobState.HELD)
        assert "upcaster of mail.send from 1 failed: KeyError('nothing')" in str(app.get(1).reason)


def test_unschedule_gives_todays_arguments(path: Path) -> None:
    """Old arguments come back as the new function takes them."""
    old_app(path).close()
    app, send = new_app(path)
    with app:
        assert send.unschedule(1).kwargs == {"to": ["ada@example.org"], "when": date(2030, 1, 2), "urgent": False}


def test_unschedule_without_a_way_leaves_the_job(path: Path) -> None:
    """It cannot be read, so it is not deleted."""
    old_app(path).close()
    app, send = new_app(path, steps=0)
    with app:
        with pytest.raises(SignatureMismatch):
            send.unschedule(1)
        assert app.get(1).state is JobState.READY


@pytest.mark.parametrize("version", [0, 2, 3])
def test_steps_that_lead_nowhere_are_refused(app: Treadle, version: int) -> None:
    """A step starts below the task's version, once."""
    task = app.task(name="work", version=2)(lambda: None)
    with pytest.raises(ConfigurationError, match="does not fit"):
        task.upcast(version)(dict)
    task.upcast(1)(dict)
    with pytest.raises(ConfigurationError, match="does not fit"):
        task.upcast(1)(dict)


@pytest.mark.parametrize("version", [0, -1, True, "2"])
def test_versions_count_from_one(app: Treadle, version: Any) -> None:
    """Anything else is refused at declaration."""
    with pytest.raises(ConfigurationError, match="version="):
        app.task(name="work", version=version)(lambda: None)
