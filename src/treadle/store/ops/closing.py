"""Closing a store that moves, by triggers: whoever writes is told, and an open store pays nothing.

Three degrees. *Draining*: nothing is claimed and no worker registers; enqueues and outcomes are stored. *Moved*:
nothing is written any more. *Filling*, of the store that the jobs move to: nothing either, but for the pages of the
move itself.
"""

from __future__ import annotations

from typing import Final

from treadle.errors import StoreBusy, StoreError, StoreMoved
from treadle.store.ops import meta
from treadle.store.session import Session

DRAINING, MOVED, FILLING = "draining", "moved", "filling"
GATE: Final = "move_page"
"""A row of ``treadle_meta`` that exists only inside the transactions of the move itself: nobody else ever sees it."""
TABLES: Final = (
    "treadle_jobs", "treadle_payloads", "treadle_results", "treadle_tags", "treadle_progress", "treadle_checkpoints",
    "treadle_immediates", "treadle_attempts", "treadle_workers", "treadle_queues", "treadle_pauses", "treadle_logs",
)  # fmt: skip
SAID: Final = "treadle {degree}: "
"""How the message of a trigger on SQLite begins."""
STATES: Final = {MOVED: "TRD01", DRAINING: "TRD02", FILLING: "TRD03"}
"""The same on PostgreSQL: SQLSTATE of the refusal."""

UNSAY: Final = "DELETE FROM treadle_meta WHERE name IN ('draining', 'moved', 'filling')"
OPEN_GATE: Final = "INSERT INTO treadle_meta (name, value) VALUES ('move_page', '')"
SHUT_GATE: Final = "DELETE FROM treadle_meta WHERE name = 'move_page'"

# SQLite: a trigger for each table and verb. Its message has to be written out.
TRIGGER: Final = """
CREATE TRIGGER closed_{table}_{verb} BEFORE {event} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{text}'); END
"""
ALWAYS: Final = "NOT EXISTS (SELECT 1 FROM treadle_meta WHERE name = 'move_page')"
TRIGGERS: Final = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'closed_treadle_*'"
# PostgreSQL: one function, whose arguments say how it refuses. The lock lets everybody finish who writes already.
LOCK: Final = f"LOCK TABLE {', '.join(TABLES)} IN SHARE ROW EXCLUSIVE MODE"
FUNCTION: Final = """
CREATE OR REPLACE FUNCTION treadle_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM treadle_meta WHERE name = 'move_page') THEN
        RAISE EXCEPTION USING ERRCODE = TG_ARGV[0], MESSAGE =
            coalesce((SELECT value FROM treadle_meta WHERE name = TG_ARGV[1]), 'the store is closed');
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$
"""
SERVER_TRIGGER: Final = """
CREATE TRIGGER closed_{degree} BEFORE {event} ON {table} FOR EACH ROW {condition}
EXECUTE FUNCTION treadle_refuse('{state}', '{degree}')
"""
SERVER_TRIGGERS: Final = """
SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND p.oid = to_regprocedure('treadle_refuse()')
"""
CLAIMS: Final = "NEW.state = 5 AND OLD.state <> 5"


def close(session: Session, degree: str, text: str) -> None:
    """Close the store to a *degree*, whatever it was closed to before; *text* tells whoever is refused why."""
    on_server = session.dialect.shares_rows
    if on_server:
        session.change(LOCK)
        session.change(FUNCTION)
    reopen(session, keep_function=True)
    session.change(meta.SET, (degree, text))
    make = _make_on_server if on_server else _make_in_file
    if degree == DRAINING:
        make(session, degree, text, "treadle_jobs", "UPDATE OF state", CLAIMS)
        make(session, degree, text, "treadle_workers", "INSERT", "")
        return
    for table in TABLES if on_server else (*TABLES, "treadle_sequences"):
        # A worker that stops late may still take its registration away.
        events = ("INSERT", "UPDATE") if table == "treadle_workers" else ("INSERT", "UPDATE", "DELETE")
        for event in (" OR ".join(events),) if on_server else events:
            make(session, degree, text, table, event, "")


def reopen(session: Session, *, keep_function: bool = False) -> None:
    """Open the store again; nothing to do for one that is open."""
    session.change(UNSAY)
    if not session.dialect.shares_rows:
        for (name,) in session.rows(TRIGGERS):
            session.change(f"DROP TRIGGER {name}")
        return
    for table, name in session.rows(SERVER_TRIGGERS):
        session.change(f"DROP TRIGGER {name} ON {table}")
    if not keep_function:
        session.change("DROP FUNCTION IF EXISTS treadle_refuse()")


def open_gate(session: Session) -> None:
    """Let the rest of this transaction write to a store that is closed to everybody else."""
    session.change(OPEN_GATE)


def shut_gate(session: Session) -> None:
    """Close it again, in the same transaction."""
    session.change(SHUT_GATE)


def moved_to(session: Session) -> str | None:
    """What whoever writes to this store is told since its jobs moved away; None for a store in use."""
    text: str | None = session.value(meta.GET, (MOVED,))
    return text


def check(session: Session) -> None:
    """Refuse to wait in a store in which nothing will happen any more.

    Raises:
        StoreMoved: its jobs have moved; the message says where.
    """
    text = moved_to(session)
    if text is not None:
        raise StoreMoved(text)


def check_filling(session: Session) -> None:
    """Refuse to give numbers in a store that a move fills.

    Raises:
        StoreBusy: it is being filled.
    """
    text = session.value(meta.GET, (FILLING,))
    if text is not None:
        raise StoreBusy(text)


def refusal(degree: str, text: str) -> StoreError:
    """What a refusal is told as: moved for good, or to be tried again."""
    return StoreMoved(text) if degree == MOVED else StoreBusy(text)


def refusal_in(message: str) -> StoreError | None:
    """The refusal in the words of a trigger on SQLite; None when they are somebody else's."""
    for degree in STATES:
        said = SAID.format(degree=degree)
        if message.startswith(said):
            return refusal(degree, message.removeprefix(said))
    return None


def refusal_of(state: str | None, message: str) -> StoreError | None:
    """The refusal that PostgreSQL reported with this SQLSTATE; None when it is no refusal."""
    for degree, own in STATES.items():
        if own == state:
            return refusal(degree, message)
    return None


def _make_in_file(session: Session, degree: str, text: str, table: str, event: str, condition: str) -> None:
    words = (SAID.format(degree=degree) + text).replace("'", "''")
    condition = f"{condition} AND {ALWAYS}" if condition else ALWAYS
    verb = event.partition(" ")[0].lower()
    session.change(TRIGGER.format(table=table, verb=verb, event=event, condition=condition, text=words))


def _make_on_server(session: Session, degree: str, _text: str, table: str, event: str, condition: str) -> None:
    when = f"WHEN ({condition})" if condition else ""
    state = STATES[degree]
    session.change(SERVER_TRIGGER.format(table=table, event=event, condition=when, degree=degree, state=state))
