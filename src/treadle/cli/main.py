"""The group of all commands, and what their errors become."""

from __future__ import annotations

from typing import Any

import click

import treadle
from treadle.cli.admin import adopt, backup, doctor, migrate_, prune_, stats, workers
from treadle.cli.demo import demo
from treadle.cli.jobs import jobs
from treadle.cli.output import safe
from treadle.cli.worker import worker
from treadle.errors import ConfigurationError, TreadleError


class Misuse(click.ClickException):
    """Something was asked that cannot be done as asked."""

    exit_code = 2


class Commands(click.Group):
    """Turns Treadle's errors into one line on stderr: exit code 2 for what was asked wrongly, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TreadleError as error:
            kind = Misuse if isinstance(error, ConfigurationError) else click.ClickException
            raise kind(safe(str(error), lines=True)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(treadle.__version__, prog_name="treadle")
def main() -> None:
    """Durable background jobs in one SQLite file.

    The store is --store, else TREADLE_STORE, else [tool.treadle] of pyproject.toml, else treadle.db here.
    """


for command in (worker, jobs, workers, stats, doctor, backup, adopt, prune_, migrate_, demo):
    main.add_command(command)
