"""The JSON of every command: one object, with the keys that docs/cli.md promises, and times in UTC."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from faces.commands import as_json, treadle
from treadle import Retry, Treadle, current_job

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
OPEN = {"arguments", "meta", "result", "counts", "ended_last_hour"}
"""Keys below which names are not ours: stored values, states."""
READS = (
    ("jobs", "list"), ("jobs", "count"), ("jobs", "show", "1"), ("jobs", "show", "2"), ("jobs", "show", "3"),
    ("queues", "list"), ("tasks", "list"), ("workers", "list"), ("logs",), ("stats",), ("doctor",), ("verify",),
    ("compact", "--dry-run"), ("prune", "--dry-run"), ("compact", "--yes"), ("prune", "--yes"),
    ("jobs", "cancel", "--state", "failed", "--dry-run"), ("jobs", "retry", "2", "999"),
)  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A folder whose jobs.db has a succeeded job (1), a failed one (2), a running one (3), a pause and a worker."""
    begun, end = threading.Event(), threading.Event()
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:

        @app.task(name="good")
        def good(text: str) -> dict[str, str]:
            current_job().log(text)
            return {"anything": text}

        @app.task(name="bad", retry=Retry(0))
        def bad() -> None:
            raise ValueError("no")

        @app.task(name="nap")
        def nap() -> None:
            begun.set()
            current_job().progress(0.5, "half")
            end.wait(60)

        app.queue("capped", max_length=5)
        app.pause(queue="capped", reason="why", by="ada")
        with app.worker(name="anna"):
            app.wait([good.using(tags=("vip",), meta={"mine": 1}).enqueue("x"), bad.enqueue()], timeout=30)
            nap.using(expires=3600).enqueue()
            assert begun.wait(30)
            yield tmp_path
            end.set()


def keys(value: Any) -> Iterator[str]:
    """Every key that is ours, however deep."""
    if isinstance(value, list):
        for one in value:
            yield from keys(one)
    if isinstance(value, dict):
        for name, one in value.items():
            yield name
            if name not in OPEN:
                yield from keys(one)


def section(words: tuple[str, ...]) -> str:
    """What the page says of a command, with the introduction of its chapter and what it refers to."""
    name = " ".join(takewhile(str.isalpha, words))
    found = re.search(rf"^### `treadle {name}`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    before = PAGE[: found.start()]
    intro = re.search(r"^## ((?!^##).)*", before[before.rindex("\n## ") + 1 :], re.MULTILINE | re.DOTALL)
    assert intro is not None
    referred = {"jobs show": ("jobs list", "logs"), "tasks list": ("queues list",)}.get(name, ())
    return found[1] + intro[0] + "".join(section(tuple(other.split())) for other in referred)


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_every_key_is_documented(shop: Path, words: tuple[str, ...]) -> None:
    """What a script may rely on is on the page, in the section of the command."""
    found = as_json(*words, folder=shop)
    assert isinstance(found, dict)
    if words == ("stats",):
        del found["queues"]["default"]  # names of queues are not ours
    said = set(re.findall(r"`([a-z0-9_]+)`", section(words)))
    assert set(keys(found)) - said == set()


def test_the_bench_too(tmp_path: Path) -> None:
    """The figures of the benchmark have the keys of the page."""
    done = treadle("bench", "--jobs", "5", "--processes", "1", "--idle", "0", "--json", cwd=tmp_path)
    said = set(re.findall(r"`([a-z0-9_]+)`", section(("bench",))))
    assert set(keys(json.loads(done.stdout))) - said == set()


def times(value: Any, name: str = "") -> Iterator[str]:
    """Every time, however deep."""
    if isinstance(value, list):
        for one in value:
            yield from times(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from times(one, key)
    elif value is not None and (name.endswith("_at") or name in ("until", "next_due")):
        yield value


@pytest.mark.parametrize("words", [("jobs", "list"), ("jobs", "show", "2"), ("queues", "list"), ("workers", "list"),
                                   ("logs",), ("stats",)], ids=" ".join)  # fmt: skip
def test_times_are_utc(shop: Path, words: tuple[str, ...]) -> None:
    """Each time says that it is UTC, in ISO 8601 to the microsecond."""
    found = list(times(as_json(*words, folder=shop)))
    assert found
    for text in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text), text
        assert datetime.fromisoformat(text).utcoffset() == timedelta(0)
