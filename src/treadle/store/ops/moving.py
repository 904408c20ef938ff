"""What both ends of a move remember about it, so that a second run goes on where the first one was killed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from treadle.errors import StoreBusy
from treadle.store.ops import meta
from treadle.store.ops.copying import Key
from treadle.store.session import Session

NAME: Final = "move"
REPLACE: Final = "UPDATE treadle_meta SET value = ? WHERE name = 'move' AND value = ?"
FORGET: Final = "DELETE FROM treadle_meta WHERE name = 'move'"
RENAME: Final = "UPDATE treadle_meta SET value = ? WHERE name = 'store_id'"
RUNNING: Final = "SELECT count(*) FROM treadle_jobs WHERE state = 5"
REGISTERED: Final = "SELECT count(*) FROM treadle_workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What one end knows of a move.

    Attributes:
        id: the move's own name, the same at both ends.
        role: "source" or "target".
        other: the other end, as messages show it.
        store_id: of the source; its jobs' idempotency keys are made with it, so it moves too.
        done: this end is through with it.
        table: of the target: the table that is being copied, "" before the first.
        after: of the target: the key of the last row copied of it.
        rows: of the target: how many rows of each table are copied.
    """

    id: str
    role: str
    other: str
    store_id: str
    done: bool = False
    table: str = ""
    after: Key | None = None
    rows: dict[str, int] = field(default_factory=dict)


def read(session: Session) -> Mark | None:
    """What this store knows of a move; None when it never took part in one."""
    text = session.value(meta.GET, (NAME,))
    return None if text is None else msgspec.json.decode(text, type=Mark)


def write(session: Session, mark: Mark) -> None:
    """Remember."""
    session.change(meta.SET, (NAME, _text(mark)))


def advance(session: Session, mark: Mark, following: Mark) -> None:
    """Remember that one page more is copied, in the transaction that stores it.

    Raises:
        StoreBusy: somebody else did meanwhile: two runs of one move.
    """
    if session.change(REPLACE, (_text(following), _text(mark))) != 1:
        raise StoreBusy(f"Another 'treadle move' from {mark.other} is under way; let that one finish.")


def forget(session: Session) -> None:
    """Forget the move."""
    session.change(FORGET)


def finish(session: Session, mark: Mark) -> None:
    """This end is through with the move; it is kept for whoever asks where the jobs came from or went."""
    write(session, replace(mark, done=True, table="", after=None))


def take_name(session: Session, store_id: str) -> None:
    """Bear the source's name from now on."""
    session.change(RENAME, (store_id,))


def running(session: Session) -> int:
    """How many jobs run."""
    return int(session.value(RUNNING))


def registered(session: Session) -> int:
    """How many workers are registered, dead or alive."""
    return int(session.value(REGISTERED))


def _text(mark: Mark) -> str:
    return msgspec.json.encode(mark).decode()
