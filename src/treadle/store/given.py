"""What people give as ``connection=``, reduced to the driver's own connection.

Nobody's library is imported for that: an object can only be a library's if its module was imported already.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple

from treadle.errors import ConfigurationError

SQLITE: Final = (
    "an open sqlite3.Connection, aiosqlite.Connection, SQLAlchemy Connection, Session, AsyncConnection or "
    "AsyncSession, or Django's connection or its name"
)
POSTGRES: Final = (
    "an open psycopg.Connection, psycopg.AsyncConnection, SQLAlchemy Connection, Session, AsyncConnection or "
    "AsyncSession (over psycopg), or Django's connection or its name"
)
ASYNC: Final = (
    ("sqlalchemy.ext.asyncio", "AsyncConnection"), ("sqlalchemy.ext.asyncio", "AsyncSession"),
    ("sqlalchemy.ext.asyncio", "async_scoped_session"), ("aiosqlite", "Connection"), ("psycopg", "AsyncConnection"),
)  # fmt: skip


class Given(NamedTuple):
    """The driver's connection.

    Attributes:
        connection: the object of the driver.
        begun: the library around it has a transaction open, whether or not the driver has said BEGIN yet.
    """

    connection: Any
    begun: bool = False


def reduced(given: Any) -> Given:
    """The driver's connection under a SQLAlchemy or Django object; anything else is taken as one.

    A SQLAlchemy object that has no transaction yet begins one, as with any statement run on it.
    """
    if is_a(given, "sqlalchemy.orm", "Session") or is_a(given, "sqlalchemy.orm", "scoped_session"):
        given = given.connection()
    if is_a(given, "sqlalchemy.engine", "Connection"):
        if not given.in_transaction():
            given.begin()
        return Given(given.connection.driver_connection, begun=True)
    found = _of_django(given)
    if found is None:
        return Given(given)
    found.validate_thread_sharing()
    found.ensure_connection()
    return Given(found.connection, begun=not found.get_autocommit())


async def areduced(given: Any) -> Given:
    """The same, for objects of async libraries too."""
    if is_a(given, "sqlalchemy.ext.asyncio", "AsyncSession") or is_a(
        given, "sqlalchemy.ext.asyncio", "async_scoped_session"
    ):
        given = await given.connection()
    if is_a(given, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        if not given.in_transaction():
            await given.begin()
        raw = await given.get_raw_connection()
        return Given(raw.driver_connection, begun=True)
    return reduced(given)


def is_a(found: object, module: str, name: str) -> bool:
    """True when *found* is an instance of that class, which is not imported for the question.

    Example:
        >>> is_a("jobs.db", "sqlalchemy.orm", "Session")
        False
    """
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(found, kind)


def refused(found: object, place: str, accepted: str, *, awaited: bool = False) -> ConfigurationError:
    """What to say of something that is no connection to use here; *awaited*: an async verb got it."""
    if not awaited and any(is_a(found, module, name) for module, name in ASYNC):
        return ConfigurationError(
            f"connection= got {_kind(found)}, which only async code can use: await task.using(connection=...)"
            ".aenqueue(...)."
        )
    return ConfigurationError(f"connection= takes {accepted}, on {place}; not {_kind(found)}.")


def _of_django(given: Any) -> Any:
    """Django's wrapper of a connection, from it, from the proxy of it, or from its name; None for anything else."""
    if isinstance(given, str):
        django, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
        if django is None or conf is None or not conf.settings.configured:
            return None
        return django.connections[given] if given in django.connections else None
    if is_a(given, "django.db.backends.base.base", "BaseDatabaseWrapper"):
        return given
    if is_a(given, "django.utils.connection", "ConnectionProxy") and hasattr(given, "ensure_connection"):
        return given
    return None


def _kind(found: object) -> str:
    kind = type(found)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
