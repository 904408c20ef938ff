"""A worker's roll: which of its leases have really begun, readable by others after it died.

A worker claims a little ahead of its slots. When it is killed, only attempts that had begun can be to blame, so
only those are charged with the crash; the rest goes back as if never claimed. The roll is a small file shared
through memory: one number a slot, written without a system call, and the kernel keeps it when the process dies.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from treadle.host.files import create_beside, remove_quietly

_NUMBER = struct.Struct("<q")
_SIZE = _NUMBER.size


class Roll:
    """The writing side; used by one thread.

    Args:
        path: where.
        places: how many leases can be written down at once; with more, readers are told that any may have begun.

    Example:
        >>> roll = Roll(Path("/tmp/roll-1"), 4)  # doctest: +SKIP
        >>> roll.enter(17)  # doctest: +SKIP
        >>> roll.leave(17)  # doctest: +SKIP
    """

    def __init__(self, path: Path, places: int) -> None:
        remove_quietly(path)
        create_beside(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.truncate(descriptor, (places + 1) * _SIZE)
            self._map = mmap.mmap(descriptor, (places + 1) * _SIZE)
        finally:
            os.close(descriptor)
        self._path = path
        self._free = list(range(places * _SIZE, 0, -_SIZE))
        self._places: dict[int, int] = {}
        self._beyond: set[int] = set()

    def enter(self, lease: int) -> None:
        """Write that *lease* begins now."""
        if self._free:
            place = self._places[lease] = self._free.pop()
            _NUMBER.pack_into(self._map, place, lease)
        else:
            self._beyond.add(lease)
            self._count_beyond()

    def leave(self, lease: int) -> None:
        """Write that the outcome of *lease* is stored; a lease that never began is ignored."""
        place = self._places.pop(lease, None)
        if place is not None:
            _NUMBER.pack_into(self._map, place, 0)
            self._free.append(place)
        elif lease in self._beyond:
            self._beyond.remove(lease)
            self._count_beyond()

    def close(self) -> None:
        """Unmap and remove the file; for a stop in good order."""
        self._map.close()
        remove_quietly(self._path)

    def _count_beyond(self) -> None:
        _NUMBER.pack_into(self._map, 0, len(self._beyond))


def read_roll(path: Path) -> tuple[int, ...] | None:
    """The leases that had begun and whose outcome was not stored; None when nobody can tell."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data or len(data) % _SIZE:
        return None
    beyond, *leases = (number for (number,) in _NUMBER.iter_unpack(data))
    return None if beyond else tuple(lease for lease in leases if lease)
