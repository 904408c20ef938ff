"""Units of work for the lane: what to run, how it may be grouped, where the answer goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from treadle.model.job import NewJob
from treadle.store.ops.insert import insert
from treadle.store.replies import Reply, deliver
from treadle.store.session import Session

T = TypeVar("T")
Operation = Callable[[Session], T]


@dataclass(frozen=True, slots=True)
class Insert:
    """A plain insert: jobs and the ids they get."""

    jobs: Sequence[NewJob]
    ids: Sequence[int]

    def __call__(self, session: Session) -> Sequence[int]:
        """Store the jobs; their ids are returned."""
        insert(session, self.jobs, self.ids)
        return self.ids


class Work(NamedTuple, Generic[T]):
    """One operation waiting for the lane.

    Attributes:
        operation: runs inside the lane's transaction.
        reply: gets the result once the transaction has committed.
        guarded: run under a savepoint, so that its failure undoes it alone; needed when it has
            more than one statement that writes.
    """

    operation: Operation[T]
    reply: Reply
    guarded: bool = True


class Answer(NamedTuple):
    """What one work came to; told after the commit."""

    work: Work[Any]
    result: object
    error: BaseException | None = None



def starting(group: list[Work[Any]]) -> list[Work[Any]]:
    """Those whose callers have not given up; from here on they can no longer cancel."""
    return [work for work in group if work.reply.running() or work.reply.set_running_or_notify_cancel()]


def tell(answers: Iterable[Answer]) -> None:
    """Answer everybody; callers on one event loop are woken together."""
    answers = list(answers)
    for work, result, error in answers:
        if error is not None:
            work.reply.set_exception(error)
        else:
            work.reply.set_result(result)
    deliver(answer.work.reply for answer in answers)


def failed(works: list[Work[Any]], error: BaseException) -> list[Answer]:
    """The same error as the answer of every one of *works*."""
    return [Answer(work, None, error) for work in works]


def bundles(works: list[Work[Any]]) -> Iterator[list[Work[Any]]]:
    """Neighbouring inserts together, everything else alone.

    One set of statements stores them all: beside a busy event loop every statement may wait 5 ms for
    the interpreter lock.
    """
    held: list[Work[Any]] = []
    for work in works:
        if isinstance(work.operation, Insert):
            held.append(work)
            continue
        if held:
            yield held
            held = []
        yield [work]
    if held:
        yield held


def run_bundle(session: Session, works: list[Work[Any]]) -> list[Answer]:
    """Run a bundle of works and collect their answers."""
    if len(works) == 1:
        return [Answer(works[0], works[0].operation(session))]
    inserts = [work.operation for work in works]
    jobs = [job for one in inserts if isinstance(one, Insert) for job in one.jobs]
    ids = [number for one in inserts if isinstance(one, Insert) for number in one.ids]
    insert(session, jobs, ids)
    return [Answer(work, one.ids) for work, one in zip(works, inserts, strict=True) if isinstance(one, Insert)]
