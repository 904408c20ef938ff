"""``treadle move``: all jobs of one store into another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Final

import click

from treadle.app import Treadle
from treadle.cli.bulk import consent
from treadle.cli.options import DURATION, dry_run_option, json_option, yes_option
from treadle.cli.output import counted, safe, say, say_json, table
from treadle.cli.store import asked, opened
from treadle.errors import MoveRefused
from treadle.settings import Settings, load, store_options
from treadle.store import move as moves
from treadle.store import schemas
from treadle.store.store import Store
from treadle.store.urls import without_password

JOBS: Final = "treadle_jobs"


@click.command("move")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--wait", type=DURATION, default="1m", show_default=True, help="How long running jobs get to end.")
@click.option("--take-running", is_flag=True, help="Take the jobs of dead workers, charged with a crash.")
@click.option("--abandon", is_flag=True, help="Take an unfinished move back: SOURCE works again, TARGET is emptied.")
@dry_run_option
@yes_option
@json_option
def move_store(
    *,
    source: str,
    target: str,
    wait: timedelta,
    take_running: bool,
    abandon: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move all jobs of SOURCE into TARGET, which is empty.

    Each is a path or a URL: from a file to PostgreSQL, back, or between two of a kind. Workers of SOURCE finish what
    they run and end; then it is closed, copied with history, results and logs, compared, and left behind: whoever
    still uses it is told where the jobs are. Killed at any moment, the same command goes on.
    """
    with ExitStack() as stack:
        here = stack.enter_context(opened(source)).store
        there = stack.enter_context(_target(target, create=not (dry_run or abandon)))
        if abandon:
            _abandon(here, there)
            return
        plan = moves.look(here, there)
        if not as_json:
            _say_plan(here, without_password(asked(target)) if there is None else there.place, plan)
        done = None
        if not dry_run:
            if plan.conflict:
                raise MoveRefused(plan.conflict)
            assert there is not None
            consent(f"Move {counted(plan.rows[JOBS], 'job')}? Workers of {safe(here.place)} end.", yes=yes)
            wish = moves.Wish(wait=wait.total_seconds(), take_running=take_running)
            done = moves.move(here, there, wish, lambda text: say(text, err=True))
            _say_done(here, there, as_json=as_json)
    if as_json:
        about = plan._asdict() | {"dry_run": dry_run, "done": None if done is None else done.rows}
        say_json(about)
    if plan.conflict:
        raise MoveRefused(plan.conflict)


@contextmanager
def _target(target: str, *, create: bool) -> Iterator[Store | None]:
    """The target's store; without *create* None where it has no tables yet."""
    url = asked(target)
    if not create and not schemas.look(url, store_options(load(Settings(store=url)), auto_migrate=False)).found:
        yield None
        return
    with Treadle(url, auto_migrate=create) as app:
        yield app.store


def _abandon(source: Store, target: Store | None) -> None:
    if target is None:
        raise MoveRefused("The target has no tables, so no move to it has begun.")
    moves.give_up(source, target)
    say(f"Taken back: {safe(source.place)} works again, {safe(target.place)} is empty. Start the workers.")


def _say_plan(source: Store, target: str, plan: moves.Plan) -> None:
    table(("table", "rows"), [(name, f"{rows:,}") for name, rows in plan.rows.items() if rows])
    say(f"From {safe(source.place)} to {safe(target)}.")
    if plan.resumes:
        say("An earlier run has begun it; it is gone on with.")
    say(f"{counted(plan.running, 'job')} running, {counted(len(plan.alive), 'live worker')}.")
    if plan.dead:
        say(f"Dead workers whose jobs nobody has taken back: {safe(', '.join(plan.dead))}")


def _say_done(source: Store, target: Store, *, as_json: bool) -> None:
    say(f"Moved. Set the store {safe(target.place)} in every program, and start the workers there.", err=as_json)
    say(f"{safe(source.place)} is left behind, closed; keep it until you are sure, then delete it.", err=as_json)
