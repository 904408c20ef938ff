"""Numbers that are given once, also by a server that has lost its last commits."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import psycopg
import pytest

import postgres
from faces.commands import run
from postgres import Server, needed
from treadle import Treadle
from treadle.store.ops.sequences import burn


@pytest.mark.parametrize("name", ["job", "lease", "epoch"])
def test_a_crash_takes_no_number_back(name: str) -> None:
    """At durability normal a crash may lose commits, but what was given is never given again to somebody else."""
    server = Server(needed(), ("max_connections=50", "wal_writer_delay=10000ms", "autovacuum=off"))
    try:
        with Treadle(server.url(), durability="normal") as app:
            taken: list[set[int]] = [set(), set()]
            for given in taken:
                for _ in range(40):  # the server notes them down for 32 at a time
                    given.update(app.store.run(partial(burn, name=name, count=1)))
                server.stop("immediate")
                server.start()
            assert taken[0] & taken[1] == set()
            assert [len(given) for given in taken] == [40, 40]
    finally:
        server.remove()


def test_numbers_are_set_ahead_as_the_page_says(tmp_path: Path) -> None:
    """The statements of docs/failover.md for after a loss: nothing below is given any more, and the store is sound."""
    page = (Path(__file__).parents[2] / "docs" / "failover.md").read_text("utf-8")
    (statements,) = re.findall(r"^```text\n(SELECT setval.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with postgres.database() as url:
        with Treadle(url) as app:
            before = {name: app.store.run(partial(burn, name=name, count=1))[0] for name in ("job", "lease", "epoch")}
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(statements.encode())
        with Treadle(url) as app:

            @app.task(name="greet")
            def greet() -> str:
                return "hello"

            with app.worker():
                job = greet.enqueue()
                assert job.result(timeout=60) == "hello"
            assert job.id > before["job"] + 1_000_000
            assert job.record().attempts[0].lease > before["lease"] + 4096 * 1_000_000
            assert app.store.run(partial(burn, name="epoch", count=1))[0] > before["epoch"] + 1_000_000
        assert run("verify", folder=tmp_path, store=url)[0] == 0
