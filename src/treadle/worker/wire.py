"""What a worker and its child processes say to each other: messages of plain data, each behind its length.

Nothing of it is code: exceptions travel as names and texts, arguments as the bytes that were stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from treadle.model import outcome
from treadle.model.job import Claimed, LogLine
from treadle.model.outcome import Outcome

LENGTH: Final = 4
OUTCOMES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        outcome.Succeeded, outcome.Failed, outcome.Snoozed, outcome.RetryLater, outcome.Released, outcome.Held,
        outcome.Aborted, outcome.Cancelled,
    )
}  # fmt: skip


class Message(msgspec.Struct, tag=True, frozen=True):
    """Anything said."""


# To the child ------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """Who the child is: where its app is, which byte of which file it locks, what database its jobs are from."""

    app: str
    main: str
    sys_path: list[str]
    lock: str
    place: int
    store_id: str
    log_level: int
    worker: str = ""


class Run(Message, frozen=True):
    """An attempt to run; *memory* caps what it may allocate, in bytes; *module* has declared its task."""

    claimed: Claimed
    memory: int | None
    module: str


class Cancel(Message, frozen=True):
    """The attempt should stop; *reason* is given when the whole job is called off."""

    reason: str | None


class Reply(Message, frozen=True):
    """The answer to an :class:`Ask`."""

    number: int
    codec: str | None = None
    data: bytes | None = None
    error: str | None = None
    lost: bool = False


# From the child ----------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The lock is held and the app is imported."""


class Broken(Message, frozen=True):
    """The child cannot run anything."""

    why: str


class Begun(Message, frozen=True):
    """The handler begins: from here on nobody knows what it may have done."""


class Progress(Message, frozen=True):
    """The last progress of an attempt.

    Like every note it names its lease: a thread that outlived its attempt may still write some.
    """

    lease: int
    fraction: float
    message: str


class Line(Message, frozen=True):
    """A line of an attempt."""

    lease: int
    line: LogLine


class Ask(Message, frozen=True):
    """A checkpoint to store (*data*) under *key*, a lease; or that of the job *key* to read."""

    number: int
    key: int
    codec: str | None = None
    data: bytes | None = None


class StopWorker(Message, frozen=True):
    """A handler wants its worker to drain and end."""

    reason: str


class Settled(Message, frozen=True):
    """The handler has committed its own success."""

    lease: int
    finished_at: int


class Ended(Message, frozen=True):
    """What the attempt came to: the name of its outcome and its fields, packed."""

    kind: str
    fields: bytes
    lines: list[LogLine]
    peak_rss: int | None
    cpu: int | None


ToChild = Hello | Run | Cancel | Reply
ToParent = Ready | Broken | Begun | Progress | Line | Ask | StopWorker | Settled | Ended
_PACK: Final = msgspec.msgpack.Encoder()
_TO_CHILD: Final = msgspec.msgpack.Decoder(ToChild)
_TO_PARENT: Final = msgspec.msgpack.Decoder(ToParent)


def packed(message: Message) -> bytes:
    """A message as it travels."""
    data = _PACK.encode(message)
    return len(data).to_bytes(LENGTH, "big") + data


def pack_outcome(found: Outcome) -> tuple[str, bytes]:
    """An outcome as a name and bytes."""
    return type(found).__name__, _PACK.encode(found)


def unpack_outcome(kind: str, fields: bytes) -> Outcome:
    """The outcome that :func:`pack_outcome` packed."""
    found: Outcome = msgspec.msgpack.decode(fields, type=OUTCOMES[kind])
    return found


class Inbox:
    """Cuts what comes through a pipe into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now."""
        self._held += data
        while len(self._held) >= LENGTH:
            end = LENGTH + int.from_bytes(self._held[:LENGTH], "big")
            if len(self._held) < end:
                return
            yield bytes(self._held[LENGTH:end])
            del self._held[:end]


def for_child(data: bytes) -> ToChild:
    """A message to a child."""
    found: ToChild = _TO_CHILD.decode(data)
    return found


def for_parent(data: bytes) -> ToParent:
    """A message from a child."""
    found: ToParent = _TO_PARENT.decode(data)
    return found
