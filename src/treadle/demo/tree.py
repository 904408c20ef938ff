"""Folder trees as bytes: walking, copying one file, and comparing two trees by SHA-256."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

CHUNK: Final = 1 << 20
GROUP_FILES: Final = 4
GROUP_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Tree:
    """What a walk found, names relative to the top, sorted.

    Attributes:
        files: everything that is not a folder, with its size.
        folders: every folder.
        problems: folders that cannot be read, with the reason.
    """

    files: dict[bytes, int] = field(default_factory=dict)
    folders: list[bytes] = field(default_factory=list)
    problems: dict[bytes, str] = field(default_factory=dict)


def walk(top: bytes, skip: Collection[bytes] = ()) -> Tree:
    """Find everything below *top*; symlinks are not followed, and folders named in *skip* are left out."""
    tree = Tree()
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            tree.problems[folder] = error.strerror or type(error).__name__
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                tree.files[name] = _size(entry)
            elif entry.name not in skip:
                tree.folders.append(name)
                waiting.append(name)
    tree.files = dict(sorted(tree.files.items()))
    return tree


def groups(files: dict[bytes, int]) -> Iterator[list[bytes]]:
    """Cut *files* into the small groups that one job copies: a few files, or about a megabyte.

    Example:
        >>> list(groups({b"a": 1, b"b": 1 << 20, b"c": 1}))
        [[b'a', b'b'], [b'c']]
    """
    group: list[bytes] = []
    size = 0
    for name, length in files.items():
        group.append(name)
        size += length
        if len(group) == GROUP_FILES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def digest(path: bytes) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_copy(source: bytes, partial: bytes, found: os.stat_result) -> str:
    """Copy *source* to *partial*, synced, with its mode and times; return the SHA-256 of what was read."""
    hashed = hashlib.sha256()
    with open(source, "rb") as file, open(partial, "wb") as copy:
        while block := file.read(CHUNK):
            hashed.update(block)
            copy.write(block)
        copy.flush()
        os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode) | stat.S_IRUSR)
        os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
        os.fsync(copy.fileno())
    return hashed.hexdigest()


def differences(
    source: bytes, copy: bytes, names: Iterable[bytes], tick: Callable[[], None], threads: int = 2
) -> dict[bytes, str]:
    """Read every file of *names* on both sides and say which differ, and how."""

    def compare(name: bytes) -> tuple[bytes, str | None]:
        return name, difference(os.path.join(source, name), os.path.join(copy, name))

    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, what in pool.map(compare, names):
            tick()
            if what is not None:
                found[name] = what
    return found


def difference(source: bytes, copy: bytes) -> str | None:
    """Say in words how *copy* differs from *source*, None when it does not."""
    try:
        kind = stat.S_IFMT(os.lstat(source).st_mode)
    except OSError as error:
        return f"the source cannot be read: {error.strerror}"
    try:
        if stat.S_IFMT(os.lstat(copy).st_mode) != kind:
            return "the copy is of another kind"
        if kind == stat.S_IFLNK:
            return None if os.readlink(source) == os.readlink(copy) else "the symlink points elsewhere"
        if kind != stat.S_IFREG:
            return "not a regular file, folder or symlink"
        return None if digest(source) == digest(copy) else "SHA-256 differs"
    except FileNotFoundError as error:
        return "the source vanished" if error.filename == source else "there is no copy"
    except OSError as error:
        return f"the {'source' if error.filename == source else 'copy'} cannot be read: {error.strerror}"


def _size(entry: os.DirEntry[bytes]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
