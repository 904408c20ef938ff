"""Resources: values that handlers get by their type."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from treadle import JobContext, JobState, Retry, Treadle, injected
from treadle.errors import ConfigurationError, DuplicateTask
from worker.kit import PATIENCE

OPEN: list[str] = []


@dataclass
class Database:
    """Stands for a connection."""

    name: str = "db"
    used: list[str] = field(default_factory=list)


class Session:
    """Stands for what one job uses."""

    def __init__(self, database: Database, job: JobContext) -> None:
        self.database = database
        self.job = job


class Mailer:
    """Another one."""


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    OPEN.clear()
    yield
    assert OPEN == []


def plain_database(app: Treadle) -> None:
    """A generator, once for each worker."""

    @app.resource
    def database() -> Iterator[Database]:
        OPEN.append("database")
        yield Database()
        OPEN.remove("database")


def async_database(app: Treadle) -> None:
    """The same on the loop."""

    @app.resource
    async def database() -> AsyncIterator[Database]:
        await asyncio.sleep(0)
        OPEN.append("database")
        yield Database()
        await asyncio.sleep(0)
        OPEN.remove("database")


def plain_session(app: Treadle) -> None:
    """A generator, once for each attempt, from another resource and the job."""

    @app.resource(scope="job")
    def session(database: Database, job: JobContext) -> Iterator[Session]:
        OPEN.append(f"session {job.id}")
        try:
            yield Session(database, job)
        finally:
            OPEN.remove(f"session {job.id}")


def async_session(app: Treadle) -> None:
    """The same on the loop."""

    @app.resource(scope="job")
    async def session(database: Database, job: JobContext) -> AsyncIterator[Session]:
        OPEN.append(f"session {job.id}")
        try:
            yield Session(database, job)
        finally:
            await asyncio.sleep(0)
            OPEN.remove(f"session {job.id}")


@pytest.mark.parametrize("database", [plain_database, async_database])
@pytest.mark.parametrize("session", [plain_session, async_session])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_handlers_get_what_they_name(app: Treadle, database: Any, session: Any, kind: str) -> None:
    """Every kind of resource in every kind of handler; one database for all, one session for each, all cleaned up."""
    database(app)
    session(app)
    seen: list[tuple[int, int]] = []

    def work(number: int, session: Session, db: Database) -> int:
        assert session.database is db
        assert f"session {session.job.id}" in OPEN
        seen.append((id(db), id(session)))
        return number

    async def awork(number: int, session: Session, db: Database) -> int:
        return work(number, session, db)

    task: Any = app.task(name="work")(awork if kind == "async def" else work)
    with app.worker():
        jobs = [task.enqueue(number) for number in range(6)]
        assert [job.result(PATIENCE) for job in jobs] == list(range(6))
        assert OPEN == ["database"]
    assert len({db for db, _ in seen}) == 1
    assert len(seen) == 6


def test_a_failing_handler_cleans_up_and_its_error_is_kept(app: Treadle) -> None:
    """The resource sees the error, and the attempt fails with it."""
    seen: list[str] = []

    @app.resource(scope="job")
    def session() -> Iterator[Mailer]:
        try:
            yield Mailer()
        except ValueError as error:
            seen.append(str(error))
            raise

    @app.task(name="work", retry=Retry(0))
    def work(mailer: Mailer = injected) -> None:
        raise ValueError("no stamp")

    job = work.enqueue()
    with app.worker():
        app.wait([job], PATIENCE)
    assert job.record().attempts[0].error_type == "ValueError"
    assert seen == ["no stamp"]


def test_a_resource_that_cannot_be_made_fails_the_attempt(app: Treadle) -> None:
    """It is an error like any other: retried, and told."""

    @app.resource
    def mailer() -> Mailer:
        raise ConnectionError("no server")

    @app.task(name="work", retry=Retry(1, backoff=0))
    def work(mailer: Mailer) -> None: ...

    job = work.enqueue()  # type: ignore[call-arg]
    with app.worker():
        app.wait([job], PATIENCE)
    assert [attempt.message for attempt in job.record().attempts] == ["no server"] * 2


def test_many_threads_make_one(app: Treadle) -> None:
    """The first use of a worker's resource by many handlers at once makes it once."""
    made: list[int] = []
    everybody = threading.Barrier(4)

    @app.resource
    def database() -> Database:
        made.append(1)
        return Database()

    @app.task(name="work")
    def work(db: Database) -> None:
        everybody.wait(PATIENCE)

    with app.worker(concurrency=4):
        app.wait([work.enqueue() for _ in range(4)], PATIENCE)  # type: ignore[call-arg]
    assert made == [1]


def test_injected_works_before_the_resource_is_declared(app: Treadle) -> None:
    """The default says that a parameter is a resource, so callers and type checkers leave it out."""

    @app.task(name="work")
    async def work(number: int, mailer: Mailer | None = injected, job: JobContext = injected) -> str:
        return f"{number} {type(mailer).__name__} {job.attempt}"

    @app.resource
    def mailer() -> Mailer:
        return Mailer()

    with app.worker():
        assert work.enqueue(3).result(PATIENCE) == "3 Mailer 1"


def test_a_missing_resource_stops_the_worker_at_its_start(app: Treadle) -> None:
    """Not the first job tells, but the start."""

    @app.task(name="work")
    def work(mailer: Mailer = injected) -> None: ...

    with pytest.raises(ConfigurationError, match=r"work wants a Mailer as 'mailer'"), app.worker():
        pass


def test_calling_the_function_needs_the_value(app: Treadle) -> None:
    """Outside a worker nobody injects; the stand-in says so."""

    @app.task(name="work")
    def work(db: Database = injected) -> str:
        return db.name

    assert work(Database("mine")) == "mine"
    with pytest.raises(ConfigurationError, match="pass it when you call the function yourself"):
        work()


def no_annotation():  # type: ignore[no-untyped-def] 
    return 1


def of_the_job(job: JobContext) -> Mailer:
    return Mailer()


def of_nothing_known(text: str) -> Mailer:
    return Mailer()


@pytest.mark.parametrize(
    ("function", "words"),
    [(no_annotation, "must say what it gives"), (of_the_job, "'job' is of no resource"), (of_nothing_known, "'text'")],
)
def test_unusable_resources_are_refused(app: Treadle, function: Any, words: str) -> None:
    """At declaration, naming what is missing."""
    with pytest.raises(ConfigurationError, match=words):
        app.resource(function)


def test_one_type_has_one_maker(app: Treadle) -> None:
    """A second one would make it a matter of luck."""
    plain_database(app)
    with pytest.raises(DuplicateTask, match="Database"):
        plain_database(app)


def test_resources_are_not_stored(app: Treadle) -> None:
    """Only what callers pass is in the database."""
    plain_database(app)
    job = app.task(name="work")(lambda_like).enqueue(number=1)
    assert (job.record().arguments, job.record().state) == (b'{"number":1}', JobState.READY)


def lambda_like(number: int, db: Database = injected) -> None:
    """A handler."""
