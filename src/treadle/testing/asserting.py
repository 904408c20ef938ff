"""Asserting what is enqueued: partial matches by decoded arguments, and failures that show what differs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, TypedDict, Unpack

from treadle.app import Treadle
from treadle.clock import to_datetime
from treadle.errors import ConfigurationError, PayloadError, UnknownTask
from treadle.model.definition import TaskDefinition
from treadle.model.job import JobFilter, JobRecord, JobState
from treadle.options import moment_of
from treadle.tasks import Task
from treadle.testing.running import name_of
from treadle.testing.wanted import EnqueuedJob, Wanted, asked_for, differences, headline, nearest

LIVE: Final = tuple(state for state in JobState if not state.ended)
SHOWN: Final = 3
LISTED: Final = 10
ALIKE: Final = 0.8
AnyTask = Task[..., Any] | str | None


class Like(TypedDict, total=False):
    """What a job must be like; what is not given may be anything.

    ``arguments`` and ``meta`` name some entries: values are compared with ``==`` after decoding, so a matcher such as
    ``mock.ANY`` or ``pytest.approx`` may stand for one. Arguments are found by parameter name, however they were
    passed; defaults count. ``tags`` must all be there. ``run_at`` is an aware datetime, ``delay`` a timedelta or
    seconds from the enqueue; both may be off by ``within``, 1 second by default. ``state`` is one state; by default a
    job has not ended.
    """

    arguments: Mapping[str, object]
    queue: str
    priority: int
    tags: Sequence[str]
    meta: Mapping[str, object]
    run_at: datetime
    delay: timedelta | float
    within: timedelta | float
    state: JobState


class _Look(NamedTuple):
    """What there was, and what of it was wanted."""

    app: Treadle
    wanted: Wanted
    found: list[EnqueuedJob]
    others: list[EnqueuedJob]


def all_enqueued(app: Treadle, task: AnyTask = None, **like: Unpack[Like]) -> list[EnqueuedJob]:
    """Every job that is like this and has not ended, oldest first.

    Args:
        app: whose jobs.
        task: a task or its name; None for any.
        **like: see :class:`Like`.

    Example:
        >>> app = Treadle("memory://")
        >>> @app.task(name="send")
        ... def send(to: str, subject: str = "hi") -> None: ...
        >>> job = send.enqueue("ada@example.org")
        >>> [found.arguments for found in all_enqueued(app, send)]
        [{'to': 'ada@example.org', 'subject': 'hi'}]
        >>> app.close()
    """
    return _look(app, task, like).found


def assert_enqueued(
    app: Treadle, task: AnyTask = None, *, count: int | None = None, **like: Unpack[Like]
) -> EnqueuedJob:
    """Make sure that a job like this is enqueued; the oldest that matches is returned.

    Args:
        app: whose jobs.
        task: a task or its name; None for any.
        count: exactly so many must match; by default one or more.
        **like: see :class:`Like`.

    Raises:
        AssertionError: there is none, or not so many; the message compares the nearest jobs field by field.
        ConfigurationError: the task has no such parameter, or there is nothing like this to ask for.

    Example:
        >>> assert_enqueued(app, send, arguments={"to": "ada@example.org"}, delay=60)  # doctest: +SKIP
    """
    __tracebackhide__ = True
    if count is not None and count < 1:
        raise ConfigurationError(f"count={count} must be 1 or more; refute_enqueued() is for none.")
    look = _look(app, task, like)
    if not look.found:
        ended = [] if "state" in like else _ended(look)
        raise AssertionError(_text("No job like this is enqueued:", look, [*ended, *_near(look)]))
    if count is not None and len(look.found) != count:
        near = _near(look) if len(look.found) < count else []
        what = f"{_jobs(len(look.found))} like this, not {count}:"
        raise AssertionError(_text(what, look, [*_listed(look), *near]))
    return look.found[0]


def refute_enqueued(app: Treadle, task: AnyTask = None, **like: Unpack[Like]) -> None:
    """Make sure that no job like this is enqueued.

    Args:
        app: whose jobs.
        task: a task or its name; None for any.
        **like: see :class:`Like`.

    Raises:
        AssertionError: there is one; the message shows what was found.
        ConfigurationError: the task has no such parameter, or there is nothing like this to ask for.
    """
    __tracebackhide__ = True
    look = _look(app, task, like)
    if look.found:
        what = f"{_jobs(len(look.found))} like this, and none was wanted:"
        raise AssertionError(_text(what, look, _listed(look)))


# Looking -------------------------------------------------------------------------------------------------------


def _look(app: Treadle, task: AnyTask, like: Like) -> _Look:
    wanted = _wanted(app, task, like)
    states = (JobState(like["state"]),) if "state" in like else LIVE
    found: list[EnqueuedJob] = []
    others: list[EnqueuedJob] = []
    for job in _stored(app, states, with_tags=bool(wanted.tags)):
        (others if differences(wanted, job) else found).append(job)
    return _Look(app, wanted, found, others)


def _wanted(app: Treadle, task: AnyTask, like: Like) -> Wanted:
    unknown = like.keys() - Like.__annotations__.keys()
    if unknown:
        known = ", ".join(Like.__annotations__)
        raise ConfigurationError(f"A job cannot be asked for by {', '.join(sorted(unknown))}; there is {known}.")
    definition = None if task is None else _definition(app, name_of(task))
    arguments = like.get("arguments", {})
    if definition is not None:
        _check_parameters(definition, arguments)
    if "run_at" in like:
        moment_of("run_at", like["run_at"])
    return Wanted(
        names=None if task is None else (name_of(task),) if definition is None else definition.names,
        arguments=arguments, queue=like.get("queue"), priority=like.get("priority"), tags=tuple(like.get("tags", ())),
        meta=like.get("meta", {}), run_at=like.get("run_at"),
        delay=None if "delay" not in like else _duration(like["delay"]), within=_duration(like.get("within", 1)),
    )  # fmt: skip


def _definition(app: Treadle, name: str) -> TaskDefinition | None:
    """The task, None for one that other programs have; a slip of the pen must not make a refutation true."""
    found = app.registry.find(name)
    if found is None and not app.count(JobFilter(task=name)):
        meant = get_close_matches(name, app.registry.names(), n=1, cutoff=ALIKE)
        if meant:
            raise UnknownTask(f"No task named {name!r} is registered; did you mean {meant[0]!r}?")
    return found


def _check_parameters(definition: TaskDefinition, arguments: Mapping[str, object]) -> None:
    parameters = inspect.signature(definition.function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    unknown = [] if takes_any else [name for name in arguments if name not in parameters]
    if unknown:
        known = ", ".join(name for name in parameters if name not in definition.signature.injected) or "none"
        raise ConfigurationError(f"{definition.name} has no parameter {unknown[0]!r}; it has {known}.")


def _stored(app: Treadle, states: tuple[JobState, ...], *, with_tags: bool) -> Iterator[EnqueuedJob]:
    """Jobs in these states, oldest first."""
    records: list[JobRecord] = []
    before: int | None = None
    while True:
        page = app.find(JobFilter(states=states), before=before, size=500)
        records += page.jobs
        before = page.next
        if before is None:
            break
    for record in reversed(records):
        found = app.get(record.id) if with_tags else record
        yield EnqueuedJob(record=found, arguments=_arguments(app, record))


def _arguments(app: Treadle, record: JobRecord) -> dict[str, object]:
    """A job's arguments by parameter name, as its handler gets them; what cannot be read is shown as it is."""
    if record.arguments is None or record.codec is None:
        return {}
    definition = app.registry.find(record.task)
    try:
        codec = app.codecs.get(record.codec)
        if definition is None:
            found = codec.decode(record.arguments, Any)
            return dict(found) if isinstance(found, dict) else {"arguments": found}
        args, kwargs = definition.decode(codec, record.arguments, record.version)
    except (PayloadError, ConfigurationError) as error:
        return {"unreadable": f"{record.arguments!r} ({error})"}
    return _by_name(definition, args, kwargs)


def _by_name(definition: TaskDefinition, args: list[object], kwargs: dict[str, object]) -> dict[str, object]:
    signature = inspect.signature(definition.function)
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    found: dict[str, object] = {}
    for name, value in bound.arguments.items():
        if name in definition.signature.injected:
            continue
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def _duration(given: timedelta | float) -> timedelta:
    return given if isinstance(given, timedelta) else timedelta(seconds=given)


# Telling -------------------------------------------------------------------------------------------------------


def _text(what: str, look: _Look, more: Sequence[str]) -> str:
    return "\n".join([what, *(f"  {line}" for line in asked_for(look.wanted) or ["anything"]), *more])


def _listed(look: _Look) -> list[str]:
    now = to_datetime(look.app.clock.now())
    lines = [f"  {headline(job, now)}" for job in look.found[:LISTED]]
    left = len(look.found) - len(lines)
    return ["Found:", *lines, *([f"  and {left} more"] if left else [])]


def _near(look: _Look) -> list[str]:
    if not look.others:
        return [] if look.found else ["Nothing else is enqueued."]
    now = to_datetime(look.app.clock.now())
    shown = min(SHOWN, len(look.others))
    title = "The only other job:" if len(look.others) == 1 else f"The {len(look.others)} other jobs:"
    if shown < len(look.others):
        title = f"The nearest {shown} of {len(look.others)} other jobs:"
    return [title, *nearest(look.others, look.wanted, SHOWN, now)]


def _ended(look: _Look) -> list[str]:
    """Jobs that are as wanted, but have ended already."""
    now = to_datetime(look.app.clock.now())
    states = tuple(state for state in JobState if state.ended)
    jobs = _stored(look.app, states, with_tags=bool(look.wanted.tags))
    found = [job for job in jobs if not differences(look.wanted, job)]
    lines = [f"  {headline(job, now)}" for job in found[-SHOWN:]]
    return ["It is as wanted, but has ended already; did a worker or run_pending() run it?", *lines] if lines else []


def _jobs(number: int) -> str:
    return "There is 1 job" if number == 1 else f"There are {number} jobs"
