"""Files and file systems: identity, resolved paths, private files, and where SQLite may not live."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIDE_SUFFIX = "-treadle"
"""What the side folder's name adds to the database's."""

_REMOTE = frozenset(
    "cifs smb2 smb3 smbfs 9p virtiofs ceph glusterfs lustre davfs davfs2 vboxsf afpfs afs"
    " beegfs gpfs gfs2 ocfs2 orangefs pvfs2 coda ncpfs prl_fs vmhgfs hgfs drvfs".split()
)
_LOCAL_FUSE = frozenset(
    "fuseblk fuse.fuseblk fuse.ntfs-3g fuse.exfat fuse.exfat-fuse fuse.fuse-overlayfs".split()
)
_OCTAL = re.compile(r"\\([0-7]{3})")


class FileIdentity(NamedTuple):
    """Device and inode: two names with one identity are one file."""

    dev: int
    ino: int


class Mount(NamedTuple):
    """One line of mountinfo.

    Attributes:
        point: where it is mounted.
        kind: the file system type, such as ``ext4``.
        device: major and minor number of the file system.
    """

    point: str
    kind: str
    device: tuple[int, int]


def identity_of(path: Path) -> FileIdentity | None:
    """Say which file *path* names now, following symlinks; None when it names nothing.

    The file is not opened, so this is safe for a database in use.

    Example:
        >>> identity_of(Path("/no/such/file")) is None
        True
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileIdentity(status.st_dev, status.st_ino)


def resolve(path: Path) -> Path:
    """Make *path* absolute, follow its symlinks, and create missing parent folders with mode 0700.

    Raises:
        OSError: a folder cannot be created, or symlinks form a loop.
    """
    resolved = Path(path).resolve()
    missing = [folder for folder in resolved.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    return resolved


def mounts(mountinfo: str) -> Iterator[Mount]:
    """Read the text of ``/proc/self/mountinfo``; lines it cannot read are left out.

    Example:
        >>> [m.kind for m in mounts("36 35 98:0 / /mnt rw shared:1 - ext4 /dev/sda rw")]
        ['ext4']
    """
    for line in mountinfo.split("\n"):
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5 or not tail[0]:
            continue
        major, _, minor = fields[2].partition(":")
        if major.isdecimal() and minor.isdecimal():
            yield Mount(_plain(fields[4]), _plain(tail[0]), (int(major), int(minor)))


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """Find the mount that holds the absolute, resolved *path*: longest prefix, the latest of equals."""
    best: Mount | None = None
    for mount in mounts(mountinfo):
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mount_problem(path: str, mountinfo: str) -> str | None:
    """Say why a database at *path* is not safe, given the text of mountinfo; None when it is.

    Args:
        path: absolute path with symlinks resolved.
        mountinfo: the text of ``/proc/self/mountinfo``.

    Example:
        >>> mount_problem("/mnt/jobs.db", "36 35 98:0 / /mnt rw - ext4 /dev/sda rw") is None
        True
    """
    mount = mount_of(path, mountinfo)
    if mount is None:
        return None
    if _is_unsafe(mount.kind):
        return (
            f"{path} is on a {mount.kind} file system (mounted at {mount.point}), where SQLite's WAL files "
            "become corrupt; put the database on a local disk, in a container on a named volume."
        )
    if mount.point == path:
        return (
            f"{path} is a mount point of its own, so its -wal and -shm files would be other files outside "
            "and inside; mount the folder that holds the database, not the file."
        )
    return None


def file_system_problem(path: Path) -> str | None:
    """Say in a sentence, with the remedy, why a database at *path* would not be safe; None when it is.

    Network and virtual machine file systems and a file that is itself a mount point are refused. Outside
    Linux nothing is known and None is returned.
    """
    mountinfo = read_mountinfo()
    return None if mountinfo is None else mount_problem(str(Path(path).resolve()), mountinfo)


def read_mountinfo() -> str | None:
    """The text of this process's mount table; None where the system has none."""
    if sys.platform != "linux":
        return None
    try:
        return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return None


def _is_unsafe(kind: str) -> bool:
    if kind in _LOCAL_FUSE:
        return False
    return kind in _REMOTE or kind == "fuse" or kind.startswith(("nfs", "fuse."))


def _plain(field: str) -> str:
    """Undo mountinfo's octal escapes (space, tab, newline, backslash)."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user can still write on the file system of *path*, which need not exist yet."""
    existing = Path(path).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if sys.platform == "win32":
        return shutil.disk_usage(existing).free
    figures = os.statvfs(existing)
    return figures.f_bavail * figures.f_frsize


def side_folder(database: Path) -> Path:
    """Create the folder beside *database* for locks and bells, and return it.

    Whoever may open the database may enter the folder: it takes the database's mode (with entry wherever
    there is read access) and, when this process is root, its owner. With no database yet it is 0700.

    Raises:
        OSError: the folder cannot be created.

    Example:
        >>> side_folder(Path("/tmp/example/jobs.db")).name  # doctest: +SKIP
        'jobs.db-treadle'
    """
    folder = Path(str(database) + SIDE_SUFFIX)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    try:
        wanted, found = os.stat(database), os.stat(folder)
    except FileNotFoundError:
        return folder
    access = wanted.st_mode & 0o666
    mode = 0o700 | access | (access & 0o444) >> 2
    _give(folder, wanted, found, mode)
    return folder


def run_folder(name: str) -> Path:
    """Create the folder *name* for what processes of this user on this machine tell each other, and return it.

    It lies in the user's runtime folder where the system has one, else under the temporary folder, mode 0700.

    Raises:
        OSError: it cannot be created, or its parent is another user's.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else 0
    parent = Path(runtime, "treadle") if runtime else Path(tempfile.gettempdir(), f"treadle-{user}")
    for folder in (parent, parent / name):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        # Under a folder that everybody may write to, another user may have been first with this name.
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != user):
            raise PermissionError(f"{folder} is not a folder of this user")
    return parent / name


def create_private(path: Path) -> None:
    """Create an empty file with mode 0600, whatever the umask; an existing file is left alone.

    Raises:
        OSError: the file cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            _set_mode(descriptor, 0o600)
        finally:
            os.close(descriptor)


def create_beside(path: Path) -> None:
    """Create an empty file as :func:`create_private` does; in a side folder it takes the folder's access."""
    if not os.path.lexists(path):
        create_private(path)
        share_like_folder(path)


def share_like_folder(path: Path) -> None:
    """Give a new file in a side folder the folder's owner and mode; elsewhere do nothing.

    The folder's access follows the database's, so a producer under another user reaches locks and bells.
    """
    folder = Path(path).parent
    if folder.name.endswith(SIDE_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            wanted, found = os.stat(folder), os.lstat(path)
            _give(path, wanted, found, wanted.st_mode & 0o666)


def remove_quietly(path: Path) -> None:
    """Remove a file; a missing file or folder, or a refusal, is fine."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _set_mode(target: int | Path, mode: int) -> None:
    if sys.platform != "win32":
        os.chmod(target, mode)


def _give(path: Path, wanted: os.stat_result, found: os.stat_result, mode: int) -> None:
    """Set owner (as root) and mode, where they differ and we may."""
    if sys.platform == "win32":
        return
    # Only the owner may; another user of a shared database finds the folder as its owner made it.
    with contextlib.suppress(PermissionError):
        if os.geteuid() == 0 and (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
            os.chown(path, wanted.st_uid, wanted.st_gid, follow_symlinks=False)
        if stat.S_IMODE(found.st_mode) != mode:
            os.chmod(path, mode)
