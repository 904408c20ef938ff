from __future__ import annotations

from datetime import timedelta

import click
import pytest
from click.testing import CliRunner

from treadle import Keep, Retention
from treadle.cli import main
from treadle.cli.worker import kept


def test_days_become_a_retention() -> None:
    """--keep-succeeded and --keep-failed are days; what is not given keeps its default."""
    assert kept(None, None) == Retention()
    assert kept(0.5, None) == Retention(succeeded=Keep(age=timedelta(hours=12)))
    assert kept(0, 365) == Retention(succeeded=Keep(age=timedelta(0)), failed=Keep(age=timedelta(days=365)))


@pytest.mark.parametrize("words", [("--keep-succeeded", "-1"), ("--keep-failed", "soon"), ("--keep-failed", "1e9")])
def test_days_have_a_range(words: tuple[str, ...]) -> None:
    """Days that are no time are wrong usage."""
    done = CliRunner().invoke(main, ["worker", "shop:app", *words])
    assert done.exit_code == click.UsageError.exit_code
    assert words[0] in done.output
