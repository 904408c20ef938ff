"""Files and file systems."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from treadle.host.files import (
    create_beside,
    create_private,
    file_system_problem,
    free_bytes,
    identity_of,
    mount_of,
    mount_problem,
    remove_quietly,
    resolve,
    side_folder,
)

TABLE = "\n".join(
    [
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
        "30 22 0:30 / /net rw - nfs4 server:/export rw,vers=4.2",
        "31 22 0:31 / /net/disk rw - xfs /dev/vdb rw",
        r"32 22 0:32 / /my\040share\134x rw master:1 propagate_from:2 - cifs //server/share rw",
        "33 22 254:0 /data/jobs.db /srv/jobs.db rw - ext4 /dev/vda rw",
        "34 22 0:34 / /over rw - ext4 /dev/vdc rw",
        "35 22 0:35 / /over rw - virtiofs tag rw",
        "nonsense",
        "36 22 no:device / /odd rw - ext4 /dev/vdd rw",
        "",
    ]
)


def table(kind: str) -> str:
    """A mount table with one mount of *kind* below the root."""
    return f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / /data rw - {kind} source rw\n"


@pytest.mark.parametrize(
    "kind",
    "nfs nfs4 cifs smb3 smbfs 9p virtiofs fuse fuse.sshfs fuse.grpcfuse ceph glusterfs lustre davfs vboxsf "
    "afpfs".split(),
)
def test_network_and_vm_file_systems_are_refused(kind: str) -> None:
    """The sentence names the path, the kind and what to do."""
    problem = mount_problem("/data/jobs.db", table(kind))
    assert problem is not None
    assert "/data/jobs.db" in problem
    assert kind in problem
    assert "local disk" in problem


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse.ntfs-3g"]
)
def test_local_file_systems_are_fine(kind: str) -> None:
    """Local disks, memory and known local fuse kinds are accepted."""
    assert mount_problem("/data/jobs.db", table(kind)) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/jobs.db", "ext4"),
        ("/net/jobs.db", "nfs4"),
        ("/network/jobs.db", "ext4"),
        ("/net/disk/jobs.db", "xfs"),
        ("/my share\\x/jobs.db", "cifs"),
        ("/over/jobs.db", "virtiofs"),
        ("/odd/jobs.db", "ext4"),
    ],
)
def test_the_longest_and_latest_mount_counts(path: str, kind: str) -> None:
    """Whole folder names are compared, escapes undone, broken lines skipped."""
    mount = mount_of(path, TABLE)
    assert mount is not None
    assert mount.kind == kind


def test_a_database_file_that_is_a_mount_point_is_refused() -> None:
    """A single file mounted into a container has its WAL elsewhere; its neighbours are fine."""
    problem = mount_problem("/srv/jobs.db", TABLE)
    assert problem is not None
    assert "mount the folder" in problem
    assert mount_problem("/srv/other.db", TABLE) is None
    assert mount_problem("/srv/jobs.db", "") is None


def test_this_machines_temporary_folder_is_accepted(tmp_path: Path) -> None:
    """The real mount table can be read."""
    assert file_system_problem(tmp_path / "jobs.db") is None


def test_two_names_of_one_file_have_one_identity(tmp_path: Path) -> None:
    """Symlinks and hard links name the same file; a missing file has no identity."""
    file = tmp_path / "a"
    file.touch()
    os.link(file, tmp_path / "b")
    (tmp_path / "c").symlink_to(file)
    assert identity_of(file) == identity_of(tmp_path / "b") == identity_of(tmp_path / "c") is not None
    assert identity_of(tmp_path / "missing") is None
    assert identity_of(file / "below") is None


def test_resolve_follows_links_and_creates_private_folders(tmp_path: Path) -> None:
    """Missing parents appear with mode 0700, existing ones keep theirs."""
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "deep" / "er")
    found = resolve(tmp_path / "link" / "jobs.db")
    assert found == tmp_path.resolve() / "open" / "deep" / "er" / "jobs.db"
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (found.parent, found.parent.parent)]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755


def test_resolve_makes_relative_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from the working folder."""
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("jobs.db")) == tmp_path.resolve() / "jobs.db"


@pytest.mark.parametrize(
    ("database", "folder", "file"),
    [(0o600, 0o700, 0o600), (0o660, 0o770, 0o660), (0o644, 0o755, 0o644), (0o640, 0o750, 0o640)],
)
def test_the_side_folder_follows_the_databases_mode(
    tmp_path: Path, database: int, folder: int, file: int
) -> None:
    """Whoever may use the database may use the folder and its files, and nobody else."""
    path = tmp_path / "jobs.db"
    path.touch()
    path.chmod(database)
    old = os.umask(0o077)
    try:
        side = side_folder(path)
        create_beside(side / "locks")
    finally:
        os.umask(old)
    assert side == tmp_path / "jobs.db-treadle"
    assert stat.S_IMODE(side.stat().st_mode) == folder
    assert stat.S_IMODE((side / "locks").stat().st_mode) == file
    assert side_folder(path) == side


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_as_root_the_side_folder_goes_to_the_databases_owner(tmp_path: Path) -> None:
    """A producer run by root does not lock out the workers' user."""
    path = tmp_path / "jobs.db"
    path.touch()
    os.chown(path, 12345, 12346)
    side = side_folder(path)
    create_beside(side / "locks")
    owners = [(s.st_uid, s.st_gid) for s in (side.stat(), (side / "locks").stat())]
    assert owners == [(12345, 12346)] * 2


def test_a_side_folder_without_a_database_is_private(tmp_path: Path) -> None:
    """Before the database exists only its owner may enter."""
    assert stat.S_IMODE(side_folder(tmp_path / "jobs.db").stat().st_mode) == 0o700


def test_create_private_ignores_the_umask_and_spares_what_is_there(tmp_path: Path) -> None:
    """The file is 0600 under any umask; content of an existing one stays."""
    for umask in (0, 0o777):
        old = os.umask(umask)
        try:
            create_private(tmp_path / str(umask))
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / str(umask)).stat().st_mode) == 0o600
    (tmp_path / "0").write_text("kept")
    create_private(tmp_path / "0")
    assert (tmp_path / "0").read_text() == "kept"


def test_remove_quietly_minds_nothing(tmp_path: Path) -> None:
    """Missing files, missing folders and folders are no error."""
    (tmp_path / "file").touch()
    for name in ("file", "file", "no/file", "."):
        remove_quietly(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_free_bytes_works_for_a_path_yet_to_come(tmp_path: Path) -> None:
    """The nearest existing folder answers."""
    assert free_bytes(tmp_path / "not" / "yet") > 0
