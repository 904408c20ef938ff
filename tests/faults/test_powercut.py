"""Power cuts: acknowledged is there, the rest is whole or absent, the file is never corrupt; and the model of a disk.

The full size is ``python3 dev.py powercut``.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from faults import vfs
from faults.images import LostSync, Replay, cuts
from faults.ledger import Record
from faults.left import look
from faults.stage import build
from faults.vfs import Touch
from treadle import JobState

POWERCUT = Path(__file__).with_name("powercut.py")
WAL = "jobs.db-wal"


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared_library() -> None:
    """Nothing can be traced of a SQLite that is built in: said aloud, and a failure where it must not happen."""
    try:
        vfs.library()
    except vfs.NoLibrary as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"NOT TESTED: {error}")
        pytest.skip(f"NOT TESTED: {error}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("levels", "lines"), [("full", 3), ("normal,mixed", 2)])
@pytest.mark.usefixtures("shared_library")
def test_power_cuts(tmp_path: Path, levels: str, lines: int) -> None:
    """Some hundred images: no promise of the level is broken, and the disk that lies about its log does harm."""
    words = ["--images", "150", "--durability", levels, "--drain-every", "40", "--seed", random.randrange(10**6)]
    ended = subprocess.run(
        [sys.executable, POWERCUT, *map(str, words)], env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0, told
    assert len(re.findall(r" 150 images .* corrupt 0 .* [23] drained, 0 anomalies", told)) == lines, told
    control = re.search(r"control: .* corrupt (\d+)  acks lost (\d+)", told)
    assert control, told
    assert int(control[1]) + int(control[2]) >= 20, told


# The model of a disk -------------------------------------------------------------------------------------------------


def write(data: bytes, offset: int = 0, name: str = WAL) -> Touch:
    return Touch("write", name, offset, data)


def sync(name: str = WAL, *, folder: bool = False) -> Touch:
    return Touch("sync", name, flag=folder)


def images(events: Iterable[Touch | LostSync], tries: int = 300, deaf_to: str | None = None) -> set[Any]:
    """Every image that some luck makes of a trace: the log's content, None where it is missing."""
    replay = Replay(deaf_to)
    for event in events:
        replay.step(event)
    return {replay.image(random.Random(seed)).get(WAL) for seed in range(tries)}


START = [Touch("open", WAL, flag=True), sync(folder=True)]


def test_what_was_synced_is_there() -> None:
    """A synced write is in every image."""
    assert images([*START, write(b"abc"), sync()]) == {b"abc"}


def test_what_was_not_synced_may_be_there() -> None:
    """A write since the last sync is in some images, and writes since may be lost in any choice."""
    assert images([*START, write(b"a"), sync(), write(b"b", 1)]) == {b"a", b"ab"}
    assert images([*START, write(b"a", 0), write(b"b", 1)]) == {b"", b"a", b"ab", b"\0b"}


def test_a_write_is_torn_at_a_sector() -> None:
    """Of a page only the first sectors may have reached the disk."""
    lengths = {len(image) for image in images([*START, write(b"x" * 2048)])}
    assert lengths >= {0, 512, 2048}
    assert {length % 512 for length in lengths} == {0}


def test_a_truncation_may_be_lost() -> None:
    """It is a change like a write."""
    assert images([*START, write(b"abcd"), sync(), Touch("truncate", WAL, 2)]) == {b"abcd", b"ab"}


def test_a_name_may_be_lost_until_its_folder_is_synced() -> None:
    """A new file is not there in some images; a removed one is back in some, as it was."""
    new = [Touch("open", WAL, flag=True), write(b"a"), sync()]
    assert images(new) == {None, b"a"}
    assert images([*new, sync(folder=True)]) == {b"a"}
    assert images([*new, sync(folder=True), Touch("delete", WAL)]) == {None, b"a"}
    assert images([*new, sync(folder=True), Touch("delete", WAL, flag=True)]) == {None}


def test_a_removed_name_is_used_again() -> None:
    """The old file and the new one are two: never a mixture."""
    again = [*START, write(b"old"), sync(), Touch("delete", WAL), Touch("open", WAL, flag=True), write(b"n"), sync()]
    assert images(again) == {b"old", None, b"n"}


def test_a_disk_that_lies_loses_everything() -> None:
    """The negative control hears no sync of the log."""
    lost = images([Touch("open", WAL, flag=True), sync("jobs.db", folder=True), write(b"abc"), sync()], deaf_to="-wal")
    assert lost == {b"", b"abc"}


def test_a_failed_sync_gives_up_what_was_written() -> None:
    """The next sync does not bring it back; written again it does."""
    failed = [*START, write(b"a"), LostSync(WAL)]
    assert images([*failed, write(b"b", 1), sync()]) == {b"\0b"}
    assert images([*failed, write(b"c", 0), sync()]) == {b"c"}


def test_cuts_come_in_order() -> None:
    """An image at a place knows what happened before it, and nothing after."""
    trace = [*START, write(b"a"), sync(), {"kind": "ack"}, write(b"b", 1), sync()]
    found = dict(cuts(trace, [len(trace), 4, 5, 0], None, random.Random(1)))
    assert {place: files.get(WAL) for place, files in found.items()} == {0: None, 4: b"a", 5: b"a", len(trace): b"ab"}


# The look at an image -------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, list[Record]]:
    """A database with two jobs of one token that ran, one of another that waits, and the ledger that tells so."""
    stage = build(tmp_path)

    @stage.app.task(name="plain")
    def plain(token: str, place: int) -> None:
        """A job with a token."""

    ran = list(stage.app.enqueue_many(plain.job(token="ran", place=place) for place in range(2)))
    with stage.app.worker():
        assert set(stage.app.wait(ran, timeout=60).values()) == {JobState.SUCCEEDED}
    waits = plain.enqueue(token="waits", place=0).id
    lease = stage.app.get(ran[0]).attempts[0].lease
    stage.app.close()
    told = [
        {"kind": "intent", "token": "ran", "count": 2}, {"kind": "ack", "token": "ran", "ids": ran},
        {"kind": "start", "job": ran[0], "lease": lease, "attempt": 1}, {"kind": "result", "job": ran[0]},
        {"kind": "intent", "token": "waits", "count": 1}, {"kind": "ack", "token": "waits", "ids": [waits]},
    ]  # fmt: skip
    return tmp_path / "jobs.db", [{"level": "full", "at": place, **note} for place, note in enumerate(told)]


def kinds(path: Path, notes: list[Record]) -> set[str]:
    return set(look(path, notes).wrong)


def test_a_whole_image_is_right(image: tuple[Path, list[Record]]) -> None:
    """Everything told is there."""
    path, notes = image
    left = look(path, notes)
    assert (left.wrong, left.normal_lost, left.usable) == ({}, 0, True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({1: {"ids": [1, 2, 99]}}, {"acks lost", "order"}),
        ({0: {"token": "x"}, 1: {"token": "x"}}, {"acks lost", "order", "other"}),
        ({0: {"count": 3}}, {"half"}),
        ({5: {"kind": "rollback"}}, {"half"}),
        ({2: {"attempt": 2}}, {"acks lost", "order"}),
        ({2: {"lease": 10**6}}, {"acks lost", "order"}),
        ({2: {"kind": "follow", "token": "nobody's"}}, {"other"}),
        ({3: {"job": 99}}, {"acks lost", "order"}),
        ({0: {"level": "normal"}, 1: {"ids": []}}, {"order"}),
    ],
)
def test_a_wrong_image_is_seen(image: tuple[Path, list[Record]], changes: dict[int, Any], expected: set[str]) -> None:
    """What was told and is not there, or is there and was not told, is named."""
    path, notes = image
    assert kinds(path, [{**note, **changes.get(place, {})} for place, note in enumerate(notes)]) == expected


def test_what_normal_lost_is_counted(image: tuple[Path, list[Record]]) -> None:
    """The newest commits at durability normal may be gone; that is no harm, and it is said."""
    path, notes = image
    more: list[Record] = [
        {"kind": "intent", "token": "gone", "count": 1}, {"kind": "ack", "token": "gone", "ids": [77]}
    ]  # fmt: skip
    left = look(path, [*notes, *({"level": "normal", "at": 9, **note} for note in more)])
    assert (left.wrong, left.normal_lost) == ({}, 1)


def test_a_corrupt_image_is_seen(image: tuple[Path, list[Record]]) -> None:
    """A page that is lost is found."""
    path, notes = image
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 9 * 4096] = bytes(6 * 4096)
    path.write_bytes(content)
    assert kinds(path, notes) == {"corrupt"}


def test_an_image_without_tables_has_lost_everything(image: tuple[Path, list[Record]], tmp_path: Path) -> None:
    """Before the tables were made nothing can have been acknowledged."""
    _, notes = image
    assert kinds(tmp_path / "none.db", []) == set()
    assert kinds(tmp_path / "none.db", notes) == {"acks lost"}
