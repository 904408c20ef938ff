"""Comparing stored jobs with one that is wanted, and saying in lines what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from treadle.model.job import JobRecord, JobState

MISSING: Final = "missing"
SHORT: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueuedJob:
    """A stored job with its arguments as its handler gets them.

    Attributes:
        record: what the database knows about it.
        arguments: by parameter name, decoded and typed, defaults included.
    """

    record: JobRecord
    arguments: Mapping[str, object]

    @property
    def id(self) -> int:
        """The job's id."""
        return self.record.id

    @property
    def task(self) -> str:
        """The name it was stored under."""
        return self.record.task


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a job must be like; None means anything.

    Attributes:
        names: the task's name and its aliases.
        arguments: some of its arguments, by parameter name.
        queue: its queue.
        priority: its priority.
        tags: words that it must all have.
        meta: some of its meta.
        run_at: when it is due.
        delay: the same, counted from its enqueue.
        within: how much later or earlier is as good.
    """

    names: tuple[str, ...] | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    queue: str | None = None
    priority: int | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)
    run_at: datetime | None = None
    delay: timedelta | None = None
    within: timedelta = timedelta(seconds=1)


class Difference(NamedTuple):
    """One field that is not as wanted; both sides in words."""

    field: str
    wanted: str
    found: str


def differences(wanted: Wanted, job: EnqueuedJob) -> list[Difference]:
    """What is not as wanted, the task first; empty for a match."""
    return list(_different(wanted, job))


def _different(wanted: Wanted, job: EnqueuedJob) -> Iterator[Difference]:
    record = job.record
    if wanted.names is not None and record.task not in wanted.names:
        yield Difference("task", wanted.names[0], record.task)
    yield from _entries("arguments", wanted.arguments, job.arguments)
    for name in ("queue", "priority"):
        value = getattr(wanted, name)
        if value is not None and getattr(record, name) != value:
            yield Difference(name, shown(value), shown(getattr(record, name)))
    missing = [tag for tag in wanted.tags if tag not in record.tags]
    if missing:
        yield Difference("tags", _words(wanted.tags), _words(record.tags))
    yield from _entries("meta", wanted.meta, record.meta)
    yield from _times(wanted, record)


def _entries(what: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> Iterator[Difference]:
    for name, value in wanted.items():
        if name not in found:
            yield Difference(f"{what}.{name}", shown(value), MISSING)
        elif not _equal(value, found[name]):
            yield Difference(f"{what}.{name}", *_told_apart(value, found[name]))


def _times(wanted: Wanted, record: JobRecord) -> Iterator[Difference]:
    if wanted.run_at is not None and abs(record.due_at - wanted.run_at) > wanted.within:
        yield Difference("run_at", str(wanted.run_at), f"{record.due_at} ({_off(record.due_at - wanted.run_at)})")
    if wanted.delay is not None:
        found = record.due_at - record.enqueued_at
        if abs(found - wanted.delay) > wanted.within:
            yield Difference("delay", str(wanted.delay), f"{found} ({_off(found - wanted.delay)})")


def _equal(wanted: object, found: object) -> bool:
    """Wanted first, so that matchers such as ``pytest.approx`` and ``mock.ANY`` decide."""
    return bool(wanted == found)


def _told_apart(wanted: object, found: object) -> tuple[str, str]:
    """Both in words; with their types where the words are the same."""
    told = shown(wanted), shown(found)
    if told[0] != told[1]:
        return told
    return f"{told[0]} ({type(wanted).__qualname__})", f"{told[1]} ({type(found).__qualname__})"


# In words ------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value for a line of a message."""
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}… ({len(text)} characters)"


def asked_for(wanted: Wanted) -> list[str]:
    """What is wanted, a line each."""
    fields: dict[str, str | None] = {
        "task": None if wanted.names is None else wanted.names[0],
        "arguments": _call(wanted.arguments) or None,
        "queue": None if wanted.queue is None else shown(wanted.queue),
        "priority": None if wanted.priority is None else str(wanted.priority),
        "tags": _words(wanted.tags) if wanted.tags else None,
        "meta": _call(wanted.meta) or None,
        "run_at": None if wanted.run_at is None else str(wanted.run_at),
        "delay": None if wanted.delay is None else str(wanted.delay),
    }
    return _aligned([(name, text) for name, text in fields.items() if text is not None])


def headline(job: EnqueuedJob, now: datetime) -> str:
    """A job in one line."""
    record = job.record
    when = f" for {record.due_at}, {_from_now(record.due_at - now)}" if record.state is JobState.SCHEDULED else ""
    why = f": {record.reason}" if record.state is JobState.HELD and record.reason else ""
    return f"job {job.id} {job.task}({_call(job.arguments)}), {record.state}{when}{why}"


def compared(found: Sequence[Difference]) -> list[str]:
    """Differences, a line each."""
    return _aligned([(one.field, f"wanted {one.wanted}, is {one.found}") for one in found])


def nearest(jobs: Sequence[EnqueuedJob], wanted: Wanted, most: int, now: datetime) -> list[str]:
    """Those jobs that differ least, with what differs; the newest first among equals."""
    measured = [(differences(wanted, job), job) for job in jobs]
    measured.sort(key=lambda one: (_weight(one[0]), -one[1].id))
    lines: list[str] = []
    for found, job in measured[:most]:
        if found and found[0].field == "task":
            found = found[:1]  # of another task nothing else is worth a line  # noqa: PLW2901
        lines += [f"  {headline(job, now)}", *(f"    {line}" for line in compared(found))]
    return lines


def _weight(found: Sequence[Difference]) -> int:
    """Another task is farther away than any number of other fields."""
    return sum(100 if one.field == "task" else 1 for one in found)


def _call(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())


def _words(tags: Sequence[str]) -> str:
    return ", ".join(tags) or "none"


def _from_now(by: timedelta) -> str:
    seconds = by.total_seconds()
    return f"{-seconds:g} s ago" if seconds < 0 else f"in {seconds:g} s"


def _off(by: timedelta) -> str:
    seconds = by.total_seconds()
    return f"{abs(seconds):g} s {'earlier' if seconds < 0 else 'later'}"


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {text}" for name, text in rows]


