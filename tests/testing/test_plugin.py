"""The pytest plugin, in a pytest of its own as users run it: warnings are errors, and nothing is set up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import treadle

SOURCE = str(Path(treadle.__file__).parents[1])
SHOP = '''
from treadle import Treadle

app = Treadle("sqlite:///shop.db")
sent = []


@app.task(name="send")
def send(to: str) -> str:
    sent.append(to)
    return f"sent to {to}"
'''
SETTINGS = """
[pytest]
filterwarnings = error
addopts = --strict-config --strict-markers
pythonpath = .
{}
"""
Run = Callable[..., "Done"]


class Done:
    """A pytest run that has ended."""

    def __init__(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        self.last = self.text.strip().splitlines()[-1]
        self.made = sorted(path.name for path in folder.iterdir() if path.name.startswith("shop.db"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs pytest in a folder with a shop."""

    def run(tests: str, *words: str, settings: str = "treadle_app = shop:app", conftest: str = "") -> Done:
        (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
        (tmp_path / "test_it.py").write_text(tests, encoding="utf-8")
        (tmp_path / "pytest.ini").write_text(SETTINGS.format(settings), encoding="utf-8")
        if conftest:
            (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": SOURCE, "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Done(done, tmp_path)

    return run


def test_the_fixtures_are_there(run: Run) -> None:
    """Each test gets the named app on an empty private store, with a clock that stands still."""
    done = run("""
from datetime import timedelta
from shop import app, send, sent
from treadle.testing import assert_enqueued, drain, run_pending
import pytest

@pytest.mark.parametrize("turn", [1, 2])
def test_twice(treadle_app, treadle_clock, turn):
    assert treadle_app is app
    assert app.clock is treadle_clock
    before = treadle_clock.moment
    send.using(delay=timedelta(days=1)).enqueue("ada")
    assert_enqueued(app, send, count=1, delay=timedelta(days=1))
    assert run_pending(app) == []
    assert [ran.result for ran in drain(app)] == ["sent to ada"]
    assert treadle_clock.moment == before + timedelta(days=1)

def test_inline(treadle_inline):
    assert treadle_inline is app
    sent.clear()
    send.enqueue("bob")
    assert sent == ["bob"]
""")
    assert done.last.startswith("3 passed"), done.text
    assert done.made == []


def test_no_test_reaches_the_real_store(run: Run) -> None:
    """Once the app is named, tests that ask for nothing are kept from its store too, and fixtures of any scope."""
    done = run("""
import pytest
from shop import app, send
from treadle.clock import HeldClock
from treadle.testing import all_enqueued

@pytest.fixture(scope="session", autouse=True)
def early():
    send.enqueue("early")
    yield
    assert len(all_enqueued(app)) == 1

@pytest.fixture
def user(treadle_clock):
    send.enqueue("welcome")

def test_plain():
    send.enqueue("ada")
    assert app.settings.store == "memory://"
    assert not isinstance(app.clock, HeldClock)

def test_with_a_fixture(user, treadle_app):
    assert [job.arguments["to"] for job in all_enqueued(treadle_app)] == ["welcome"]

class TestIn:
    def test_a_class(self):
        assert all_enqueued(app) == []
""")
    assert done.last.startswith("3 passed"), done.text
    assert done.made == []


def test_without_the_setting(run: Run) -> None:
    """treadle_app is a new app then, and nobody touches yours."""
    done = run(
        """
from shop import app, send
from treadle.testing import run_pending

def test_new(treadle_app, treadle_clock):
    assert treadle_app is not app
    assert treadle_app.clock is treadle_clock
    task = treadle_app.task(name="work")(lambda: "done")
    task.enqueue()
    assert [ran.result for ran in run_pending(treadle_app)] == ["done"]

def test_real():
    send.enqueue("ada")
    app.close()
""",
        settings="",
    )
    assert done.last.startswith("2 passed"), done.text
    assert "shop.db" in done.made


def test_the_fixture_can_be_overridden(run: Run) -> None:
    """An app that is made by a function comes from the user's own treadle_app."""
    done = run(
        """
def test_mine(treadle_app, treadle_inline):
    assert treadle_app.mine
    assert treadle_inline is treadle_app
""",
        settings="",
        conftest="""
import pytest
from treadle import Treadle
from treadle.testing import private_store

def make():
    app = Treadle("sqlite:///shop.db")
    app.mine = True
    return app

@pytest.fixture
def treadle_app(treadle_clock):
    with private_store(make(), clock=treadle_clock) as app:
        yield app
""",
    )
    assert done.last.startswith("1 passed"), done.text
    assert done.made == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shop:nothing", "has no attribute 'nothing'"),
        ("nowhere:app", "No module named 'nowhere'"),
        ("shop:send", "is a Task, not a Treadle"),
        ("shop", "cannot be imported"),
    ],
)
def test_a_wrong_name_is_told(run: Run, name: str, told: str) -> None:
    """The setting is named, with what is wrong and what to write."""
    done = run("def test_it(): pass", settings=f"treadle_app = {name}")
    assert done.code != 0
    assert f"treadle_app = '{name}'" in done.text
    assert told in done.text


def test_a_failed_assertion_shows_the_test(run: Run) -> None:
    """The report ends in the test's own line and the readable difference, not in our code."""
    done = run("""
from shop import app, send
from treadle.testing import assert_enqueued

def test_it(treadle_app):
    send.enqueue("bob")
    assert_enqueued(app, send, arguments={"to": "ada"})
""")
    assert done.code == 1
    assert '>       assert_enqueued(app, send, arguments={"to": "ada"})' in done.text
    assert "arguments.to  wanted 'ada', is 'bob'" in done.text
    assert "asserting.py" not in done.text


def test_it_works_beside_xdist(run: Run) -> None:
    """Every process of a spread run has its own private stores."""
    done = run(
        """
import pytest
from shop import app, send
from treadle.testing import assert_enqueued

@pytest.mark.parametrize("number", range(6))
def test_it(treadle_app, number):
    send.enqueue(str(number))
    assert_enqueued(app, send, count=1)
""",
        "-n", "2",
    )  # fmt: skip
    assert done.last.startswith("6 passed"), done.text
    assert done.made == []


def test_it_can_be_left_out(run: Run) -> None:
    """Without the plugin there are no fixtures, and no test is touched."""
    done = run("def test_it(treadle_app): pass", "-p", "no:treadle", settings="")
    assert "fixture 'treadle_app' not found" in done.text


def test_a_start_imports_nothing_of_treadle() -> None:
    """The plugin costs people who do not use it nothing: it imports pytest and no more."""
    code = "import sys, pytest_treadle; print([name for name in sys.modules if name.split('.')[0] == 'treadle'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
