"""``treadle logs``: what jobs logged, and what they are logging now."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

import click

from treadle.app import Treadle
from treadle.cli.completion import known_jobs, known_tasks
from treadle.cli.options import ID, json_option
from treadle.cli.output import moment, plain, safe, say, say_json
from treadle.cli.store import opened, store_option
from treadle.errors import JobNotFound
from treadle.model.job import LogRecord
from treadle.results import wait_for
from treadle.store.ops import find
from treadle.store.ops import logs as lines
from treadle.store.session import Session

PAGE: Final = 500
LEVELS: Final = ("debug", "info", "warning", "error", "critical")


@click.command()
@click.argument("job_id", metavar="[ID]", type=ID, required=False, shell_complete=known_jobs)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines; of one job until it has ended.")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), help="Only this level and above.")
@click.option("--task", metavar="NAME", shell_complete=known_tasks, help="Only jobs of this task.")
@click.option("-n", "--lines", "most", type=click.IntRange(1, lines.PAGE_MOST), default=100, show_default=True,
              help="How many of the newest lines to begin with.")  # fmt: skip
@store_option
@json_option
def logs(
    *,
    job_id: int | None,
    follow: bool,
    level: str | None,
    task: str | None,
    most: int,
    store: str | None,
    as_json: bool,
) -> None:
    """Show what jobs logged and printed.

    Of one job or of all, the oldest line first. With -f it goes on over restarts of workers until Ctrl-C. With -f
    --json each line is one JSON object.
    """
    which = lines.Lines(job=job_id, level=0 if level is None else getattr(logging, level.upper()), task=task)
    with opened(store) as app:
        if job_id is not None:
            app.get(job_id)  # says that there is no such job
        after = app.store.read(lines.newest)
        found = app.store.read(partial(lines.last, which=which, most=most))
        if as_json and not follow:
            say_json({"lines": [line_as_json(one) for one in found]})
            return
        _say(found, as_json=as_json)
        if follow:
            _follow(app, which, found[-1].seq if found else after, as_json=as_json)


def line_as_json(line: LogRecord) -> dict[str, Any]:
    """A line as ``--json`` prints it: the level as number and as word."""
    shown: dict[str, Any] = plain(line)
    return shown | {"level_name": logging.getLevelName(line.level).lower()}


def say_line(line: LogRecord, *, with_job: bool = True) -> None:
    """Print one line; its further lines, if it has any, are indented."""
    head = f"{moment(line.logged_at)} {f'{line.job_id} ' if with_job else ''}{logging.getLevelName(line.level)} "
    first, *others = line.text.rstrip("\n").split("\n")
    say(safe(f"{head}{line.source}: {first}"))
    for other in others:
        say(f"    {safe(other)}")


class _Follower:
    """Looks for new lines, each time from where it was; for one job also whether it has ended."""

    def __init__(self, which: lines.Lines, after: int) -> None:
        self._which = which
        self._after = after
        self.ended = False

    def look(self, session: Session) -> tuple[LogRecord, ...] | None:
        """New lines; None when there are none and more may come."""
        if self._which.job is not None:
            state = find.states(session, [self._which.job]).get(self._which.job)
            if state is None:
                raise JobNotFound(f"Job {self._which.job} is gone: it was pruned or deleted.")
            self.ended = state.ended
        found, self._after = lines.news(session, self._which, self._after, PAGE)
        self.ended = self.ended and len(found) < PAGE
        return found if found or self.ended else None


def _follow(app: Treadle, which: lines.Lines, after: int, *, as_json: bool) -> None:
    follower = _Follower(which, after)
    while not follower.ended:
        _say(wait_for(app.store, follower.look, None), as_json=as_json)


def _say(found: tuple[LogRecord, ...], *, as_json: bool) -> None:
    for line in found:
        if as_json:
            say_json(line_as_json(line), indent=False)
        else:
            say_line(line)
