"""``treadle jobs retry|cancel|reschedule|priority|move|delete``: each for named jobs or for all that match."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import click
import msgspec

from treadle import defaults
from treadle.app import Treadle
from treadle.cli.bulk import Verb, perform
from treadle.cli.completion import known_queues
from treadle.cli.options import AT, DURATION, TIMES, Target, targeted
from treadle.cli.output import moment, safe
from treadle.errors import JobNotFound
from treadle.host.process import account_name
from treadle.model.job import JobRecord, JobState
from treadle.options import check_name, check_priority
from treadle.store.ops import change

LOW, HIGH = defaults.PRIORITY_RANGE


@click.command(epilog=TIMES)
@click.option("--arguments", metavar="JSON", help="Other arguments, an object by parameter name; for one ID only.")
@targeted
def retry(*, target: Target, arguments: str | None) -> None:
    """Run failed, held or cancelled jobs again.

    Their budget is whole again and their history stays. New arguments are checked when the job runs.
    """
    given = None if arguments is None else _arguments(arguments, target)
    perform(target, Verb(
        name="retry", ask="Make {} ready again?", done="made ready again",
        states=change.retry().states,
        act=lambda app, which: app.retry(which, arguments=given), told=lambda _app, _number: "is ready again",
    ))  # fmt: skip


@click.command(epilog=TIMES)
@click.option("--reason", help="Kept with the job. Default: cancelled by account@host.")
@targeted
def cancel(*, target: Target, reason: str | None) -> None:
    """Call off jobs; running ones are asked to stop.

    A thread cannot be stopped: a plain function has to look at job.cancelled.
    """
    why = reason or f"cancelled by {account_name()}"
    perform(target, Verb(
        name="cancel", ask="Cancel {}?", done="cancelled, or asked to stop where they run",
        states=change.cancel(why).states,
        act=lambda app, which: app.cancel(which, why), told=_cancelled,
    ))  # fmt: skip


@click.command(epilog=TIMES)
@click.option("--in", "delay", type=DURATION, help="Due so long from now: 0, 10m, 2h.")
@click.option("--at", "run_at", type=AT, help="Due at this TIME, ISO 8601.")
@targeted
def reschedule(*, target: Target, delay: timedelta | None, run_at: datetime | None) -> None:
    """Let scheduled and ready jobs run at another time."""
    if (delay is None) == (run_at is None):
        raise click.UsageError("When? Give --in or --at, one of them.")
    perform(target, Verb(
        name="reschedule", ask="Reschedule {}?", done="rescheduled",
        states=change.reschedule().states,
        act=lambda app, which: app.reschedule(which, delay=delay, run_at=run_at), told=_due,
    ))  # fmt: skip


@click.command(epilog=TIMES)
@click.option("--to", "value", type=click.IntRange(LOW, HIGH), required=True, help="Higher goes first; 0 is usual.")
@targeted
def priority(*, target: Target, value: int) -> None:
    """Give jobs another priority, -100 to 100.

    For a running job it counts from its next attempt on.
    """
    check_priority(value)
    perform(target, Verb(
        name="priority", ask=f"Give {{}} priority {value}?", done=f"given priority {value}",
        states=change.set_priority(value).states,
        act=lambda app, which: app.set_priority(which, value), told=lambda _app, _number: f"has priority {value}",
    ))  # fmt: skip


@click.command(epilog=TIMES)
@click.option("--to", "name", metavar="QUEUE", required=True, shell_complete=known_queues, help="The other queue.")
@targeted
def move(*, target: Target, name: str) -> None:
    """Put jobs that have not begun into another queue.

    The cap of that queue does not refuse them.
    """
    check_name("queue", name, 100)
    perform(target, Verb(
        name="move", ask=f"Move {{}} to {safe(name)}?", done=f"moved to {safe(name)}",
        states=change.move(name).states,
        act=lambda app, which: app.move(which, name), told=lambda _app, _number: f"is in queue {safe(name)}",
    ))  # fmt: skip


@click.command(epilog=TIMES)
@targeted
def delete(*, target: Target) -> None:
    """Remove jobs with all their history.

    Running ones must be cancelled first.
    """
    perform(target, Verb(
        name="delete", ask="Delete {}, history included?", done="deleted, history included",
        states=change.delete().states,
        act=lambda app, which: app.delete(which), told=lambda _app, _number: "is deleted",
    ))  # fmt: skip


def _arguments(text: str, target: Target) -> Mapping[str, object]:
    if len(target.ids) != 1:
        raise click.UsageError("--arguments is for one job; give its id.")
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise click.UsageError(f'--arguments is no JSON object, such as \'{{"to": "ada"}}\': {error}') from error


def _cancelled(app: Treadle, number: int) -> str:
    found = _record(app, number)
    return "runs and was asked to stop" if found and found.state is JobState.RUNNING else "is cancelled"


def _due(app: Treadle, number: int) -> str:
    found = _record(app, number)
    return f"is due {moment(found.due_at)}" if found else "was rescheduled"


def _record(app: Treadle, number: int) -> JobRecord | None:
    try:
        return app.get(number)
    except JobNotFound:  # deleted meanwhile
        return None
