"""``treadle demo``: verified copy of a real folder by workers, one of which is killed."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from treadle.cli.output import say
from treadle.clock import SystemClock
from treadle.demo.plan import STANDARD_LIBRARY, Options
from treadle.demo.run import run
from treadle.store.urls import is_server

BAR = 30
LINE_EVERY = 2.0


class TerminalScreen:
    """Prints lines; progress is a bar on a terminal, elsewhere a line every two seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._clock = SystemClock()
        self._told_at = self._clock.monotonic()
        self._every = 0.1 if self._terminal else LINE_EVERY
        self._drawn = False

    def say(self, text: str) -> None:
        """Print whole lines."""
        self.clear()
        say(text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        now = self._clock.monotonic()
        if now - self._told_at < self._every:
            return
        self._told_at = now
        if self._terminal:
            filled = BAR * done // max(1, total)
            click.echo(f"\r  [{'#' * filled}{'.' * (BAR - filled)}] {done:,} of {total:,} {what} ", nl=False)
            self._drawn = True
        else:
            click.echo(f"  {done:,} of {total:,} {what}")

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            click.echo("\r" + " " * 78 + "\r", nl=False)
            self._drawn = False


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=STANDARD_LIBRARY, show_default="Python's library",
              help="The folder to copy.")  # fmt: skip
@click.option("--dest", type=click.Path(path_type=Path), default=Path("demo"), show_default="demo",
              help="The folder that gets copy/ and jobs.db.")  # fmt: skip
@click.option("--store", metavar="URL", help="A PostgreSQL database for the jobs instead, in a schema without others.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes.")
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill a worker with SIGKILL midway.")
@click.option("--fresh", is_flag=True, help="Begin anew: remove what an earlier demo left in --dest.")
def demo(*, source: Path, dest: Path, store: str | None, workers: int, kill: bool, fresh: bool) -> None:
    """Copy a real folder with jobs, and kill a worker midway.

    Every file is compared by SHA-256 at the end. Interrupt it and run it again: it goes on where it was. Exit code 0
    only when everything matches.
    """
    if store is not None and not is_server(store):
        raise click.UsageError("--store is for PostgreSQL; a file is chosen with --dest.")
    options = Options(source=source, dest=dest, workers=workers, kill=kill, fresh=fresh, store=store)
    sys.exit(run(options, TerminalScreen()))
