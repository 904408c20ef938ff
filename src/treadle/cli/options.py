"""What several commands take: times and durations, which jobs are meant, whether to ask first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

from treadle.cli.completion import known_queues, known_tasks
from treadle.cli.store import store_option
from treadle.clock import SystemClock, to_datetime
from treadle.model.job import JobFilter, JobState

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]
PART: Final = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|min|m|h|d|w)")
UNITS: Final = {
    "us": timedelta(microseconds=1), "µs": timedelta(microseconds=1), "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1), "m": timedelta(minutes=1), "min": timedelta(minutes=1), "h": timedelta(hours=1),
    "d": timedelta(days=1), "w": timedelta(weeks=1),
}  # fmt: skip
LONGEST: Final = timedelta(days=36_500)
ID_MOST: Final = (1 << 63) - 1
ID: Final = click.IntRange(min=1, max=ID_MOST)
TIMES: Final = "TIME is ISO 8601, in UTC unless it has an offset, or an age: 30m, 2h, 7d ago."


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """A length of time with its unit: ``700us``, ``1.5s``, ``1h30m``; plain ``0`` is allowed."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it, or fail as a wrong usage."""
        if isinstance(value, timedelta):
            return value
        found = duration_of(str(value))
        if found is None or found > LONGEST:
            self.fail(f"{value!r} is no duration; write a number with its unit, such as 700us, 90s, 2h or 7d.")
        return found


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A moment: ISO 8601, where nothing else is said in UTC; or, where that makes sense, an age."""

    name = "TIME"

    def __init__(self, *, ages: bool) -> None:
        self._ages = ages

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it, or fail as a wrong usage."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        age = duration_of(text) if self._ages else None
        try:
            if age is not None:
                return to_datetime(SystemClock().now()) - age
            found = datetime.fromisoformat(text)
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        except (ValueError, OverflowError):
            hint = "ISO 8601 such as 2030-01-02T03:04Z" + (", or an age such as 2h or 7d" if self._ages else "")
            self.fail(f"{value!r} is no time; write {hint}.")


AGO: Final = Moment(ages=True)
AT: Final = Moment(ages=False)
DURATION: Final = Duration()

json_option: Decorator[Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option: Decorator[Any] = click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
dry_run_option: Decorator[Any] = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
by_option: Decorator[Any] = click.option("--by", metavar="WHO", help="Who says so. Default: account@host.")
reason_option: Decorator[Any] = click.option("--reason", default="", help="Why, in words; kept and shown.")

STATE: Final = click.Choice([state.value for state in JobState])
FILTERS: Final[tuple[Decorator[Any], ...]] = (
    click.option("--queue", metavar="NAME", shell_complete=known_queues, help="Only this queue."),
    click.option("--task", metavar="NAME", shell_complete=known_tasks, help="Only this task."),
    click.option("--state", "states", multiple=True, type=STATE, help="Only this state; may be given several times."),
    click.option("--tag", metavar="WORD", help="Only jobs with this tag."),
    click.option("--error", metavar="CLASS", help="Only jobs of which an attempt ended with this error: ValueError."),
    click.option("--enqueued-after", type=AGO, help="Only jobs enqueued at or after this TIME."),
    click.option("--enqueued-before", type=AGO, help="Only jobs enqueued before this TIME."),
    click.option("--started-before", type=AGO, help="Only jobs whose last attempt started before this TIME."),
    click.option("--ended-after", type=AGO, help="Only jobs that ended at or after this TIME."),
    click.option("--ended-before", type=AGO, help="Only jobs that ended before this TIME."),
)  # fmt: skip
FIELDS: Final = (
    "queue", "task", "states", "tag", "error", "enqueued_after", "enqueued_before", "started_before", "ended_after",
    "ended_before",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which jobs a verb is for, and how to go about it.

    Attributes:
        store: the database, None for the one of the settings.
        ids: named jobs; empty when *which* says it.
        which: what must match; every job when neither it nor *ids* narrows (only with ``--all``).
        dry_run: only say what would be done.
        yes: do not ask.
        as_json: print JSON.
    """

    store: str | None
    ids: tuple[int, ...]
    which: JobFilter
    dry_run: bool
    yes: bool
    as_json: bool


def duration_of(text: str) -> timedelta | None:
    """Read a duration; None when it is none.

    Example:
        >>> duration_of("1h30m"), duration_of("7"), duration_of("0")
        (datetime.timedelta(seconds=5400), None, datetime.timedelta(0))
    """
    if text == "0":
        return timedelta(0)
    parts = PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    try:
        return sum((float(number) * UNITS[unit] for number, unit in parts), timedelta(0))
    except OverflowError:
        return None


def filtered(function: F) -> F:
    """Give a command the options that filter jobs; it gets them as one ``which``."""

    @wraps(function)
    def command(**given: Any) -> Any:
        return function(which=_filter(given), **given)

    made: Callable[..., Any] = command
    for option in reversed(FILTERS):
        made = option(made)
    return cast("F", made)


def targeted(function: F) -> F:
    """Give a verb its ids, filters and safeguards; it gets them as one ``target``.

    Nothing at all never means everything: that takes ``--all``.
    """

    @wraps(function)
    def command(*, ids: tuple[int, ...], every: bool, **given: Any) -> Any:
        which = _filter(given)
        narrowed = which != JobFilter()
        if ids and narrowed:
            raise click.UsageError("Give ids or a filter, not both.")
        if every and (ids or narrowed):
            raise click.UsageError("--all means every job; leave ids and filters out.")
        if not (ids or narrowed or every):
            raise click.UsageError("Which jobs? Give ids, a filter such as --state failed, or --all.")
        about = {name: given.pop(name) for name in ("store", "dry_run", "yes", "as_json")}
        return function(target=Target(ids=ids, which=which, **about), **given)

    made: Callable[..., Any] = command
    options = (
        click.argument("ids", metavar="[ID]...", type=ID, nargs=-1),
        *FILTERS,
        click.option("--all", "every", is_flag=True, help="Every job; instead of ids and filters."),
        dry_run_option,
        yes_option,
        store_option,
        json_option,
    )
    for option in reversed(options):
        made = option(made)
    return cast("F", made)


def _filter(given: dict[str, Any]) -> JobFilter:
    found = {name: given.pop(name) for name in FIELDS}
    return JobFilter(**{**found, "states": tuple(JobState(state) for state in found["states"])})
