"""``treadle migrate|backup|adopt|compact|prune``: the database itself."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import click

from treadle import defaults
from treadle.app import Treadle
from treadle.cli.bulk import consent
from treadle.cli.options import DURATION, dry_run_option, json_option, yes_option
from treadle.cli.output import counted, plain, safe, say, say_json, size, span, table
from treadle.cli.store import asked, opened, path_of, store_option
from treadle.clock import to_duration
from treadle.errors import StoreUnusable
from treadle.model.job import JobState
from treadle.model.retention import Retention
from treadle.settings import Settings, load, store_options
from treadle.store import adoption, compaction, health, schemas
from treadle.store.ops import prune

DUMP: Final = "Copy it with pg_dump --schema=treadle, which works while everybody works."
ENDED: Final = [state.value for state in JobState if state.ended]


class Old(NamedTuple):
    """Jobs that ended in a state longer ago than they are kept: how long that is, the moment, and how many."""

    state: JobState
    older_than: timedelta
    before: int
    jobs: int


@click.command("migrate")
@store_option
@click.option("--sql", is_flag=True, help="Only print the script of what is missing; change nothing.")
def migrate_(*, store: str | None, sql: bool) -> None:
    """Create or upgrade the tables."""
    url = asked(store)
    options = store_options(load(Settings(store=url)), auto_migrate=False)
    schema = schemas.look(url, options)
    if sql:
        click.echo(schema.script or f"-- Schema {schema.found} is current; nothing is missing.")
        return
    with Treadle(url) as app:
        place = app.store.place  # the first use opens the store, and opening upgrades it
    if schema.found >= schema.newest:
        say(f"Schema {schema.found} was current.")
    else:
        say(f"Upgraded {place} from schema {schema.found} to {schema.newest}.")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@store_option
def backup(*, target: Path, store: str | None) -> None:
    """Copy the database to TARGET while it is in use.

    Workers refuse the copy until 'treadle adopt' is run on it.
    """
    path_of(store, DUMP)
    with opened(store) as app:
        made = app.backup(target)
    say(f"Copied to {made}, checked and marked as a copy. To work on it: treadle adopt --store {made}")


@click.command()
@store_option
def adopt(*, store: str | None) -> None:
    """Make a backup copy the database to work on.

    Only when the original is gone: both would run the same jobs.
    """
    path = path_of(store, "What pg_restore made may be worked on at once, if nobody works on the original any more.")
    with opened(store) as app:
        taken = adoption.adopt(app.store)
    if taken is None:
        raise StoreUnusable(f"{path} is not a backup copy; nothing was changed.")
    say(f"Adopted. {taken} jobs that were running when the copy was made are ready again.")


@click.command()
@dry_run_option
@yes_option
@store_option
@json_option
def compact(*, dry_run: bool, yes: bool, store: str | None, as_json: bool) -> None:
    """Give the space of deleted jobs back to the disk.

    The file is rebuilt in place, without its unused pages. Nobody can write meanwhile: workers wait, and enqueue is
    refused when it takes longer than its lock_timeout. So it asks first when workers live. A crash leaves the file as
    it was.
    """
    path_of(store, "There autovacuum keeps the room for new rows; VACUUM FULL gives it back while workers are stopped.")
    with opened(store) as app:
        space = app.store.read(health.space)
        alive = [worker.name for worker in app.workers() if worker.alive]
        if not as_json:
            say(f"{safe(str(app.store.path))} has {size(space.size)}, {size(space.unused)} of them unused.")
            say(f"Compacting needs {size(compaction.needed(app.store, space))} free on the disk meanwhile.")
        done = None
        if not dry_run:
            if alive:
                who = f"{counted(len(alive), 'live worker')} ({', '.join(alive)})"
                consent(f"{who} and all enqueues wait meanwhile. Go on?", yes=yes)
            done = compaction.compact(app.store)
    if as_json:
        say_json({"dry_run": dry_run, "size": space.size, "unused": space.unused, "live_workers": alive, "done": done})
    elif done is not None:
        say(f"{size(done.before)} before, {size(done.after)} now, the write-ahead log included.")
        if not done.complete:
            say("Somebody's long read keeps the file from shrinking yet; workers finish it when that read is over.")


@click.command("prune")
@click.option("--state", "states", multiple=True, type=click.Choice(ENDED),
              help="Only jobs that ended so; may be given several times. Default: all three.")  # fmt: skip
@click.option("--older-than", type=DURATION,
              help="Only jobs that ended longer ago: 12h, 7d. Default: as workers do, 7d succeeded, 30d cancelled, 90d "
                   "failed.")  # fmt: skip
@dry_run_option
@yes_option
@store_option
@json_option
def prune_(
    *,
    states: tuple[str, ...],
    older_than: timedelta | None,
    dry_run: bool,
    yes: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Delete jobs that ended long ago, with their history.

    It goes in short slices, so nobody waits. Workers do the same all the time, by their own rules.
    """
    wanted = tuple(JobState(state) for state in states or ENDED)
    with opened(store) as app:
        old = _old(app, wanted, older_than)
        if not as_json:
            table(("state", "older than", "jobs"), [(one.state, span(one.older_than), f"{one.jobs:,}") for one in old])
        jobs, deleted = sum(one.jobs for one in old), 0
        if jobs and not dry_run:
            consent(f"Delete {counted(jobs, 'job')}, history included?", yes=yes)
            deleted = sum(_prune(app, one) for one in old)
    if as_json:
        rows = [{"state": one.state, "older_than": plain(one.older_than), "jobs": one.jobs} for one in old]
        say_json({"dry_run": dry_run, "old": rows, "deleted": deleted})
    elif dry_run:
        say(f"{counted(jobs, 'job')} would be deleted.")
    else:
        say(f"Deleted {counted(deleted, 'job')}, history included.")


def _old(app: Treadle, wanted: tuple[JobState, ...], older_than: timedelta | None) -> list[Old]:
    now, found = app.clock.now(), []
    for state, rule in Retention().rules():
        if state not in wanted:
            continue
        assert rule.age is not None
        age = rule.age if older_than is None else older_than
        before = now - to_duration(age)
        jobs = app.store.read(partial(prune.count_old, state=state, before=before))
        found.append(Old(state, age, before, jobs))
    return found


def _prune(app: Treadle, old: Old) -> int:
    slice_ = partial(prune.prune, state=old.state, before=old.before, most=defaults.PRUNE_SLICE)
    deleted = 0
    while found := app.store.run(slice_):
        deleted += found
    return deleted
