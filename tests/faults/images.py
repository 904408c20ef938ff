"""What a power cut may leave of files: replay a trace up to a moment, then lose what was not synced, in any way.

Of each file there is what its last sync made durable, and any choice of the writes since: none, all, the first few, or
some, each of them perhaps torn at a sector. The folder has what its last sync made durable, and the first few of the
names made and removed since. Shared memory (``-shm``) is gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from faults.ledger import Record
from faults.vfs import Touch

SECTOR = 512
TORN = 0.15
"""How often a write that was not synced is torn."""

Event = Touch | Record
"""What a trace has: touches of files, and ledger records between them."""


class LostSync(NamedTuple):
    """A sync that failed: the kernel gave up what was not written yet, and the next sync will not try it again."""

    name: str


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Touch] = field(default_factory=list)

    def sync(self) -> None:
        for touch in self.pending:
            _apply(self.durable, touch)
        self.pending.clear()

    def after_cut(self, luck: random.Random) -> bytes:
        """What is on the disk when the power comes back."""
        chosen = self._survivors(luck)
        if not chosen:
            return bytes(self.durable)
        content = bytearray(self.durable)
        for touch in chosen:
            _apply(content, touch)
        return bytes(content)

    def _survivors(self, luck: random.Random) -> list[Touch]:
        how = luck.choice(("none", "all", "first", "some")) if self.pending else "none"
        if how == "none":
            return []
        if how == "first":
            return _torn_last(self.pending[: luck.randint(1, len(self.pending))], luck)
        kept = self.pending if how == "all" else [one for one in self.pending if luck.random() < 0.5]
        return [_torn(one, luck) if luck.random() < TORN else one for one in kept] if how == "some" else kept


class Replay:
    """The disk while a trace goes by.

    Args:
        deaf_to: syncs of files with this ending are ignored: a disk that lies, for the negative control.
    """

    def __init__(self, deaf_to: str | None = None) -> None:
        self._deaf_to = deaf_to
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._renames: list[tuple[str, _File | None]] = []

    def step(self, event: Touch | LostSync) -> None:
        """One more thing has happened to a file."""
        if isinstance(event, LostSync):
            self._file(event.name).pending.clear()
        elif event.kind == "delete":
            self._remove(event)
        elif event.kind == "open":
            self._file(event.name)
        elif event.kind == "sync":
            self._sync(event)
        else:
            self._file(event.name).pending.append(event)

    def image(self, luck: random.Random) -> dict[str, bytes]:
        """The files after a cut at this moment: name to content."""
        names = dict(self._durable_names)
        for name, file in self._renames[: luck.randint(0, len(self._renames))]:
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return {name: file.after_cut(luck) for name, file in names.items()}

    def _file(self, name: str) -> _File:
        if name not in self._names:
            self._names[name] = _File()
            self._renames.append((name, self._names[name]))
        return self._names[name]

    def _remove(self, touch: Touch) -> None:
        if self._names.pop(touch.name, None) is not None:
            self._renames.append((touch.name, None))
        if touch.flag:
            self._sync_folder()

    def _sync(self, touch: Touch) -> None:
        if self._deaf_to is not None and touch.name.endswith(self._deaf_to):
            return
        self._file(touch.name).sync()
        if touch.flag:
            self._sync_folder()

    def _sync_folder(self) -> None:
        self._durable_names = dict(self._names)
        self._renames.clear()


def cuts(
    trace: Iterable[Event | LostSync], places: Iterable[int], deaf_to: str | None, luck: random.Random
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """An image for each of *places*, which say after how many events of *trace* the power fails."""
    wanted = sorted(places)
    replay, at = Replay(deaf_to), 0
    for number, event in enumerate(trace):
        while at < len(wanted) and wanted[at] <= number:
            yield wanted[at], replay.image(luck)
            at += 1
        if not isinstance(event, dict):
            replay.step(event)
    for place in wanted[at:]:
        yield place, replay.image(luck)


def _apply(content: bytearray, touch: Touch) -> None:
    if touch.kind == "truncate":
        del content[touch.offset :]
        content.extend(bytes(touch.offset - len(content)))
        return
    if len(content) < touch.offset:
        content.extend(bytes(touch.offset - len(content)))
    content[touch.offset : touch.offset + len(touch.data)] = touch.data


def _torn(touch: Touch, luck: random.Random) -> Touch:
    """Only the first sectors of a write."""
    sectors = len(touch.data) // SECTOR
    return touch._replace(data=touch.data[: luck.randint(0, sectors) * SECTOR]) if sectors else touch


def _torn_last(touches: list[Touch], luck: random.Random) -> list[Touch]:
    return [*touches[:-1], _torn(touches[-1], luck)]
