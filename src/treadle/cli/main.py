"""The group of all commands, and what their errors become."""

from __future__ import annotations

import io
import sys
from typing import Any, Final

import click

import treadle
from treadle.cli.bench import bench
from treadle.cli.changing import cancel, delete, move, priority, reschedule, retry
from treadle.cli.completion import completion
from treadle.cli.demo import demo
from treadle.cli.figures import doctor, stats, verify
from treadle.cli.files import adopt, backup, compact, migrate_, prune_
from treadle.cli.jobs import jobs
from treadle.cli.logs import logs
from treadle.cli.moving import move_store
from treadle.cli.output import safe
from treadle.cli.queues import queues
from treadle.cli.tasks import tasks
from treadle.cli.worker import worker
from treadle.cli.workers import workers
from treadle.errors import ConfigurationError, TreadleError

INTERRUPTED: Final = 130


class Misuse(click.ClickException):
    """Something was asked that cannot be done as asked."""

    exit_code = 2


class Commands(click.Group):
    """Turns what goes wrong into exit codes: 2 for what was asked wrongly, 130 for Ctrl-C, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal without the letter shows its escape
        try:
            return super().invoke(ctx)
        except TreadleError as error:
            kind = Misuse if isinstance(error, ConfigurationError) else click.ClickException
            raise kind(safe(str(error), lines=True)) from error
        except (KeyboardInterrupt, click.Abort):
            if sys.stderr.isatty():
                click.echo(err=True)  # the prompt of the shell begins a line of its own
            sys.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(treadle.__version__, prog_name="treadle")
def main() -> None:
    """Durable background jobs in one SQLite file.

    The store is --store, else TREADLE_STORE, else [tool.treadle] of pyproject.toml, else treadle.db here.
    """


for command in (
    worker, jobs, queues, tasks, workers, logs, stats, doctor, verify, migrate_, backup, adopt, compact, prune_,
    move_store, bench, demo, completion,
):  # fmt: skip
    main.add_command(command)
for verb in (retry, cancel, reschedule, priority, move, delete):
    jobs.add_command(verb)
