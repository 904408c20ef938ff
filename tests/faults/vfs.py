"""A disk under SQLite that tests can watch and break: no compiler, no privileges, the real library.

The shared library that Python's ``_sqlite3`` has loaded is asked for its default VFS. A copy of it becomes the default;
its xOpen lets the real one open the file and then puts patched methods into it. So every byte still goes the real way,
but each write, sync, truncate, read and delete is shown to a :class:`Disk` first, which may refuse it, and after.

Use it only in a process of its own: what is installed stays.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

OK = sqlite3.SQLITE_OK
OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
MOVE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)  # xRead and xWrite
TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
XREAD, XWRITE, XTRUNCATE, XSYNC = 2, 3, 4, 5
CREATE, SYNCS_FOLDER = 0x4, 0x800 | 0x4000 | 0x80000
"""Flags of xOpen: make the file; a journal or a write-ahead log, whose first sync syncs the folder as well."""
METHODS = 19
"""Pointer-sized fields of sqlite3_io_methods, version 3."""


class Vfs(Structure):
    """sqlite3_vfs, version 3; what is only passed on has no type here."""

    _fields_ = (
        ("iVersion", c_int), ("szOsFile", c_int), ("mxPathname", c_int), ("pNext", c_void_p), ("zName", c_char_p),
        ("pAppData", c_void_p), ("xOpen", c_void_p), ("xDelete", c_void_p), *((f"x{n}", c_void_p) for n in range(14)),
    )  # fmt: skip


class Touch(NamedTuple):
    """One thing SQLite does to a file.

    Attributes:
        kind: "open", "write", "sync", "truncate", "read" or "delete".
        name: the file's name without its folder.
        offset: where it writes, or the new size.
        data: what it writes.
        flag: of an open: whether the file was made by it; of a sync and a delete: whether the folder is synced too.
    """

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""
    flag: bool = False


class Disk:
    """Sees what happens to files; subclasses refuse or remember. Called on the thread that uses SQLite."""

    reads = False
    """Whether reads are shown as well; they are many."""

    def before(self, touch: Touch) -> int:
        """Return SQLITE_OK to let it happen, or the error that SQLite gets instead."""
        return OK

    def after(self, touch: Touch) -> None:
        """It has happened."""


class NoLibrary(Exception):
    """Python's SQLite is linked statically, so nothing can be put under it."""


def library() -> Path:
    """The shared library that this process's ``sqlite3`` uses.

    Raises:
        NoLibrary: there is none.
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        for line in maps.read_text().splitlines():
            found = line.rpartition(" ")[2]
            if os.path.basename(found).startswith("libsqlite3."):
                return Path(found)
    raise NoLibrary("this Python has SQLite built in; use one with a shared libsqlite3 to run the tests of the disk")


@dataclass
class _Shim:
    """Everything that must live as long as SQLite may call it."""

    disk: Disk
    names: dict[int, str] = field(default_factory=dict)
    fresh: set[int] = field(default_factory=set)
    patched: dict[int, Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def install(self) -> None:
        lib = ctypes.CDLL(str(library()))
        lib.sqlite3_vfs_find.restype = c_void_p
        lib.sqlite3_vfs_find.argtypes = (c_char_p,)
        lib.sqlite3_vfs_register.argtypes = (c_void_p, c_int)
        self.real_vfs = lib.sqlite3_vfs_find(None)
        ours = Vfs.from_buffer_copy(Vfs.from_address(self.real_vfs))
        self.real_open, self.real_delete = OPEN(ours.xOpen), DELETE(ours.xDelete)
        ours.zName = b"watched"
        ours.xOpen, ours.xDelete = self._keep(OPEN(self._open)), self._keep(DELETE(self._delete))
        self.kept.append(ours)
        assert lib.sqlite3_vfs_register(ctypes.byref(ours), 1) == OK

    def _keep(self, function: Any) -> int | None:
        self.kept.append(function)
        return ctypes.cast(function, c_void_p).value

    def _open(self, _: int, path: int | None, file: int, flags: int, out: Any) -> int:
        name = ctypes.string_at(path).decode() if path else ""
        made = bool(name) and not os.path.exists(name)  # stat is safe; opening it would drop SQLite's locks
        code: int = self.real_open(self.real_vfs, path, file, flags, out)
        methods = c_void_p.from_address(file)
        if code == OK and methods.value:
            self.names[file] = os.path.basename(name)
            self.fresh.discard(file)
            if flags & SYNCS_FOLDER and flags & CREATE:
                self.fresh.add(file)
            methods.value = self._patch(methods.value)
            self.disk.after(Touch("open", self.names[file], flag=made))
        return code

    def _delete(self, _: int, path: bytes, sync: int) -> int:
        touch = Touch("delete", os.path.basename(path.decode()), flag=bool(sync))
        code = self.disk.before(touch)
        if code == OK:
            code = self.real_delete(self.real_vfs, path, sync)
            self._told(touch, code)
        return code

    def _patch(self, methods: int) -> int:
        if methods not in self.patched:
            copy = (c_void_p * METHODS).from_buffer_copy((c_void_p * METHODS).from_address(methods))
            self._wrap(copy)
            self.patched[methods] = copy
        return ctypes.addressof(self.patched[methods])

    def _wrap(self, copy: Any) -> None:
        read, write = MOVE(copy[XREAD]), MOVE(copy[XWRITE])
        truncate, sync = TRUNCATE(copy[XTRUNCATE]), SYNC(copy[XSYNC])

        def on_read(file: int, data: int, amount: int, offset: int) -> int:
            code = self.disk.before(Touch("read", self.names.get(file, ""), offset))
            return code or int(read(file, data, amount, offset))

        def on_write(file: int, data: int, amount: int, offset: int) -> int:
            touch = Touch("write", self.names.get(file, ""), offset, ctypes.string_at(data, amount))
            return self.disk.before(touch) or self._told(touch, write(file, data, amount, offset))

        def on_truncate(file: int, size: int) -> int:
            touch = Touch("truncate", self.names.get(file, ""), size)
            return self.disk.before(touch) or self._told(touch, truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            touch = Touch("sync", self.names.get(file, ""), flag=file in self.fresh)
            code = self.disk.before(touch) or int(sync(file, flags))
            if code == OK:
                self.fresh.discard(file)
            return self._told(touch, code)

        if self.disk.reads:
            copy[XREAD] = self._keep(MOVE(on_read))
        copy[XWRITE], copy[XSYNC] = self._keep(MOVE(on_write)), self._keep(SYNC(on_sync))
        copy[XTRUNCATE] = self._keep(TRUNCATE(on_truncate))

    def _told(self, touch: Touch, code: int) -> int:
        if code == OK:
            self.disk.after(touch)
        return code


_installed: list[_Shim] = []


def install(disk: Disk) -> None:
    """Put *disk* under every connection opened from now on in this process.

    Raises:
        NoLibrary: it cannot be done with this Python.
    """
    shim = _Shim(disk)
    shim.install()
    _installed.append(shim)
