"""``treadle tasks``: which tasks there are and how their jobs stand, and pausing them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import click

from treadle.cli.completion import known_tasks
from treadle.cli.options import json_option
from treadle.cli.output import counted_states, plain, say, say_json, table
from treadle.cli.pausing import Wish, by_name, pause, paused_as_json, paused_text, pausing, resume
from treadle.cli.store import opened, store_option
from treadle.model.job import JobFilter, JobState, Pause
from treadle.store.ops import find, names, pauses
from treadle.store.roster import roster
from treadle.store.session import Session
from treadle.store.store import Store

names_argument = click.argument("tasks", metavar="TASK...", nargs=-1, required=True, shell_complete=known_tasks)


class Known(NamedTuple):
    """One task at one moment; *workers* is how many live ones know it."""

    name: str
    counts: dict[JobState, int]
    workers: int
    paused: Pause | None


@click.group()
def tasks() -> None:
    """Look at tasks, pause and resume them."""


@tasks.command("list")
@store_option
@json_option
def list_tasks(*, store: str | None, as_json: bool) -> None:
    """List tasks that live workers know or that have jobs."""
    with opened(store) as app:
        found = app.store.read(partial(_board, app.store))
    if as_json:
        say_json({"tasks": [plain(one) | {"paused": paused_as_json(one.paused)} for one in found]})
        return
    if not found:
        say("No tasks.")
        return
    states = [state for state in JobState if any(state in one.counts for one in found)]
    rows = [(one.name, *counted_states(one.counts, states), one.workers, paused_text(one.paused)) for one in found]
    table(("task", *states, "workers", "paused"), rows)


@tasks.command("pause")
@names_argument
@pausing
def pause_tasks(*, tasks: tuple[str, ...], wish: Wish) -> None:
    """Let nobody start jobs of these tasks.

    What runs goes on. Their ready jobs are blocked meanwhile; other jobs of their queues run.
    """
    pause("task", tasks, wish, names.tasks)


@tasks.command("resume")
@names_argument
@store_option
def resume_tasks(*, tasks: tuple[str, ...], store: str | None) -> None:
    """Take pauses back."""
    resume("task", tasks, store)


def _board(store: Store, session: Session) -> list[Known]:
    counts: dict[str, dict[JobState, int]] = {}
    for one in find.census(session, JobFilter()):
        counts.setdefault(one.task, {})[one.state] = one.jobs
    paused = by_name(pauses.every(session), "task")
    alive = [worker for worker in roster(store, session) if worker.alive]
    known = {name for worker in alive for name in worker.tasks}
    return [
        Known(name, counts.get(name, {}), sum(name in worker.tasks for worker in alive), paused.get(name))
        for name in sorted(counts.keys() | known | paused.keys())
    ]
