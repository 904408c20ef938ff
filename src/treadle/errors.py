"""Every error Treadle raises, as one tree.

TreadleError
├── ConfigurationError            a setting, name or option cannot be used
│   ├── UnknownTask               a task name nobody registered here
│   ├── DuplicateTask             two functions claim one task name
│   └── NotSupportedHere          this operating system cannot do it
├── PayloadError                  arguments or results cannot be stored
│   ├── InvalidPayload            a value no codec can carry, with its path
│   ├── PayloadTooLarge           bigger than the cap
│   ├── UndecodablePayload        stored bytes cannot be read back
│   └── SignatureMismatch         arguments do not fit the function
├── StoreError                    the database refused or is unusable
│   ├── StoreClosed               used after close
│   ├── StoreBusy                 the write lock was not free in time
│   ├── StoreFull                 disk full or size budget reached
│   ├── StoreUnusable             file system, version or library unsafe
│   │   ├── SchemaTooNew          the file needs a newer Treadle
│   │   ├── StoreLost             this process must stop writing: the file was replaced, its locks are gone
│   │   │   ├── StoreMoved        its jobs have moved to another store
│   │   │   └── StoreBroken       the disk failed, or the file is corrupt
│   │   │       └── OutcomeUnknown   it failed at the commit: stored or not, nobody can say
│   │   └── BackupNotAdopted      the file is a copy nobody adopted
│   ├── OwnTransactionOpen        enqueue would wait for your own transaction
│   ├── TransactionTooOld         your transaction cannot become a writer
│   ├── TransactionTooLong        job.transaction() was open beyond its deadline
│   ├── NoTransaction             a connection was given, but it is in autocommit
│   └── ForkedConnectionError     the process forked while the store was busy
├── MoveRefused                   these two stores cannot be the ends of a move, or not yet
├── QueueFull                     the queue reached its length cap
├── JobNotFound                   no job has this id
├── JobStateError                 the job is in the wrong state for the verb
├── WorkerNotFound                no worker of this name or slot is registered
├── LeaseLost                     this attempt no longer owns its job
└── ResultError                   the result is not to be had
    ├── ResultTimeout             the job did not end in time
    ├── JobFailed                 it ended without success
    └── ResultNotStored           it succeeded, but its result was not kept
"""

from __future__ import annotations

from collections.abc import Sequence


class TreadleError(Exception):
    """Root of every error Treadle raises on purpose."""


class ConfigurationError(TreadleError):
    """A setting, a name or an option cannot be used as given."""


class UnknownTask(ConfigurationError):
    """No task of this name is registered in this app."""


class DuplicateTask(ConfigurationError):
    """Two different functions were registered under one task name."""


class NotSupportedHere(ConfigurationError):
    """The operating system lacks what this feature needs."""


class PayloadError(TreadleError):
    """Arguments or a result cannot be stored or read back."""


class InvalidPayload(PayloadError):
    """A value cannot be stored; the message names its path, such as ``$.user.tags[2]``."""


class PayloadTooLarge(PayloadError):
    """The encoded value is larger than the cap."""


class UndecodablePayload(PayloadError):
    """Stored bytes cannot be read back by their codec."""


class SignatureMismatch(PayloadError):
    """The arguments do not fit the function's parameters."""


class StoreError(TreadleError):
    """The database refused the work or cannot be used."""


class StoreClosed(StoreError):
    """The store was used after it was closed."""


class StoreBusy(StoreError):
    """The write lock was not free within ``lock_timeout``."""


class StoreUnreachable(StoreBusy):
    """The database server cannot be reached; nothing was stored, and it can be tried again."""


class StoreFull(StoreError):
    """The disk or the size budget is exhausted; nothing was stored."""


class StoreUnusable(StoreError):
    """The database cannot be used safely here; the message gives the remedy."""


class SchemaTooNew(StoreUnusable):
    """The file was written by a newer Treadle and needs a newer reader."""


class StoreLost(StoreUnusable):
    """The open file was replaced, deleted or lost its locks; this process must stop writing."""


class StoreMoved(StoreLost):
    """The jobs of this store have moved to another one, which the message names; nothing was stored here."""


class StoreBroken(StoreLost):
    """The disk failed, or the file is corrupt. Nothing was stored, unless it is :class:`OutcomeUnknown`."""


class OutcomeUnknown(StoreBroken):
    """The disk failed while a transaction was committed: it may be stored or not, or appear after a crash.

    Attributes:
        ids: ids of the jobs in question, when it was an enqueue; once something else was stored, ``app.get(id)`` tells.
    """

    def __init__(self, message: str, *, ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class BackupNotAdopted(StoreUnusable):
    """The file is a backup copy; workers refuse it until ``treadle adopt`` is run."""


class OwnTransactionOpen(StoreError):
    """This thread's own open transaction holds the write lock that enqueue waits for."""


class TransactionTooOld(StoreError):
    """The given connection reads an old snapshot and cannot become a writer."""


class TransactionTooLong(StoreError):
    """A handler's ``job.transaction()`` was open beyond its deadline and was rolled back."""


class NoTransaction(StoreError):
    """A connection was given, but no transaction is open on it."""


class ForkedConnectionError(StoreError):
    """The process was forked while the store was in use; this copy may not touch the file."""


class MoveRefused(TreadleError):
    """The jobs of one store cannot be moved into another one, or not yet; both are as they were."""


class QueueFull(TreadleError):
    """The queue reached its length cap; nothing was stored.

    Attributes:
        wait: True when the queue was declared ``when_full="wait"``.
    """

    def __init__(self, message: str, *, wait: bool = False) -> None:
        super().__init__(message)
        self.wait = wait


class JobNotFound(TreadleError):
    """No job has this id; it may have been pruned."""


class JobStateError(TreadleError):
    """The job is in a state in which the verb makes no sense."""


class WorkerNotFound(TreadleError):
    """No worker of this name or slot is registered."""


class LeaseLost(TreadleError):
    """This attempt no longer owns its job; whatever it tried to write changed nothing."""


class ResultError(TreadleError):
    """The result of a job is not to be had."""


class ResultTimeout(ResultError, TimeoutError):
    """The job did not end within the timeout; it goes on."""


class JobFailed(ResultError):
    """The job ended without success; the message carries its state and last error."""


class ResultNotStored(ResultError):
    """The job succeeded, but its result could not be stored.

    Attributes:
        reason: why, in words.
        size: encoded size in bytes, or None when it could not be encoded.
    """

    def __init__(self, reason: str, size: int | None = None) -> None:
        super().__init__(f"The job succeeded, but its result was not stored: {reason}")
        self.reason = reason
        self.size = size
