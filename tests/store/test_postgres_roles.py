"""Least privilege on PostgreSQL: the statements of docs/postgresql-roles.md, and work under the roles they make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

import postgres
from faces.commands import as_json, run
from treadle import JobState, Treadle, current_job
from treadle.errors import StoreUnusable
from worker.kit import eventually

PAGE = Path(__file__).parents[2] / "docs" / "postgresql-roles.md"
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"\bshop_(owner|app|reader)\b")
ROLES = ("shop_reader", "shop_app", "shop_owner")


class Addresses(NamedTuple):
    """One database, by each of its roles."""

    owner: str
    app: str
    reader: str


def own(text: str) -> str:
    """The page's words with role names of this run, as roles belong to the whole server."""
    return ROLE.sub(rf"shop_\1_{os.getpid()}", text)


@pytest.fixture(params=["", "15"])
def addresses(request: pytest.FixtureRequest) -> Iterator[Addresses]:
    """A database set up as the page says, word for word."""
    once, grants, reader = map(own, BLOCK.findall(PAGE.read_text("utf-8")))
    with postgres.database(request.param, empty=True) as url:
        found = Addresses(
            *(url.replace("postgres@", f"{own(role)}@") for role in ("shop_owner", "shop_app", "shop_reader"))
        )
        with psycopg.connect(url, autocommit=True) as superuser:
            superuser.execute(once.encode())
            try:
                code, text = run("migrate", folder=Path(), store=found.owner)
                assert code == 0, text
                with psycopg.connect(found.owner, autocommit=True) as owner:
                    owner.execute(grants.encode())
                superuser.execute(reader.encode())
                yield found
            finally:
                for role in map(own, ROLES):
                    if superuser.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                        superuser.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"'.encode())


def test_everything_works_under_the_runtime_role(addresses: Addresses, tmp_path: Path) -> None:
    """Enqueue of every kind, a worker with all it writes, and the operators' commands need no more than the GRANTs."""
    with Treadle(addresses.app, auto_migrate=False) as app:

        @app.task(name="greet")
        def greet(whom: str) -> str | None:
            job = current_job()
            job.log(f"to {whom}")
            job.progress(0.5, "half")
            job.checkpoint({"whom": whom})
            job.on_success(nap.job())
            with job.transaction() as tx:
                tx.execute("SELECT 1")
                tx.succeed(whom)
            return None

        @app.task(name="nap")
        async def nap() -> None: ...

        with psycopg.connect(addresses.app) as connection:
            joined = greet.using(connection=connection, tags=("vip",)).enqueue("ada")
        unknown = app.remote("unknown").enqueue()
        with app.worker(name="anna"):
            eventually(lambda: unknown.record().state is JobState.HELD)
            assert greet.enqueue("bob").result(timeout=60) == "bob"
            assert joined.result(timeout=60) == "ada"
            app.wait(app.enqueue_many(nap.job() for _ in range(10)), timeout=60)
        for queue in ("mail", "films"):
            app.remote("mystery", queue=queue).enqueue()
    for words in (
        ("stats",), ("jobs", "list"), ("jobs", "show", 1), ("logs", 1), ("workers", "list"), ("verify",),
        ("queues", "pause", "mail", "--reason", "why"), ("queues", "resume", "mail"),
        ("jobs", "cancel", "--queue", "mail", "--yes"), ("jobs", "delete", "--queue", "films", "--yes"),
        ("prune", "--older-than", "0s", "--yes"), ("migrate",),
    ):  # fmt: skip
        code, text = run(*words, folder=tmp_path, store=addresses.app)
        assert code == 0, f"{words}: {text}"
    found = {one["check"]: one for one in as_json("doctor", folder=tmp_path, store=addresses.app)["findings"]}
    assert found["rights"]["level"] == "ok", found["rights"]


def test_the_runtime_role_cannot_change_tables(addresses: Addresses) -> None:
    """Neither what it works with nor which version that is said to be."""
    with psycopg.connect(addresses.app, autocommit=True) as connection:
        for statement in (
            "DROP TABLE treadle.treadle_jobs", "ALTER TABLE treadle.treadle_jobs ADD COLUMN more text",
            "TRUNCATE treadle.treadle_jobs", "CREATE TABLE treadle.more (id bigint)",
            "UPDATE treadle.treadle_migrations SET version = 99", "ALTER SEQUENCE treadle.treadle_job_numbers RESTART",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_tables_that_come_later_are_granted_too(addresses: Addresses) -> None:
    """The next migration needs no new GRANT."""
    with psycopg.connect(addresses.owner, autocommit=True) as owner:
        owner.execute("CREATE TABLE treadle.treadle_more (id bigint); CREATE SEQUENCE treadle.treadle_more_numbers")
    with psycopg.connect(addresses.app, autocommit=True) as app:
        app.execute("INSERT INTO treadle.treadle_more VALUES (nextval('treadle.treadle_more_numbers'))")
    with psycopg.connect(addresses.reader, autocommit=True) as reader:
        assert reader.execute("SELECT count(*) FROM treadle.treadle_more").fetchone() == (1,)


def test_a_reader_reads_and_nothing_else(addresses: Addresses, tmp_path: Path) -> None:
    """The commands that look work; to enqueue is refused in words."""
    with Treadle(addresses.app) as app:
        app.remote("mystery").enqueue()
    for words in (("stats",), ("jobs", "list"), ("queues", "list"), ("workers", "list"), ("jobs", "show", 1)):
        code, text = run(*words, folder=tmp_path, store=addresses.reader)
        assert code == 0, f"{words}: {text}"
    with Treadle(addresses.reader) as app, pytest.raises(StoreUnusable, match="permission denied"):
        app.remote("mystery").enqueue()
