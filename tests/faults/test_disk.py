"""A disk that fails under the real SQLite: nothing acknowledged is lost, nothing is claimed that nobody knows.

The full size is ``python3 dev.py faults disk``: every write, sync and read of a run, once, for ever, and with a crash.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from faults import vfs
from faults.helpers import PATHS, PATIENCE, outsider

DISK = Path(__file__).with_name("disk.py")
VICTIM = """
import json, os, sqlite3, sys
from faults import vfs
from treadle import Treadle
from treadle.errors import JobNotFound, OutcomeUnknown

class Disk(vfs.Disk):
    failing = False
    def before(self, touch):
        hit = self.failing and (touch.kind, touch.name) == ("sync", "jobs.db-wal")
        return sqlite3.SQLITE_IOERR_FSYNC if hit else vfs.OK

disk = Disk()
vfs.install(disk)
app = Treadle("sqlite:///" + sys.argv[1])
task = app.remote("quick")
told = {"acked": [task.enqueue(number=1).id], "unknown": [], "refused": 0}
disk.failing = True
try:
    task.enqueue(number=2)
except OutcomeUnknown as error:
    told["unknown"] += error.ids
disk.failing = False
if sys.argv[2] == "goes on":
    told["acked"].append(task.enqueue(number=3).id)
    try:
        told["seen"] = app.get(told["unknown"][0]).id
    except JobNotFound:
        told["seen"] = None
print(json.dumps(told), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module", autouse=True)
def shared_library() -> None:
    """Nothing can be put under a SQLite that is built in: said aloud, and a failure where it must not happen."""
    try:
        vfs.library()
    except vfs.NoLibrary as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"NOT TESTED: {error}")
        pytest.skip(f"NOT TESTED: {error}")


@pytest.fixture
def watched(tmp_path: Path) -> list[Any]:
    """What a process did to its files; the process is one of its own."""
    program = (
        "import json, sys\nfrom faults import vfs\nfrom treadle import Treadle\nseen = []\n"
        "class Disk(vfs.Disk):\n    def after(self, t): seen.append((t.kind, t.name, t.flag))\n"
        "vfs.install(Disk())\napp = Treadle('sqlite:///' + sys.argv[1])\napp.remote('t').enqueue()\nseen.append(None)\n"
        "app.remote('t').enqueue()\nseen.append(None)\napp.close()\nprint(json.dumps(seen))\n"
    )
    seen: list[Any] = json.loads(run(program, tmp_path / "jobs.db").stdout)
    return seen


def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], env={"PYTHONPATH": PATHS}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip


def numbers(path: Path) -> dict[int, int]:
    """Jobs by id, with the number each carries."""
    with outsider(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT job_id, data FROM treadle_payloads ORDER BY job_id").fetchall()
    return {row[0]: json.loads(row[1])["number"] for row in rows}


def test_an_enqueue_is_one_sync_and_the_first_syncs_the_folder(watched: list[Any]) -> None:
    """The shim sees what strace would: one sync of the log for an enqueue, the folder with a new log's first sync."""
    first, second = watched.index(None), len(watched) - 1 - watched[::-1].index(None)
    assert ["sync", "jobs.db-wal", True] in watched[:first]
    one = watched[first + 1 : second]
    assert [touch for touch in one if touch[0] == "sync"] == [["sync", "jobs.db-wal", False]]
    assert {touch[0] for touch in one} == {"write", "sync"}
    assert watched[-1] == ["delete", "jobs.db-wal", False]


def test_an_unknown_outcome_may_be_stored(tmp_path: Path) -> None:
    """The sync of a commit fails and the process dies: the job nobody could vouch for is there after recovery."""
    ended = run(VICTIM, tmp_path / "jobs.db", "dies")
    told = json.loads(ended.stdout)
    assert len(told["unknown"]) == 1
    assert numbers(tmp_path / "jobs.db") == {told["acked"][0]: 1, told["unknown"][0]: 2}


def test_an_unknown_outcome_may_not_be_stored(tmp_path: Path) -> None:
    """The same, but the process goes on and commits again: then the job is not there, and a look says so for good."""
    ended = run(VICTIM, tmp_path / "jobs.db", "goes on")
    told = json.loads(ended.stdout)
    assert len(told["unknown"]) == 1
    assert told["seen"] is None
    assert numbers(tmp_path / "jobs.db") == {told["acked"][0]: 1, told["acked"][1]: 3}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "code", "how", "step", "least"),
    [
        ("sync", "ioerr", "once", 13, 3), ("sync", "ioerr", "forever", 13, 3), ("sync", "ioerr", "crash", 13, 3),
        ("write", "ioerr", "once", 90, 3), ("write", "ioerr", "forever", 90, 3), ("write", "ioerr", "crash", 120, 2),
        ("write", "full", "once", 120, 2), ("write", "full", "forever", 200, 1), ("read", "ioerr", "forever", 80, 2),
    ],
)  # fmt: skip
def test_the_nth_touch_fails(tmp_path: Path, kind: str, code: str, how: str, step: int, least: int) -> None:
    """A worker and a producer on a disk that fails at the N-th touch: no ack lost, nothing twice, no hang."""
    words = ["--kinds", kind, "--codes", code, "--how", how, "--step", step, "--seed", random.randrange(10**6)]
    ended = subprocess.run(
        [sys.executable, DISK, *map(str, words)], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0, told
    found = re.search(r"(\d+) victims up to N = \d+, (\d+) ended with 70", told)
    assert found, told
    assert int(found[1]) > least, told
    if (code, how) == ("ioerr", "forever"):
        assert int(found[2]) >= least, told  # the worker stopped rather than go on for ever
    if code == "full":
        assert int(found[2]) == 0, told


def test_a_library_of_another_name_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where SQLite is built into Python the shim says so instead of watching nothing."""
    assert vfs.library().exists()
    monkeypatch.setattr(vfs, "Path", lambda _: tmp_path / "maps")
    with pytest.raises(vfs.NoLibrary, match="built in"):
        vfs.library()


def test_this_process_is_left_alone(tmp_path: Path) -> None:
    """The shim is installed in children only."""
    assert vfs._installed == []
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
