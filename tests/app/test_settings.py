from __future__ import annotations

from pathlib import Path

import pytest

from treadle import Treadle
from treadle.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def pyproject(text: str) -> None:
    Path("pyproject.toml").write_text(f"[project]\nname = 'x'\n[tool.treadle]\n{text}\n", encoding="utf-8")


def test_without_any_source_the_defaults_hold() -> None:
    """The documented defaults."""
    found = Treadle().settings
    assert (found.store, found.durability, found.lock_timeout) == ("sqlite:///treadle.db", "full", 30.0)
    assert (found.max_size, found.queues, found.concurrency) == (None, None, 10)


def test_pyproject_goes_before_the_defaults() -> None:
    """[tool.treadle] sets what is in it and leaves the rest."""
    pyproject('store = "memory://"\nqueues = ["mail", "slow"]')
    found = Treadle().settings
    assert (found.store, found.queues, found.durability) == ("memory://", ["mail", "slow"], "full")


def test_the_environment_goes_before_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    """TREADLE_* overrides the file, each setting by itself, converted to its kind."""
    pyproject('store = "memory://"\ndurability = "normal"')
    for name, value in {"DURABILITY": "full", "LOCK_TIMEOUT": "2.5", "CONCURRENCY": "3", "QUEUES": "a,b"}.items():
        monkeypatch.setenv(f"TREADLE_{name}", value)
    found = Treadle().settings
    assert (found.store, found.durability, found.lock_timeout) == ("memory://", "full", 2.5)
    assert (found.concurrency, found.queues) == (3, ["a", "b"])


def test_arguments_go_before_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program says, holds."""
    pyproject('store = "sqlite:///file.db"\nlock_timeout = 1')
    monkeypatch.setenv("TREADLE_STORE", "sqlite:///env.db")
    monkeypatch.setenv("TREADLE_LOCK_TIMEOUT", "2")
    found = Treadle("memory://", lock_timeout=3).settings
    assert (found.store, found.lock_timeout) == ("memory://", 3)


def test_the_store_opened_is_the_one_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings are what the first use opens; parent folders are created."""
    monkeypatch.setenv("TREADLE_STORE", "sqlite:///deep/er/jobs.db")
    with Treadle() as app:
        app.counts()
    assert (tmp_path / "deep/er/jobs.db").is_file()


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """TREADLE_STORE= in a shell means nothing."""
    monkeypatch.setenv("TREADLE_STORE", "")
    assert Treadle().settings.store == "sqlite:///treadle.db"


def test_unknown_keys_of_pyproject_are_refused() -> None:
    """A misspelt setting is an error that names it and its place."""
    pyproject('stroe = "memory://"')
    with pytest.raises(ConfigurationError, match=r"stroe.*pyproject\.toml"):
        _ = Treadle().settings


@pytest.mark.parametrize("text", ['lock_timeout = "soon"', "queues = 5", 'concurrency = "many"'])
def test_values_of_the_wrong_kind_are_refused(text: str) -> None:
    """A setting that cannot be used is an error that names its place."""
    pyproject(text)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        _ = Treadle().settings


def test_wrong_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the environment."""
    monkeypatch.setenv("TREADLE_LOCK_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="environment"):
        _ = Treadle().settings


def test_a_broken_pyproject_is_refused() -> None:
    """A file that is no TOML is an error, not no settings."""
    Path("pyproject.toml").write_text("[tool.treadle", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        _ = Treadle().settings


@pytest.mark.parametrize("url", ["jobs.db", "sqlite:///", "mysql://x", ""])
def test_urls_of_no_store_are_refused(url: str) -> None:
    """The message shows how a store is written."""
    with pytest.raises(ConfigurationError, match=r"sqlite:///jobs\.db"):
        _ = Treadle(url).store


def test_an_unknown_durability_is_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(ConfigurationError, match="full, normal"):
        _ = Treadle("sqlite:///jobs.db", durability="best").store


@pytest.mark.parametrize(
    ("name", "meant"),
    [("STROE", "STORE"), ("QUEUE", "QUEUES"), ("LOCK_TIMOUT", "LOCK_TIMEOUT"), ("MAXSIZE", "MAX_SIZE"),
     ("CONCURENCY", "CONCURRENCY")],
)  # fmt: skip
def test_misspelt_variables_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    """A variable that looks like a setting and is none is an error that says which one was meant."""
    monkeypatch.setenv(f"TREADLE_{name}", "1")
    with pytest.raises(ConfigurationError, match=f"TREADLE_{name}, .*did you mean TREADLE_{meant}"):
        _ = Treadle().settings


@pytest.mark.parametrize("name", ["TREADLE_HOME_PAGE", "TREADLE_TEST_STROE", "TREADLE_LOG_TIMEOUT", "TREADLER_STORE"])
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable that looks like no setting, or belongs to the tests or the log, changes nothing."""
    monkeypatch.setenv(name, "memory://")
    assert Treadle().settings.store == "sqlite:///treadle.db"
