"""``treadle jobs list|show|count``: looking at jobs."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import click
import msgspec

from treadle.cli.bulk import census_as_json, census_table
from treadle.cli.completion import known_jobs
from treadle.cli.logs import line_as_json, say_line
from treadle.cli.options import ID, TIMES, filtered, json_option
from treadle.cli.output import counted, facts, moment, plain, safe, say, say_json, size, table
from treadle.cli.store import opened, store_option
from treadle.model.job import Attempt, JobFilter, JobRecord, JobState, LogRecord, Usage
from treadle.store.ops import find
from treadle.store.ops import logs as lines

LAST_LINES: Final = 20
LISTED: Final = ("attempts", "tags", "progress")
"""What only ``jobs show`` reads."""


@click.group()
def jobs() -> None:
    """Look at jobs and change them, one or many."""


@jobs.command("list", epilog=TIMES)
@filtered
@click.option("--size", "most", type=click.IntRange(1, find.PAGE_MOST), default=20, show_default=True, help="How many.")
@click.option("--before", type=ID, help="Only ids below this one: the following page.")
@store_option
@json_option
def list_jobs(*, which: JobFilter, most: int, before: int | None, store: str | None, as_json: bool) -> None:
    """List jobs, newest first."""
    with opened(store) as app:
        page = app.find(which, before=before, size=most)
    if as_json:
        say_json({"jobs": [job_as_json(job, leave_out=LISTED) for job in page.jobs], "next": page.next})
        return
    heads = ("id", "queue", "task", "state", "attempt", "enqueued at", "about")
    table(heads, [(j.id, j.queue, j.task, j.state, j.attempt, j.enqueued_at, _about(j)) for j in page.jobs])
    if page.next is not None:
        say(f"There may be more: --before {page.next}")


@jobs.command("count", epilog=TIMES)
@filtered
@store_option
@json_option
def count_jobs(*, which: JobFilter, store: str | None, as_json: bool) -> None:
    """Count jobs by state and task."""
    with opened(store) as app:
        found = app.store.read(partial(find.census, which=which))
    total = sum(one.jobs for one in found)
    if as_json:
        say_json({"jobs": total, "by": census_as_json(found)})
        return
    if found:
        census_table(found)
    say(counted(total, "job"))


@jobs.command("show")
@click.argument("job_id", metavar="ID", type=ID, shell_complete=known_jobs)
@store_option
@json_option
def show_job(*, job_id: int, store: str | None, as_json: bool) -> None:
    """Show one job with everything that is known of it.

    Its arguments and result, every attempt with its traceback, its last log lines.
    """
    with opened(store) as app:
        job = app.get(job_id)
        ending = app.store.read(partial(find.ending, job_id=job_id))
        said = app.store.read(partial(lines.last, which=lines.Lines(job=job_id), most=LAST_LINES))
    result = None if ending is None or ending.data is None else payload(ending.codec, ending.data)
    if as_json:
        attempts = [_attempt_as_json(one) for one in job.attempts]
        logs = [line_as_json(one) for one in said]
        say_json(job_as_json(job) | {"result": result, "attempts": attempts, "logs": logs})
        return
    _say_fields(job, result)
    for attempt in job.attempts:
        _say_attempt(attempt)
    _say_lines(job_id, said)


def payload(codec: str | None, data: bytes | None) -> object:
    """Stored bytes for people: JSON decoded, anything else as base64 under its codec's name."""
    if data is None:
        return None
    if codec == "json":
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {"codec": "json", "undecodable": data.decode("utf-8", "backslashreplace")}
    return {"codec": codec, "base64": plain(data)}


def job_as_json(job: JobRecord, leave_out: tuple[str, ...] = ("attempts",)) -> dict[str, Any]:
    """A job as ``--json`` prints it."""
    shown = {name: plain(getattr(job, name)) for name in JobRecord.__dataclass_fields__ if name not in leave_out}
    return shown | {"arguments": payload(job.codec, job.arguments)}


def _attempt_as_json(attempt: Attempt) -> dict[str, Any]:
    shown: dict[str, Any] = plain(attempt)
    del shown["task"]
    return shown


def _about(job: JobRecord) -> str:
    """Why it is where it is, in a few words."""
    match job.state:
        case JobState.RUNNING:
            stop = f", asked to stop: {job.cancel_reason}" if job.cancel_reason else ""
            return f"on {job.worker or 'no registered worker'} since {moment(job.started_at)}{stop}"
        case JobState.SCHEDULED:
            return f"due {moment(job.due_at)}" + (f", {job.reason}" if job.reason else "")
        case _:
            return job.reason or ""


def _say_fields(job: JobRecord, result: object) -> None:
    counts = f"{counted(job.attempt, 'attempt')}, {counted(job.failures, 'failure')}, {job.crashes:,} crashes"
    facts((
        ("job", job.id),
        ("task", job.task + (f", parameters of version {job.version}" if job.version != 1 else "")),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("state", job.state + (f": {job.reason}" if job.reason else "")),
        ("worker", job.worker),
        ("asked to stop", job.cancel_reason),
        ("counts", counts),
        ("enqueued at", job.enqueued_at),
        ("due at", job.due_at),
        ("expires at", job.expires_at),
        ("started at", job.started_at),
        ("finished at", job.finished_at),
        ("tags", ", ".join(job.tags) or None),
        ("meta", _inline(job.meta) if job.meta else None),
        ("progress", _progress(job)),
        ("arguments", _inline(payload(job.codec, job.arguments))),
        ("result", None if result is None else _inline(result)),
    ))  # fmt: skip


def _progress(job: JobRecord) -> str | None:
    found = job.progress
    return None if found is None else f"{found.fraction:.0%} {found.message}, {moment(found.updated_at)}"


def _say_attempt(attempt: Attempt) -> None:
    seconds = (attempt.finished_at - attempt.started_at).total_seconds()
    say()
    say(f"attempt {attempt.attempt}: {attempt.outcome} after {seconds:.3f} s, {moment(attempt.started_at)}, "
        f"worker {safe(attempt.worker)}, lease {attempt.lease}")  # fmt: skip
    if attempt.usage is not None:
        say(f"  {_used(attempt.usage)}")
    if attempt.error_type or attempt.message:
        say("  " + ": ".join(safe(text, lines=True) for text in (attempt.error_type, attempt.message) if text))
    for line in (attempt.traceback or "").split("\n"):
        if line:
            say(f"  | {safe(line)}")


def _used(usage: Usage) -> str:
    parts = []
    if usage.peak_rss is not None:
        parts.append(f"peak memory {size(usage.peak_rss)}")
    if usage.cpu is not None:
        parts.append(f"processor time {usage.cpu / 1_000_000:.3f} s")
    if usage.exit_code is not None:
        how = f"signal {-usage.exit_code}" if usage.exit_code < 0 else f"exit code {usage.exit_code}"
        parts.append(f"its process ended with {how}")
    return ", ".join(parts)


def _say_lines(job_id: int, said: tuple[LogRecord, ...]) -> None:
    if not said:
        return
    say()
    say(f"last log lines; more with: treadle logs {job_id}")
    for line in said:
        say_line(line, with_job=False)


def _inline(value: object) -> str:
    return safe(msgspec.json.encode(value).decode())
