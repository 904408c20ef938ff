"""The connections of every library that ``using(connection=...)`` takes, each behind the same few verbs."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import aiosqlite
import django
import psycopg
import sqlalchemy as sa
from django.conf import settings
from django.db.utils import ConnectionHandler
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

ADD = "INSERT INTO orders (id) VALUES (7)"


class Own(NamedTuple):
    """A connection with a transaction begun, or about to be begun by the first statement.

    Attributes:
        given: what ``connection=`` gets.
        add: adds an order in the transaction.
        commit: ends it.
        undo: ends it the other way.
    """

    given: Any
    add: Callable[[], Any]
    commit: Callable[[], Any]
    undo: Callable[[], Any]


Opening = Callable[[str], AbstractContextManager[Own]]
AsyncOpening = Callable[[str], AbstractAsyncContextManager[Own]]


def file_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


def alchemy_url(url: str, *, use_async: bool = False) -> str:
    """The same address in SQLAlchemy's words."""
    if url.startswith("sqlite"):
        return url.replace("sqlite:", "sqlite+aiosqlite:") if use_async else url
    return url.replace("postgresql:", "postgresql+psycopg:")


def django_of(url: str) -> Any:
    """Django's settings of that database."""
    if url.startswith("sqlite"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": file_of(url)}
    parts = psycopg.conninfo.conninfo_to_dict(url)
    names = {"dbname": "NAME", "user": "USER", "host": "HOST", "port": "PORT"}
    return {"ENGINE": "django.db.backends.postgresql"} | {names[key]: value for key, value in parts.items()}


@contextmanager
def by_sqlite3(url: str) -> Iterator[Own]:
    connection = sqlite3.connect(file_of(url))
    connection.execute("BEGIN IMMEDIATE")
    yield Own(connection, lambda: connection.execute(ADD), connection.commit, connection.rollback)
    connection.close()


@contextmanager
def by_psycopg(url: str) -> Iterator[Own]:
    """The usual kind, with rows of another kind."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        yield Own(connection, lambda: connection.execute(ADD), connection.commit, connection.rollback)


@contextmanager
def by_psycopg_block(url: str) -> Iterator[Own]:
    """An autocommit connection inside a block of its own, with statements made on the client."""
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        block = connection.transaction()
        block.__enter__()
        undo = psycopg.Rollback(block)
        yield Own(
            connection, lambda: connection.execute(ADD), lambda: block.__exit__(None, None, None),
            lambda: block.__exit__(psycopg.Rollback, undo, None),
        )  # fmt: skip


@contextmanager
def by_alchemy_connection(url: str) -> Iterator[Own]:
    engine = sa.create_engine(alchemy_url(url))
    with engine.connect() as connection:
        yield Own(connection, lambda: connection.execute(sa.text(ADD)), connection.commit, connection.rollback)
    engine.dispose()


@contextmanager
def by_alchemy_session(url: str) -> Iterator[Own]:
    engine = sa.create_engine(alchemy_url(url))
    with Session(engine) as session:
        yield Own(session, lambda: session.execute(sa.text(ADD)), session.commit, session.rollback)
    engine.dispose()


@contextmanager
def by_alchemy_scoped_session(url: str) -> Iterator[Own]:
    engine = sa.create_engine(alchemy_url(url))
    session = scoped_session(sessionmaker(engine))
    yield Own(session, lambda: session.execute(sa.text(ADD)), session.commit, session.rollback)
    session.remove()
    engine.dispose()


@contextmanager
def by_django(url: str) -> Iterator[Own]:
    with django_connections(url) as connections:
        wrapper = connections["default"]
        wrapper.ensure_connection()
        wrapper.set_autocommit(False)
        yield Own(wrapper, lambda: wrapper.cursor().execute(ADD), wrapper.commit, wrapper.rollback)


@contextmanager
def django_connections(url: str) -> Iterator[Any]:
    """What stands in for ``django.db.connections``."""
    if not settings.configured:
        settings.configure()
        django.setup()
    connections = ConnectionHandler({"default": django_of(url)})
    yield connections
    connections["default"].close()


@asynccontextmanager
async def by_aiosqlite(url: str) -> AsyncIterator[Own]:
    async with aiosqlite.connect(file_of(url)) as connection:
        await connection.execute("BEGIN IMMEDIATE")
        yield Own(connection, lambda: connection.execute(ADD), connection.commit, connection.rollback)


@asynccontextmanager
async def by_async_psycopg(url: str) -> AsyncIterator[Own]:
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        yield Own(connection, lambda: connection.execute(ADD), connection.commit, connection.rollback)


@asynccontextmanager
async def by_async_alchemy_connection(url: str) -> AsyncIterator[Own]:
    engine = create_async_engine(alchemy_url(url, use_async=True))
    async with engine.connect() as connection:
        yield Own(connection, lambda: connection.execute(sa.text(ADD)), connection.commit, connection.rollback)
    await engine.dispose()


@asynccontextmanager
async def by_async_alchemy_session(url: str) -> AsyncIterator[Own]:
    engine = create_async_engine(alchemy_url(url, use_async=True))
    async with AsyncSession(engine) as session:
        yield Own(session, lambda: session.execute(sa.text(ADD)), session.commit, session.rollback)
    await engine.dispose()


BOTH: list[Opening] = [by_alchemy_connection, by_alchemy_session, by_alchemy_scoped_session, by_django]
SQLITE: list[Opening] = [by_sqlite3, *BOTH]
POSTGRES: list[Opening] = [by_psycopg, by_psycopg_block, *BOTH]
ASYNC_BOTH: list[AsyncOpening] = [by_async_alchemy_connection, by_async_alchemy_session]
ASYNC_SQLITE: list[AsyncOpening] = [by_aiosqlite, *ASYNC_BOTH]
ASYNC_POSTGRES: list[AsyncOpening] = [by_async_psycopg, *ASYNC_BOTH]
