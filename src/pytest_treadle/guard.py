"""Registered when the setting ``treadle_app`` names an app: every test has it on a private store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_treadle import OPTION
from pytest_treadle.loading import load_app
from treadle.testing import private_store


@pytest.fixture(scope="session", autouse=True)
def _treadle_session(pytestconfig: pytest.Config) -> Iterator[None]:
    """What fixtures of a wider scope enqueue goes to a private store too."""
    with private_store(load_app(str(pytestconfig.getini(OPTION)))):
        yield


@pytest.fixture(autouse=True)
def _treadle_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fresh store for each test; its time is held when the test asks for it."""
    held = "treadle_clock" in request.fixturenames
    clock = request.getfixturevalue("treadle_clock") if held else None
    with private_store(load_app(str(request.config.getini(OPTION))), clock=clock):
        yield
