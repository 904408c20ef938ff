"""``treadle queues``: what waits in each queue, and pausing them."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

import click

from treadle.cli.completion import known_queues
from treadle.cli.options import json_option
from treadle.cli.output import counted_states, plain, say, say_json, span, table
from treadle.cli.pausing import Wish, at_work, by_name, pause, paused_as_json, paused_text, pausing, resume
from treadle.cli.store import opened, store_option
from treadle.clock import to_datetime
from treadle.model.job import JobState, Pause
from treadle.store import health
from treadle.store.ops import find, names, pauses
from treadle.store.roster import roster
from treadle.store.session import Session
from treadle.store.store import Store

NO_CAP: Final = (None, None)
names_argument = click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, shell_complete=known_queues)


class Queue(NamedTuple):
    """One queue at one moment; *workers* is how many live ones take it."""

    name: str
    counts: dict[JobState, int]
    oldest_ready_at: datetime | None
    max_length: int | None
    when_full: str | None
    workers: int
    paused: Pause | None


@click.group()
def queues() -> None:
    """Look at queues, pause and resume them."""


@queues.command("list")
@store_option
@json_option
def list_queues(*, store: str | None, as_json: bool) -> None:
    """List queues: how many jobs wait, how long, and for what."""
    with opened(store) as app:
        found = app.store.read(partial(_board, app.store))
        now = to_datetime(app.clock.now())
    if as_json:
        say_json({"queues": [plain(one) | {"paused": paused_as_json(one.paused)} for one in found]})
        return
    if not found:
        say("No queues.")
        return
    states = [state for state in JobState if any(state in one.counts for one in found)]
    rows = [(one.name, *counted_states(one.counts, states), _waits(one, now), _cap(one), one.workers,
             paused_text(one.paused)) for one in found]  # fmt: skip
    table(("queue", *states, "oldest waits", "cap", "workers", "paused"), rows)


@queues.command("pause")
@names_argument
@pausing
def pause_queues(*, queues: tuple[str, ...], wish: Wish) -> None:
    """Let nobody start jobs of these queues.

    What runs goes on. The pause is stored, so it outlives every process.
    """
    pause("queue", queues, wish, names.queues)


@queues.command("resume")
@names_argument
@store_option
def resume_queues(*, queues: tuple[str, ...], store: str | None) -> None:
    """Take pauses back."""
    resume("queue", queues, store)


def _board(store: Store, session: Session) -> list[Queue]:
    counts, caps = find.counts(session), find.queues(session)
    paused = by_name(pauses.every(session), "queue")
    oldest = {one.queue: to_datetime(one.oldest_at) for one in health.ready(session)}
    working = at_work(roster(store, session))
    listed = {name for worker in working for name in worker.queues}
    return [
        Queue(
            name, counts.get(name, {}), oldest.get(name), caps.get(name, NO_CAP)[0], caps.get(name, NO_CAP)[1],
            sum(not worker.queues or name in worker.queues for worker in working), paused.get(name),
        )
        for name in sorted(counts.keys() | caps.keys() | paused.keys() | listed)
    ]  # fmt: skip


def _waits(one: Queue, now: datetime) -> str:
    return "-" if one.oldest_ready_at is None else span(now - one.oldest_ready_at)


def _cap(one: Queue) -> str:
    return "-" if one.max_length is None else f"{one.max_length:,}, {one.when_full}"
