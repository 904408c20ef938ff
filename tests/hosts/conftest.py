"""How often outages happen: a few times in the suite, often by ``python3 dev.py hosts``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rounds N``: how often the server is killed, and how much work there is."""
    parser.addoption("--rounds", type=int, default=3)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """The same; in a run of the whole suite the option is not known, as this folder is found too late."""
    return int(request.config.getoption("--rounds", 3))
