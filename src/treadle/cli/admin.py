"""Commands about the whole store: figures, workers, schema, backups, pruning, doctor."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from treadle import defaults
from treadle.app import Treadle
from treadle.cli.output import moment, safe, say, say_json, size, table
from treadle.cli.store import opened, path_of, store_option
from treadle.clock import SystemClock, to_duration
from treadle.doctor import Level, examine, wal_bytes
from treadle.errors import StoreUnusable
from treadle.model.job import JobState
from treadle.model.retention import Keep, Retention
from treadle.store import adoption, health, migrate
from treadle.store.ops import prune

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@store_option
@json_option
def stats(*, store: str | None, as_json: bool) -> None:
    """Count jobs by queue and state, and workers."""
    with opened(store) as app:
        facts = _facts(app)
    if as_json:
        say_json(facts)
        return
    queues = facts["queues"]
    states = [state for state in JobState if any(state in counts for counts in queues.values())]
    if queues:
        rows = [(queue, *(counts.get(state, 0) for state in states)) for queue, counts in sorted(queues.items())]
        table(("queue", *states), rows)
    else:
        say("No jobs.")
    workers = facts["workers"]
    say(f"workers   {workers['alive']} alive, {workers['stalled']} of them stalled; {workers['dead']} dead")
    say(f"next due  {facts['next_due'] or '-'}")
    say(f"database  {safe(facts['database'])}, {size(facts['bytes'])}, write-ahead log {size(facts['wal_bytes'])}")
    say(f"SQLite    {facts['sqlite']}")


@click.group()
def workers() -> None:
    """Look at workers."""


@workers.command("list")
@store_option
@json_option
def list_workers(*, store: str | None, as_json: bool) -> None:
    """List registered workers; whether one lives is read from its lock."""
    with opened(store) as app:
        found = app.workers()
    if as_json:
        say_json({"workers": [asdict(worker) for worker in found]})
        return
    heads = ("slot", "name", "pid", "state", "running", "concurrency", "seen at", "queues", "tasks")
    rows = []
    for one in found:
        state = "dead" if not one.alive else "stalled" if one.stalled else "alive"
        running, queues, tasks = one.running, ",".join(one.queues) or "every", ",".join(one.tasks)
        rows.append((one.slot, one.name, one.pid, state, running, one.concurrency, one.seen_at, queues, tasks))
    table(heads, rows)


@click.command("migrate")
@store_option
@click.option("--sql", is_flag=True, help="Only print the script of what is missing; change nothing.")
def migrate_(*, store: str | None, sql: bool) -> None:
    """Create or upgrade the tables."""
    path = path_of(store)
    before = health.file_schema(path)
    newest = migrate.migrations()[-1].version
    if sql:
        click.echo(migrate.pending_sql(after=before) or f"-- Schema {before} is current; nothing is missing.")
        return
    with Treadle(f"sqlite:///{path}") as app:
        app.counts()  # the first use opens the store, and opening upgrades it
    say(f"Schema {before} was current." if before >= newest else f"Upgraded {path} from schema {before} to {newest}.")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@store_option
def backup(*, target: Path, store: str | None) -> None:
    """Copy the database to TARGET while it is in use.

    Workers refuse the copy until 'treadle adopt' is run on it.
    """
    with opened(store) as app:
        made = app.backup(target)
    say(f"Copied to {made}, checked and marked as a copy. To work on it: treadle adopt --store {made}")


@click.command()
@store_option
def adopt(*, store: str | None) -> None:
    """Make a backup copy the database to work on; only when the original is gone."""
    with opened(store) as app:
        taken = adoption.adopt(app.store)
    if taken is None:
        raise StoreUnusable(f"{path_of(store)} is not a backup copy; nothing was changed.")
    say(f"Adopted. {taken} jobs that were running when the copy was made are ready again.")


@click.command("prune")
@store_option
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS",
              help="Delete jobs that ended longer ago. Default: 7 succeeded, 30 cancelled, 90 failed.")  # fmt: skip
def prune_(*, store: str | None, older_than: float | None) -> None:
    """Delete the history of jobs that ended long ago, in short slices."""
    retention = Retention()
    if older_than is not None:
        keep = Keep(age=timedelta(days=older_than))
        retention = replace(retention, succeeded=keep, failed=keep, cancelled=keep)
    now, deleted = SystemClock().now(), 0
    with opened(store) as app:
        for state, rule in retention.rules():
            assert rule.age is not None
            slice_ = partial(prune.prune, state=state, before=now - to_duration(rule.age), most=defaults.PRUNE_SLICE)
            while found := app.store.run(slice_):
                deleted += found
    say(f"Deleted {deleted} jobs with their history.")


@click.command()
@store_option
@json_option
def doctor(*, store: str | None, as_json: bool) -> None:
    """Look for what is wrong with the store and say what to do. Exit code 1 when something is."""
    findings = examine(path_of(store), SystemClock())
    wrong = any(finding.level is Level.PROBLEM for finding in findings)
    if as_json:
        say_json({"healthy": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            say(f"{finding.level:<8} {finding.check}: {safe(finding.text)}")
            if finding.remedy:
                say(f"{'':<8} -> {safe(finding.remedy)}")
    sys.exit(1 if wrong else 0)


def _facts(app: Treadle) -> dict[str, Any]:
    found = app.workers()
    due = app.next_due()
    path = app.store.path
    return {
        "queues": {queue: {str(s): number for s, number in counts.items()} for queue, counts in app.counts().items()},
        "workers": {
            "alive": sum(worker.alive for worker in found),
            "stalled": sum(worker.stalled for worker in found),
            "dead": sum(not worker.alive for worker in found),
        },
        "next_due": None if due is None else moment(due),
        "database": str(path),
        "bytes": path.stat().st_size,
        "wal_bytes": wal_bytes(path),
        "sqlite": health.library_version(),
    }
