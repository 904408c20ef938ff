"""``treadle jobs``: look at jobs, run them again, call them off."""

from __future__ import annotations

import base64
from dataclasses import asdict
from functools import partial
from typing import Any

import click
import msgspec

from treadle.cli.output import moment, safe, say, say_json, table
from treadle.cli.store import opened, store_option
from treadle.model.job import Attempt, JobFilter, JobRecord, JobState
from treadle.store.ops import find


@click.group()
def jobs() -> None:
    """Look at jobs, run them again, call them off."""


@jobs.command("list")
@store_option
@click.option("--queue", help="Only this queue.")
@click.option("--state", "states", multiple=True, type=click.Choice([state.value for state in JobState]),
              help="Only this state; may be given several times.")  # fmt: skip
@click.option("--task", help="Only this task.")
@click.option("--tag", help="Only jobs with this tag.")
@click.option("--size", type=click.IntRange(1, find.PAGE_MOST), default=20, show_default=True, help="How many.")
@click.option("--before", type=int, help="Only ids below this one: the following page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_jobs(
    *,
    store: str | None,
    queue: str | None,
    states: tuple[str, ...],
    task: str | None,
    tag: str | None,
    size: int,
    before: int | None,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    which = JobFilter(queue=queue, task=task, tag=tag, states=tuple(JobState(state) for state in states))
    with opened(store) as app:
        page = app.find(which, before=before, size=size)
    if as_json:
        say_json({"jobs": [job_as_json(job) for job in page.jobs], "next": page.next})
        return
    heads = ("id", "queue", "task", "state", "attempt", "enqueued at", "reason")
    table(heads, [(j.id, j.queue, j.task, j.state, j.attempt, j.enqueued_at, j.reason) for j in page.jobs])
    if page.next is not None:
        say(f"There may be more: --before {page.next}")


@jobs.command("show")
@click.argument("job_id", metavar="ID", type=int)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_job(*, job_id: int, store: str | None, as_json: bool) -> None:
    """Show one job: its arguments, its result, and every attempt with its traceback."""
    with opened(store) as app:
        job = app.get(job_id)
        ending = app.store.read(partial(find.ending, job_id=job_id))
    result = None if ending is None or ending.data is None else payload(ending.codec, ending.data)
    if as_json:
        say_json(job_as_json(job) | {"result": result, "attempts": [_attempt_as_json(a) for a in job.attempts]})
        return
    _say_fields(job)
    say(f"arguments    {_inline(payload(job.codec, job.arguments))}")
    if result is not None:
        say(f"result       {_inline(result)}")
    for attempt in job.attempts:
        _say_attempt(attempt)


@jobs.command("retry")
@click.argument("job_ids", metavar="ID...", type=int, nargs=-1, required=True)
@store_option
def retry_jobs(*, job_ids: tuple[int, ...], store: str | None) -> None:
    """Run failed, held or cancelled jobs again, with their whole budget."""
    with opened(store) as app:
        for job_id in job_ids:
            app.retry(job_id)
            say(f"job {job_id} is ready again")


@jobs.command("cancel")
@click.argument("job_ids", metavar="ID...", type=int, nargs=-1, required=True)
@click.option("--reason", default="cancelled by hand", show_default=True, help="Kept with the job.")
@store_option
def cancel_jobs(*, job_ids: tuple[int, ...], reason: str, store: str | None) -> None:
    """Call off jobs that have not begun."""
    with opened(store) as app:
        for job_id in job_ids:
            app.cancel(job_id, reason)
            say(f"job {job_id} is cancelled")


def payload(codec: str | None, data: bytes | None) -> object:
    """Stored bytes for people: JSON decoded, anything else as base64 under its codec's name."""
    if data is None:
        return None
    if codec == "json":
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {"codec": "json", "undecodable": data.decode("utf-8", "backslashreplace")}
    return {"codec": codec, "base64": base64.b64encode(data).decode("ascii")}


def job_as_json(job: JobRecord) -> dict[str, Any]:
    """A job as ``--json`` prints it; the attempts are left out."""
    shown = {name: getattr(job, name) for name in JobRecord.__dataclass_fields__ if name != "attempts"}
    shown |= {name: value.isoformat() for name, value in shown.items() if hasattr(value, "isoformat")}
    shown["progress"] = None if job.progress is None else asdict(job.progress)
    return shown | {"arguments": payload(job.codec, job.arguments)}


def _attempt_as_json(attempt: Attempt) -> dict[str, Any]:
    return asdict(attempt)


def _say_fields(job: JobRecord) -> None:
    say(f"job          {job.id}")
    say(f"task         {safe(job.task)}")
    say(f"queue        {safe(job.queue)}, priority {job.priority}")
    say(f"state        {job.state}" + (f": {safe(job.reason)}" if job.reason else ""))
    say(f"counts       {job.attempt} attempts, {job.failures} failures, {job.crashes} crashes")
    for name in ("enqueued_at", "due_at", "started_at", "finished_at"):
        say(f"{name.replace('_at', ' at'):<12} {moment(getattr(job, name))}")
    if job.tags:
        say(f"tags         {safe(', '.join(job.tags))}")
    if job.meta:
        say(f"meta         {_inline(job.meta)}")
    if job.progress is not None:
        say(f"progress     {job.progress.fraction:.0%} {safe(job.progress.message)}, {moment(job.progress.updated_at)}")


def _say_attempt(attempt: Attempt) -> None:
    seconds = (attempt.finished_at - attempt.started_at).total_seconds()
    say()
    say(f"attempt {attempt.attempt}: {attempt.outcome} after {seconds:.3f} s, {moment(attempt.started_at)}, "
        f"worker {safe(attempt.worker)}, lease {attempt.lease}")  # fmt: skip
    if attempt.error_type or attempt.message:
        say("  " + ": ".join(safe(text, lines=True) for text in (attempt.error_type, attempt.message) if text))
    for line in (attempt.traceback or "").split("\n"):
        if line:
            say(f"  | {safe(line)}")


def _inline(value: object) -> str:
    return safe(msgspec.json.encode(value).decode())
