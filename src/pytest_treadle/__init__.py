"""The pytest plugin of Treadle: fixtures, and a private store for every test.

It stands beside the package ``treadle`` because pytest imports it at every start: ``import treadle`` takes 200 ms, this
a few. What it does stands in ``treadle.testing``, and is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from treadle import HeldClock, Treadle

OPTION = "treadle_app"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that names the app under test."""
    parser.addini(OPTION, "MODULE:APP, the Treadle under test: every test gets it on a private store.", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Where an app is named, let no test reach its real store."""
    if config.getini(OPTION):
        config.pluginmanager.register(import_module("pytest_treadle.guard"), "treadle-guard")


@pytest.fixture
def treadle_clock() -> HeldClock:
    """A clock that moves only when told to, for the app's times in SQL too; it starts at the present moment."""
    from treadle.clock import HeldClock, SystemClock

    return HeldClock(SystemClock().now())


@pytest.fixture
def treadle_app(pytestconfig: pytest.Config, treadle_clock: HeldClock) -> Iterator[Treadle]:
    """The app of the setting ``treadle_app`` on a private store with ``treadle_clock``; a new app if none is set.

    Override it in your conftest.py where an app is made by a function.
    """
    from pytest_treadle.loading import load_app
    from treadle import Treadle

    name = str(pytestconfig.getini(OPTION))
    if name:
        yield load_app(name)  # the guard has put it on a private store
        return
    with Treadle("memory://", clock=treadle_clock) as app:
        yield app


@pytest.fixture
def treadle_inline(treadle_app: Treadle) -> Iterator[Treadle]:
    """``treadle_app`` in inline mode: every job runs before its enqueue returns."""
    from treadle.testing import inline

    with inline(treadle_app):
        yield treadle_app
