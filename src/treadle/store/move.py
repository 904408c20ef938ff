"""Moving all jobs of one store into another, of whatever kind each is: drain, close, copy, compare, switch.

Nothing is lost and nothing doubled, because at every moment at most one of the two may be written. The source is closed
in the transaction that sees that nothing runs. The target is closed until it is whole, opened first, and only then does
the source say that it is done. Whatever is killed in between, the next run finds out where it was: each page is stored
together with how far it goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

from treadle.errors import MoveRefused, StoreError
from treadle.store.ops import closing, copying, meta, moving, rescue, sequences, workers
from treadle.store.ops.moving import Mark
from treadle.store.roster import evict, roster
from treadle.store.session import Row, Session
from treadle.store.store import Store

LOOK_EVERY: Final = 0.1
PATIENCE: Final = 600.0
"""Seconds that counting a large table may take."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a move goes about it.

    Attributes:
        wait: seconds that running jobs get to end before the move gives up.
        take_running: take the jobs of workers that are dead, charged with a crash, as a live worker would.
    """

    wait: float
    take_running: bool = False


class Plan(NamedTuple):
    """What a move would meet.

    Attributes:
        rows: rows to copy, by table.
        running: jobs that run on the source now.
        alive: names of the live workers there.
        dead: names of dead ones whose jobs nobody has taken back.
        conflict: why it would be refused; None when it would not.
        resumes: an earlier run has begun it.
    """

    rows: dict[str, int]
    running: int
    alive: tuple[str, ...]
    dead: tuple[str, ...]
    conflict: str | None
    resumes: bool


class Moved(NamedTuple):
    """What a move came to: rows by table, each counted and compared at both ends."""

    rows: dict[str, int]


def look(source: Store, target: Store | None) -> Plan:
    """See what a move would do; nothing is changed. *target* is None when it would be made first."""
    conflict, mark = None, None
    try:
        mark = _agreed(source, target)
    except MoveRefused as error:
        conflict = str(error)
    records = source.read(partial(roster, source))
    return Plan(
        {one.name: source.engine.read_long(partial(copying.count, table=one), PATIENCE) for one in copying.TABLES},
        source.read(moving.running),
        tuple(one.name for one in records if one.alive),
        tuple(one.name for one in records if not one.alive and one.running),
        conflict, mark is not None,
    )  # fmt: skip


def move(source: Store, target: Store, wish: Wish, tell: Tell) -> Moved:
    """Move every job from *source* to *target*; a run that was interrupted is gone on with.

    Raises:
        MoveRefused: a conflict, or running jobs that did not end in time. Both stores are as they were.
        StoreError: a database failed meanwhile; run it again.
    """
    mark = _agreed(source, target)
    ours = source.read(moving.read)
    if mark is not None and mark.done:
        _leave_behind(source, target, mark)
        tell("The target was whole already; the source is marked now.")
        return Moved(mark.rows)
    if mark is None:
        mark = Mark(id=uuid4().hex[:12], role="target", other=source.place, store_id=source.read(meta.store_id))
        target.run(partial(_begin_filling, mark=mark))
    if ours is None or ours.id != mark.id or source.read(closing.moved_to) is None:
        try:
            _drain(source, target, mark, wish, tell)
        except BaseException:
            give_up(source, target)
            raise
    mark = _copy(source, target, mark, tell)
    _compare(source, target, tell)
    target.run(partial(_open_target, target, mark, source.read(partial(_numbers, source))))
    _leave_behind(source, target, mark)
    return Moved(mark.rows)


def give_up(source: Store, target: Store) -> None:
    """Take back a move that is not done: the source works again, the target is as empty as it was.

    Raises:
        MoveRefused: it is done, or it is none of these two.
    """
    ours, theirs = source.read(moving.read), target.read(moving.read)
    if theirs is not None and theirs.role == "target" and theirs.done and (ours is None or ours.id == theirs.id):
        raise MoveRefused(f"The move from {source.place} to {target.place} is done; move the jobs back instead.")
    if theirs is not None and theirs.role == "target" and not theirs.done:
        if ours is not None and ours.id != theirs.id and not ours.done:
            raise MoveRefused(f"{target.place} is being filled from {theirs.other}, not from {source.place}.")
        target.run(_empty_target)
    if ours is not None and ours.role == "source" and not ours.done:
        source.run(_reopen_source)


# Whether it may begin ---------------------------------------------------------------------------


def _agreed(source: Store, target: Store | None) -> Mark | None:
    """The target's mark of this very move, None before it has begun.

    Raises:
        MoveRefused: the two cannot be, or cannot yet be, the ends of one move.
    """
    ours = source.read(moving.read)
    if source.read(meta.backup_mark) is not None:
        raise MoveRefused(f"{source.place} is a backup copy. Adopt it first, if the original is gone: treadle adopt")
    underway = ours is not None and ours.role == "source"
    theirs = None if target is None else target.read(moving.read)
    if ours is not None and ours.role == "source" and (theirs is None or theirs.id != ours.id):
        verb = "have moved" if ours.done else "are moving"
        raise MoveRefused(f"The jobs of {source.place} {verb} to {ours.other} already. Go on there.")
    if ours is not None and ours.role == "target" and not ours.done:
        raise MoveRefused(f"{source.place} is being filled from {ours.other}; finish that move first.")
    if target is None or theirs is None or theirs.role == "source" or (theirs.done and not underway):
        _check_target(source, target)
        return None
    store_id = source.read(meta.store_id)
    if theirs.store_id != store_id or (ours is not None and underway and ours.id != theirs.id):
        raise MoveRefused(f"{target.place} is being filled from {theirs.other}; finish or abandon that move first.")
    if underway and ours is not None and ours.done:
        raise MoveRefused(f"The jobs of {source.place} have moved to {ours.other} already. Go on there.")
    return theirs


def _check_target(source: Store, target: Store | None) -> None:
    """Refuse a target that has anything in it."""
    if target is None:
        return
    if target.read(meta.store_id) == source.read(meta.store_id) and target.place == source.place:
        raise MoveRefused(f"{source.place} is both source and target.")
    if target.read(meta.backup_mark) is not None:
        raise MoveRefused(f"{target.place} is a backup copy; take another target.")
    moved = target.read(closing.moved_to)
    if moved is not None:
        raise MoveRefused(f"{target.place} has old jobs in it ({moved}) Take another target, or remove that one first.")
    filled = target.read(copying.filled)
    if filled:
        raise MoveRefused(
            f"{target.place} is not empty: it has rows in {', '.join(filled)}. Take another file, database or schema."
        )
    if target.read(moving.registered):
        raise MoveRefused(f"{target.place} has registered workers; stop them, and start them after the move.")


# Draining ---------------------------------------------------------------------------------------


def _drain(source: Store, target: Store, mark: Mark, wish: Wish, tell: Tell) -> None:
    """Let workers finish and end, then close the source in the moment in which nothing runs."""
    ours = replace(mark, role="source", other=target.place)
    source.run(partial(_begin_draining, mark=ours, source=source.place))
    tell("Nothing is claimed any more; running jobs end.")
    pause, until = threading.Event(), source.clock.monotonic() + wish.wait
    while not source.run(partial(_close_source, mark=ours, source=source.place)):
        records = source.read(partial(roster, source))
        dead = [one.name for one in records if one.running and not one.alive]
        alive = [one.name for one in records if one.running and one.alive]
        if wish.take_running and not alive:
            tell(f"Jobs of dead workers are taken back: {source.run(partial(_take_dead, source))}.")
            continue
        if dead and not alive:
            raise MoveRefused(
                f"Workers are dead and their jobs were not taken back: {', '.join(dead)}. Let a worker do it, or pass "
                "--take-running."
            )
        if source.clock.monotonic() > until:
            raise MoveRefused(
                f"{source.read(moving.running)} jobs still ran after {wish.wait:g} s, of "
                f"{', '.join(alive) or 'nobody'}. Wait longer (--wait), or cancel them. Nothing was moved; workers "
                "that have ended have to be started again."
            )
        pause.wait(LOOK_EVERY)
    source.engine.ring(b"o")
    tell("The source is closed.")


def _begin_filling(session: Session, mark: Mark) -> None:
    moving.write(session, mark)
    text = f"This store is being filled with the jobs of {mark.other}; nothing is stored until 'treadle move' is done."
    closing.close(session, closing.FILLING, text)


def _begin_draining(session: Session, mark: Mark, source: str) -> None:
    moving.write(session, mark)
    closing.close(session, closing.DRAINING, f"{source} is moving to {mark.other}: no job is started there meanwhile.")
    for row in workers.every(session):
        workers.order(session, row.slot, row.epoch, "drain", f"the move to {mark.other}")


def _close_source(session: Session, mark: Mark, source: str) -> bool:
    """Close the source if nothing runs; False when something does."""
    if moving.running(session):
        return False
    closing.close(session, closing.MOVED, _moved_text(source, mark.other, done=False))
    # Where several may write at once, closing has waited for all who did: one of them may have claimed.
    if moving.running(session):
        closing.close(session, closing.DRAINING, f"{source} is moving to {mark.other}: no job is started meanwhile.")
        return False
    session.settle()
    return True


def _take_dead(source: Store, session: Session) -> int:
    dead = [one for one in roster(source, session) if one.running and not one.alive]
    taken = evict(source, lambda one: not one.alive and one.running > 0, "dead", session) if dead else 0
    return taken + rescue.rescue_orphans(session)


def _moved_text(source: str, target: str, *, done: bool) -> str:
    if done:
        return f"The jobs of {source} have moved to {target}; nothing was stored. Use that store."
    return (
        f"The jobs of {source} are moving to {target}; nothing was stored. Use that store once 'treadle move' is done."
    )


# Copying ----------------------------------------------------------------------------------------


def _copy(source: Store, target: Store, mark: Mark, tell: Tell) -> Mark:
    names = [table.name for table in copying.TABLES]
    begin = names.index(mark.table) if mark.table else 0
    if begin or mark.after:
        tell(f"Going on with {mark.table}, {mark.rows.get(mark.table, 0):,} rows of it are copied.")
    for table in copying.TABLES[begin:]:
        after = mark.after if mark.table == table.name else None
        while rows := source.read(partial(copying.page, table=table, after=after)):
            after = copying.key_of(table, rows[-1])
            counts = {**mark.rows, table.name: mark.rows.get(table.name, 0) + len(rows)}
            following = replace(mark, table=table.name, after=after, rows=counts)
            target.run(partial(_store_page, mark=mark, following=following, table=table, rows=rows))
            mark = following
        tell(f"{table.name}: {mark.rows.get(table.name, 0):,} rows")
    return mark


def _store_page(
    session: Session, mark: Mark, following: Mark, table: copying.Table, rows: Sequence[Row]
) -> None:
    moving.advance(session, mark, following)
    closing.open_gate(session)
    copying.write(session, table, rows)
    closing.shut_gate(session)


def _compare(source: Store, target: Store, tell: Tell) -> None:
    """Read every table at both ends once more, and compare.

    Raises:
        StoreError: they differ. The source is as it was; the target is closed.
    """
    for table in copying.TABLES:
        there = _sum(target, table, target)
        here = _sum(source, table, target)
        if here != there:
            raise StoreError(
                f"{table.name} differs: {here.rows:,} rows at the source, {there.rows:,} at the target, or other "
                "values. Nothing was switched. Take it back with --abandon, and report it."
            )
    tell("Every table was read again at both ends: the same rows.")


def _sum(store: Store, table: copying.Table, target: Store) -> copying.Sum:
    """Add up a table of *store*, its rows as *target* keeps them."""
    total, after = copying.Sum(), None
    while rows := store.read(partial(copying.page, table=table, after=after)):
        after = copying.key_of(table, rows[-1])
        total = total.plus([target.engine.kept(row) for row in rows])
    return total


# Switching --------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """What the target must not give again: sequences by name, and places up to *place*."""

    following: dict[str, int]
    place: int


def _numbers(source: Store, session: Session) -> Numbers:
    following = {name: sequences.following(session, name) for name in sequences.NAMES}
    return Numbers(following, source.engine.last_place(session))


def _open_target(target: Store, mark: Mark, numbers: Numbers, session: Session) -> None:
    closing.reopen(session)
    for name, number in numbers.following.items():
        sequences.go_on(session, name, number)
    moving.take_name(session, mark.store_id)
    target.engine.go_on_from(session, numbers.place)
    moving.finish(session, mark)
    session.ring()


def _leave_behind(source: Store, target: Store, mark: Mark) -> None:
    """Say at the source that the jobs have moved, for good."""

    def leave(session: Session) -> None:
        closing.close(session, closing.MOVED, _moved_text(source.place, target.place, done=True))
        moving.finish(session, replace(mark, role="source", other=target.place))
        session.settle()

    source.run(leave)
    source.engine.ring(b"o")


def _empty_target(session: Session) -> None:
    closing.reopen(session)
    copying.empty(session)
    moving.forget(session)


def _reopen_source(session: Session) -> None:
    closing.reopen(session)
    moving.forget(session)
    session.ring()
