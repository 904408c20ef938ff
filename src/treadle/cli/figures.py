"""``treadle stats|doctor|verify``: how it stands, what is wrong, whether the file can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import click

from treadle.app import Treadle
from treadle.cli.options import json_option
from treadle.cli.output import counted_states, facts, moment, safe, say, say_json, size, table
from treadle.cli.pausing import paused_text
from treadle.cli.store import asked, opened, store_option
from treadle.clock import SECOND, SystemClock
from treadle.doctor import examine
from treadle.doctor.finding import Level
from treadle.model.job import JobState
from treadle.settings import Settings, load, store_options
from treadle.store import health
from treadle.store import verify as checks
from treadle.store.verdict import Verdict

HOUR: Final = 3600 * SECOND


@click.command()
@store_option
@json_option
def stats(*, store: str | None, as_json: bool) -> None:
    """Count jobs by queue and state, workers, pauses, bytes."""
    with opened(store) as app:
        found = _figures(app)
        pauses = app.pauses()
    if as_json:
        say_json(found | {"pauses": pauses})
        return
    queues = found["queues"]
    states = [state for state in JobState if any(state in counts for counts in queues.values())]
    if queues:
        table(("queue", *states), [(name, *counted_states(counts, states)) for name, counts in sorted(queues.items())])
    else:
        say("No jobs.")
    workers, hour = found["workers"], found["ended_last_hour"]
    facts((
        ("workers", ", ".join(f"{number} {word}" for word, number in workers.items())),
        ("last hour", ", ".join(f"{number:,} {state}" for state, number in hour.items())),
        ("next due", moment(found["next_due"])),
        *(("paused", f"{one.kind} {one.name} {paused_text(one)}") for one in pauses),
        ("database", f"{found['database']}, {size(found['bytes'])}" + (
            "" if found["wal_bytes"] is None else f", write-ahead log {size(found['wal_bytes'])}")),
        ("SQLite", found["sqlite"]),
        ("PostgreSQL", found["postgresql"]),
    ))  # fmt: skip


@click.command()
@store_option
@json_option
def doctor(*, store: str | None, as_json: bool) -> None:
    """Say what is wrong with the store, and what to do.

    Exit code 1 when something is a PROBLEM; a note is something to know.
    """
    limits = load(Settings())
    findings = examine(asked(store), SystemClock(), store_options(limits, auto_migrate=False))
    wrong = any(finding.level is Level.PROBLEM for finding in findings)
    if as_json:
        say_json({"healthy": not wrong, "findings": findings})
    else:
        for finding in findings:
            _say_finding(finding.level, finding.check, finding.text, finding.remedy)
    sys.exit(1 if wrong else 0)


@click.command("verify")
@store_option
@json_option
def verify(*, store: str | None, as_json: bool) -> None:
    """Check the whole store: is every promise kept?

    SQLite's own full check, then what must hold between Treadle's tables. Exit code 1 when something does not. It reads
    everything. On a file of many GB verify a copy made by 'treadle backup'; on PostgreSQL a replica or a restored dump.
    """
    with opened(store) as app:
        found = list(_told(checks.verify(app.store), quiet=as_json))
    sound = all(verdict.sound for verdict in found)
    if as_json:
        say_json({"sound": sound, "checks": found})
    sys.exit(0 if sound else 1)


def _told(verdicts: Iterable[Verdict], *, quiet: bool) -> Iterable[Verdict]:
    for verdict in verdicts:
        if not quiet:
            _say_finding(Level.OK if verdict.sound else Level.PROBLEM, verdict.check, verdict.text, verdict.remedy)
        yield verdict


def _say_finding(level: Level, what: str, text: str, remedy: str | None) -> None:
    say(f"{level:<8} {what}: {safe(text)}")
    if remedy:
        say(f"{'':<8} -> {safe(remedy)}")


def _figures(app: Treadle) -> dict[str, Any]:
    states = app.store.read(health.queue_states)
    queues: dict[str, dict[JobState, int]] = {}
    for one in states:
        queues.setdefault(one.queue, {})[one.state] = one.jobs
    workers, about = app.workers(), app.store.read(app.store.engine.about)
    alive = [worker for worker in workers if worker.alive]
    return {
        "queues": queues,
        "states": states,
        "ended_last_hour": app.store.read(partial(health.ended_since, since=app.clock.now() - HOUR)),
        "workers": {
            "alive": len(alive),
            "stalled": sum(worker.stalled for worker in alive),
            "paused": sum(worker.orders == "pause" for worker in alive),
            "draining": sum(worker.orders == "drain" for worker in alive),
            "dead": len(workers) - len(alive),
        },
        "next_due": app.next_due(),
        "database": app.store.place,
        "bytes": about.size,
        "wal_bytes": about.log_size,
        "sqlite": about.version if about.software == "SQLite" else None,
        "postgresql": about.version if about.software == "PostgreSQL" else None,
    }
