"""The demonstration: real folders, real worker processes, real kills."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from faces.commands import start, treadle, until
from treadle import JobFilter, Treadle
from treadle.demo.plan import Options, prepare, store_jobs
from treadle.demo.tree import difference, groups, walk, write_copy

ODD = (
    b"plain.txt", b"with space.txt", "snow\u2603man.txt".encode(), b"not-utf8-\xff\xfe.bin", b"line\nend",
    b"\x1b[31mred", b"-dash", b"empty", b"deep/er/file", b".hidden",
)  # fmt: skip


def make_tree(top: Path, plain: int = 0) -> Path:
    """A folder with odd names, links and *plain* further files."""
    for place, name in enumerate(ODD):
        path = os.path.join(os.fsencode(top), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"" if name == b"empty" else name * (place * 1000 + 1))
    (top / "link").symlink_to("plain.txt")
    (top / "dangling").symlink_to("no/such/file")
    (top / "link to folder").symlink_to("deep")
    (top / "many").mkdir()
    (top / "empty folder").mkdir()
    for number in range(plain):
        (top / "many" / f"{number:05}").write_bytes(os.urandom(2000))
    return top


def same(left: Path, right: Path) -> bool:
    """True when both folders hold the same names with the same content."""
    one, other = walk(os.fsencode(left)), walk(os.fsencode(right))
    names = one.files.keys()
    return (
        names == other.files.keys()
        and one.folders == other.folders
        and not any(
            difference(os.path.join(os.fsencode(left), name), os.path.join(os.fsencode(right), name)) for name in names
        )
    )


def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    """Every odd name arrives although a worker is killed midway, and the report's figures come from the database."""
    source = make_tree(tmp_path / "source", plain=600)
    done = treadle("demo", "--source", source, "--dest", "out", "--kill", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same(source, tmp_path / "out" / "copy")
    assert re.search(r"^  lost +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^  finished twice +0$", done.stdout, re.MULTILINE)
    assert "Everything matches." in done.stdout
    killed = re.search(r"(\d+) jobs rescued, the first [\d,]+ ms after the kill", done.stdout)
    with Treadle(f"sqlite:///{tmp_path}/out/jobs.db") as app:
        crashed = sum(app.get(job).crashes for job in all_jobs(app))
    if killed:
        assert int(killed[1]) == crashed > 0
        assert f"{crashed} crashed" in done.stdout
    else:
        assert "killed          nobody" in done.stdout or "nothing to rescue" in done.stdout


def test_an_interrupted_copy_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-C ends it with 130; the second run stores no job again and finishes."""
    source = make_tree(tmp_path / "source", plain=2000)
    words = ("demo", "--source", source, "--dest", tmp_path / "out", "--no-kill", "--workers", "1")
    process = start(*words, cwd=tmp_path)
    wait_for_work(tmp_path / "out" / "jobs.db")
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Run the same command again" in told
    with Treadle(f"sqlite:///{tmp_path}/out/jobs.db") as app:
        before = len(all_jobs(app))
        assert not any(worker.alive for worker in app.workers())
    again = treadle(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Resumed: " in again.stdout
    with Treadle(f"sqlite:///{tmp_path}/out/jobs.db") as app:
        assert len(all_jobs(app)) == before
    assert same(source, tmp_path / "out" / "copy")


def test_workers_do_not_outlive_a_killed_demo(tmp_path: Path) -> None:
    """A kill -9 of the demo leaves no worker behind, and the next run finishes the copy."""
    source = make_tree(tmp_path / "source", plain=2000)
    words = ("demo", "--source", source, "--dest", tmp_path / "out", "--no-kill")
    process = start(*words, cwd=tmp_path)
    wait_for_work(tmp_path / "out" / "jobs.db")
    process.kill()
    process.communicate(timeout=60)
    with Treadle(f"sqlite:///{tmp_path}/out/jobs.db") as app:
        until(lambda: not any(worker.alive for worker in app.workers()), "the end of the workers")
    again = treadle(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert same(source, tmp_path / "out" / "copy")


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    """A file that vanished after the plan and a FIFO are named in the report, and the exit code is 1."""
    source = make_tree(tmp_path / "source")
    os.mkfifo(source / "pipe")
    options = prepare(Options(source=source, dest=tmp_path / "out"))
    with Treadle(f"sqlite:///{options.database}") as app:
        assert not store_jobs(app, options, walk(os.fsencode(source))).resumed
        assert store_jobs(app, options, walk(os.fsencode(source))).resumed
    (source / "plain.txt").unlink()
    done = treadle("demo", "--source", source, "--dest", "out", "--no-kill", cwd=tmp_path)
    assert done.returncode == 1
    assert "plain.txt: No such file or directory" in done.stdout
    assert "pipe: not a regular file" in done.stdout
    assert "Everything matches." not in done.stdout


def test_a_damaged_copy_is_noticed(tmp_path: Path) -> None:
    """A finished copy that was changed or added to afterwards does not match any more."""
    source = make_tree(tmp_path / "source")
    words = ("demo", "--source", source, "--dest", "out", "--no-kill")
    assert treadle(*words, cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "copy" / "plain.txt").write_text("changed")
    (tmp_path / "out" / "copy" / "\u202egpj.exe").write_text("extra")
    done = treadle(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "plain.txt: SHA-256 differs" in done.stdout
    assert "\\u202egpj.exe: only in the copy" in done.stdout
    fresh = treadle(*words, "--fresh", cwd=tmp_path)
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr


def test_nothing_foreign_is_touched(tmp_path: Path) -> None:
    """A folder or a database that is not the demonstration's is refused, --fresh or not."""
    source = make_tree(tmp_path / "source")
    (tmp_path / "mine" / "copy").mkdir(parents=True)
    (tmp_path / "mine" / "copy" / "letter").write_text("precious")
    (tmp_path / "shop").mkdir()
    with Treadle(f"sqlite:///{tmp_path}/shop/jobs.db") as app:
        app.remote("shop.mail").enqueue(to="ada")
    for dest in ("mine", "shop", "source/inside"):
        done = treadle("demo", "--source", source, "--dest", dest, "--fresh", cwd=tmp_path)
        assert done.returncode == 2, dest
    assert (tmp_path / "mine" / "copy" / "letter").read_text() == "precious"
    with Treadle(f"sqlite:///{tmp_path}/shop/jobs.db") as app:
        assert len(all_jobs(app)) == 1


def test_groups_are_small() -> None:
    """A job copies a few files or about a megabyte, and every file is in one group."""
    files = {str(number).encode(): number * 100_000 for number in range(20)}
    found = list(groups(files))
    assert [name for group in found for name in group] == list(files)
    assert max(len(group) for group in found) <= 4


def test_a_copy_keeps_mode_and_times(tmp_path: Path) -> None:
    """The copied file has the source's permission bits and modification time."""
    source, copy = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"x")
    source.chmod(0o751)
    os.utime(source, ns=(1, 2_000_000_000))
    write_copy(os.fsencode(source), os.fsencode(copy), source.stat())
    assert (copy.stat().st_mode & 0o777, copy.stat().st_mtime_ns) == (0o751, 2_000_000_000)


@pytest.mark.parametrize("words", [("--workers", "0"), ("--source", "no/such/folder")])
def test_wrong_usage_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Options that cannot be meant end with exit code 2 and leave no folder."""
    assert treadle("demo", *words, "--dest", "out", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "out").exists()


def all_jobs(app: Treadle) -> list[int]:
    """The ids of every job."""
    found, before = [], None
    while True:
        page = app.find(JobFilter(), before=before, size=500)
        found += [job.id for job in page.jobs]
        if page.next is None:
            return found
        before = page.next


def wait_for_work(database: Path) -> None:
    """Wait until a worker has finished at least one job of *database*."""
    until(lambda: database.exists() and database.stat().st_size > 0, "the database")
    with Treadle(f"sqlite:///{database}") as app:
        until(lambda: any("succeeded" in states for states in app.counts().values()), "the first job's end")
