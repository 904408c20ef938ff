"""What PostgreSQL's errors mean, in Treadle's words."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import errors

from treadle.errors import StoreBusy, StoreError, StoreFull, StoreUnreachable, StoreUnusable
from treadle.store.ops.closing import refusal_of

AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)
"""The transaction was undone because of others; the whole of it may run again."""
GONE: Final = (
    errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.TooManyConnections,
    errors.IdleInTransactionSessionTimeout, errors.ConnectionException,
)  # fmt: skip
FORBIDDEN: Final = (
    errors.InsufficientPrivilege, errors.UndefinedTable, errors.InvalidSchemaName, errors.ReadOnlySqlTransaction,
    errors.InvalidPassword, errors.InvalidAuthorizationSpecification, errors.InvalidCatalogName,
)  # fmt: skip


def is_lost(error: BaseException) -> bool:
    """True when *error* says that there is no connection any more, or not yet.

    psycopg raises a plain OperationalError without an SQLSTATE when the socket broke.
    """
    if isinstance(error, GONE):
        return True
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None


def translate(error: psycopg.Error, place: str) -> StoreError:
    """Say *error* in Treadle's words, naming the database and what to do."""
    refused = refusal_of(error.sqlstate, first_line(error))
    if refused is not None:
        return refused
    if isinstance(error, errors.QueryCanceled):
        return StoreBusy(f"The read on {place} took too long and was stopped; narrow the filter.")
    if isinstance(error, (errors.LockNotAvailable, *AGAIN)):
        return StoreBusy(f"Other transactions on {place} stood in the way ({first_line(error)}). Nothing was stored.")
    if isinstance(error, errors.DiskFull):
        return StoreFull(f"The disk of {place} is full ({first_line(error)}); free space, work resumes by itself.")
    if isinstance(error, FORBIDDEN):
        return StoreUnusable(
            f"{place} refused us ({first_line(error)}); check the role's rights and whether this is the primary. "
            "'treadle migrate --sql' prints what the tables need."
        )
    if is_lost(error):
        return unreachable(place, error)
    return StoreError(f"The database {place} refused a statement: {first_line(error)}")


def unreachable(place: str, error: BaseException | None) -> StoreUnreachable:
    """The database cannot be reached, and nothing was stored."""
    why = f" ({first_line(error)})" if error is not None else ""
    return StoreUnreachable(f"The database {place} cannot be reached{why}. Nothing was stored; try again.")


def none_free(place: str, seconds: float) -> StoreBusy:
    """The database answers, but every connection to it was in use all the time."""
    return StoreBusy(
        f"No connection to {place} was free for {seconds:g} s (lock_timeout). Nothing was stored; give the store more "
        "connections, or look for transactions that hold its rows."
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
