"""Changing jobs: named ones one by one, matching ones after they were counted and somebody said yes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import click

from treadle.app import Treadle
from treadle.cli.options import Target
from treadle.cli.output import counted, plain, safe, say, say_json, table
from treadle.cli.store import opened
from treadle.clock import to_datetime
from treadle.errors import ConfigurationError, JobNotFound, JobStateError
from treadle.model.job import JobFilter, JobState
from treadle.store.ops import find

INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that can be done to jobs.

    Attributes:
        name: as a person types it: ``cancel``.
        ask: the question before it, with ``{}`` for "3 jobs": ``Cancel {}?``.
        done: as the sentence "3 jobs were … " ends.
        states: where it is legal; other jobs stay as they are.
        act: does it to one id, or to all that a filter matches, and returns how many were changed.
        told: what has become of one job, in words: "job 17 …".
    """

    name: str
    ask: str
    done: str
    states: frozenset[JobState]
    act: Callable[[Treadle, int | JobFilter], int]
    told: Callable[[Treadle, int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A named job that was left alone, and why."""

    id: int
    why: str


def perform(target: Target, verb: Verb) -> None:
    """Do *verb* to what *target* means; exit code 1 when a named job was refused or nobody said yes."""
    with opened(target.store) as app:
        if target.ids and not target.dry_run:
            _each(app, target, verb)
        else:
            _matching(app, target, verb)


def consent(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back; go on only after a yes.

    Raises:
        ConfigurationError: nobody said ``--yes`` and there is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask on: pass --yes to do it, --dry-run to look.")
    try:
        agreed = click.confirm(safe(question), err=True)
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise  # Ctrl-C
        agreed = False
    if not agreed:
        say("Nothing was changed.", err=True)
        sys.exit(1)


def census_as_json(found: Sequence[find.Census]) -> list[Any]:
    """Counts by state and task as ``--json`` prints them."""
    return [plain(one) for one in _sorted(found)]


def census_table(found: Sequence[find.Census]) -> None:
    """Print counts by state and task."""
    table(("state", "task", "jobs"), [(one.state, one.task, f"{one.jobs:,}") for one in _sorted(found)])


def _each(app: Treadle, target: Target, verb: Verb) -> None:
    changed: list[int] = []
    refused: list[Refusal] = []
    for number in dict.fromkeys(target.ids):
        try:
            verb.act(app, number)
        except (JobNotFound, JobStateError) as error:
            refused.append(Refusal(id=number, why=str(error)))
            say(str(error), err=True)
            continue
        changed.append(number)
        if not target.as_json:
            say(f"job {number} {verb.told(app, number)}")
    if target.as_json:
        say_json({"verb": verb.name, "dry_run": False, "changed": len(changed), "ids": changed, "refused": refused})
    if refused:
        sys.exit(1)


def _matching(app: Treadle, target: Target, verb: Verb) -> None:
    which, counted_at = replace(target.which, ids=target.ids), to_datetime(app.clock.now())
    # Jobs enqueued while somebody reads the question are not meant.
    which = replace(which, enqueued_before=_earlier(which.enqueued_before, counted_at + INSTANT))
    found = app.store.read(partial(find.census, which=which))
    meant = [one for one in found if one.state in verb.states]
    jobs, others = sum(one.jobs for one in meant), sum(one.jobs for one in found if one.state not in verb.states)
    if not target.as_json:
        _say_plan(verb, meant, jobs, others)
    changed = 0
    if jobs and not target.dry_run:
        consent(verb.ask.replace("{}", counted(jobs, "job")), yes=target.yes)
        changed = verb.act(app, which)
        if not target.as_json:
            say(f"{counted(changed, 'job')} {'was' if changed == 1 else 'were'} {verb.done}.")
    if target.as_json:
        say_json({
            "verb": verb.name, "dry_run": target.dry_run, "matched": jobs, "others": others,
            "by": census_as_json(meant), "changed": changed,
        })  # fmt: skip


def _say_plan(verb: Verb, meant: Sequence[find.Census], jobs: int, others: int) -> None:
    if meant:
        census_table(meant)
    may = ", ".join(state for state in JobState if state in verb.states)
    say(f"{counted(jobs, 'job')} would be {verb.done}." if jobs else f"No job that matches can be {verb.done}.")
    if others:
        say(f"{counted(others, 'other job')} in another state will stay as it is; {verb.name} is for: {may}.")


def _earlier(first: datetime | None, second: datetime) -> datetime:
    return second if first is None else min(first, second)


def _sorted(found: Sequence[find.Census]) -> list[find.Census]:
    return sorted(found, key=lambda one: (one.state.code, one.task))
