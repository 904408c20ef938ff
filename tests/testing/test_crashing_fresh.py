"""Crash injection where nothing may be forked."""

from __future__ import annotations

import os

import pytest

from testing import open_till
from treadle.testing import CrashRun, assert_survives_crashes


def test_a_module_that_opens_something_is_not_forked(caplog: pytest.LogCaptureFixture) -> None:
    """What an import has opened must not be shared by processes: each kill takes a fresh one then, and it is logged."""
    caplog.set_level("INFO", "treadle.testing")
    parents: set[str] = set()

    def check(run: CrashRun) -> None:
        parents.update((run.folder / "charges").read_text().split())

    runs = assert_survives_crashes(open_till.app, lambda folder: open_till.charge.job(str(folder)), check)
    assert str(os.getpid()) in parents
    assert len(runs) > 4
    assert "none is forked: it has opened 2 files or connections" in caplog.text
