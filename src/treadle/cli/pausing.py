"""Pausing queues and tasks: what the two groups of commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

from treadle.cli.options import AT, DURATION, by_option, reason_option
from treadle.cli.output import moment, plain, safe, say
from treadle.cli.store import opened, store_option
from treadle.clock import SystemClock, to_datetime
from treadle.model.job import Pause, WorkerRecord
from treadle.store.session import Session

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS: Final = (
    reason_option,
    click.option("--for", "length", type=DURATION, help="End the pause by itself after so long: 30m, 2h."),
    click.option("--until", type=AT, help="End the pause by itself at this TIME, ISO 8601."),
    by_option,
    store_option,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pause should be: why, by whom, and until when."""

    store: str | None
    reason: str
    by: str | None
    until: datetime | None


def pausing(function: F) -> F:
    """Give a command the options of a pause; it gets them as one ``wish``."""

    @wraps(function)
    def command(*, length: timedelta | None, until: datetime | None, **given: Any) -> Any:
        if length is not None and until is not None:
            raise click.UsageError("Give --for or --until, not both.")
        about = {name: given.pop(name) for name in ("store", "reason", "by")}
        return function(wish=Wish(until=_end(length, until), **about), **given)

    made: Callable[..., Any] = command
    for option in reversed(OPTIONS):
        made = option(made)
    return cast("F", made)


def pause(kind: str, names: Iterable[str], wish: Wish, known: Callable[[Session], list[str]]) -> None:
    """Pause queues or tasks, and say of each what that means."""
    with opened(wish.store) as app:
        found = set(app.store.read(known))
        for name in dict.fromkeys(names):
            app.pause(**{kind: name}, reason=wish.reason, by=wish.by, until=wish.until)
            end = f" until {moment(wish.until)}" if wish.until else ""
            say(f"{kind} {safe(name)} is paused{end}: nobody starts its jobs; those that run go on.")
            if name not in found:
                say(f"Note: no worker and no recent job knows {kind} {safe(name)}; is the name right?", err=True)


def resume(kind: str, names: Iterable[str], store: str | None) -> None:
    """Take pauses back; exit code 1 when one was not there."""
    missing = False
    with opened(store) as app:
        for name in dict.fromkeys(names):
            if app.resume(**{kind: name}):
                say(f"{kind} {safe(name)} goes on.")
            else:
                missing = True
                say(f"{kind} {safe(name)} was not paused.", err=True)
    if missing:
        sys.exit(1)


def paused_text(pause: Pause | None) -> str:
    """Who paused it, since when, why and until when, in one line; empty for no pause."""
    if pause is None:
        return ""
    why = f": {pause.reason}" if pause.reason else ""
    end = f", until {moment(pause.until)}" if pause.until else ""
    return f"by {pause.paused_by} since {moment(pause.paused_at)}{end}{why}"


def paused_as_json(pause: Pause | None) -> dict[str, Any] | None:
    """The same as ``--json`` prints it."""
    if pause is None:
        return None
    return {name: plain(getattr(pause, name)) for name in ("paused_at", "paused_by", "reason", "until")}


def by_name(pauses: Iterable[Pause], kind: str) -> Mapping[str, Pause]:
    """The pauses of one kind."""
    return {one.name: one for one in pauses if one.kind == kind}


def at_work(workers: Iterable[WorkerRecord]) -> list[WorkerRecord]:
    """Workers that live and may start jobs."""
    return [worker for worker in workers if worker.alive and worker.orders is None]


def _end(length: timedelta | None, until: datetime | None) -> datetime | None:
    now = to_datetime(SystemClock().now())
    end = until if length is None else now + length
    if end is not None and end <= now:
        raise click.UsageError(f"A pause until {moment(end)} would be over already.")
    return end
