"""Power cuts: trace a real run, lose what was not synced in every way a disk may, and look what is left.

    python tests/faults/powercut.py --images 6000 --seed 7 --durability full,normal,mixed

A trace has every write, sync, truncation and removal of SQLite's files, and what producers and handlers were told, in
one order. For a moment chosen at random the files are put together as a disk may have them after the cut, and checked;
some are then drained by a worker, and the history checker judges. A disk whose syncs of the log do nothing is the
negative control: if it does no harm, the check cannot see any.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from faults import vfs  # noqa: E402
from faults.chaos import PROCESSES  # noqa: E402
from faults.chaos_app import Setup  # noqa: E402
from faults.checker import History, check, read_database  # noqa: E402
from faults.images import Event, LostSync, cuts  # noqa: E402
from faults.ledger import Record, read_all  # noqa: E402
from faults.left import Left, look  # noqa: E402
from faults.powercut_app import LEVELS, Run, drain_image, read_trace, trace_run  # noqa: E402

IMAGES_A_RUN = 500
MEMORY = Path("/dev/shm")
LOG = "-wal"
KINDS = ("corrupt", "acks lost", "order", "half", "other")


@dataclass
class Tally:
    """What became of the images of one level."""

    name: str
    images: int = 0
    runs: int = 0
    drained: int = 0
    lost_at_most: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def harm(self) -> int:
        """Images that break what the level promises, and anomalies after draining."""
        return sum(self.counts.values())

    def note(self, left: Left, where: str) -> None:
        """Count what is wrong with one image."""
        self.images += 1
        self.lost_at_most = max(self.lost_at_most, left.normal_lost)
        for kind, texts in left.wrong.items():
            self.counts[kind] += 1
            self.examples += [f"{kind}: {where}: {text}" for text in texts[:2]]

    def __str__(self) -> str:
        figures = "  ".join(f"{kind} {self.counts[kind]}" for kind in KINDS)
        normal = f"  NORMAL acks lost at most {self.lost_at_most}" if "full" not in self.name else ""
        return (
            f"{self.name:26} {self.images:6} images of {self.runs} runs  {figures}{normal}  "
            f"{self.drained} drained, {self.counts['drained']} anomalies  {self.seconds:.0f} s"
        )


class Job(NamedTuple):
    """One level to try.

    Attributes:
        name: in the report.
        run: what is traced.
        deaf_to: the ending of files whose syncs do nothing.
    """

    name: str
    run: Run
    deaf_to: str | None = None


def play(job: Job, images: int, seed: int, drain_every: int) -> Tally:
    """Make *images* of as many runs as that takes, and judge each."""
    tally, began = Tally(job.name), time.monotonic()
    parent = MEMORY if MEMORY.is_dir() else None
    while tally.images < images:
        luck = random.Random(seed + tally.runs)
        with tempfile.TemporaryDirectory(prefix="treadle-cut-", dir=parent) as folder:
            trace = traced(Path(folder), job.run, seed + tally.runs)
            tally.runs += 1
            number = min(IMAGES_A_RUN, images - tally.images)
            places = [luck.randrange(len(trace) + 1) for _ in range(number)]
            for place, files in cuts(trace, places, job.deaf_to, luck):
                _judge(tally, job, Path(folder) / "image", trace, place, files, drain_every)
    tally.seconds = time.monotonic() - began
    return tally


def traced(folder: Path, run: Run, seed: int) -> list[Event | LostSync]:
    """The trace of one run in a process of its own."""
    (folder / "run").mkdir()
    tracing = PROCESSES.Process(target=trace_run, args=(Setup(folder / "run", seed), run, folder / "trace"))
    tracing.start()
    tracing.join(120)
    if tracing.exitcode != 0:
        tracing.kill()
        raise AssertionError(f"the traced run of {run} with seed {seed} ended with {tracing.exitcode}")
    return read_trace(folder / "trace")


def _judge(
    tally: Tally, job: Job, folder: Path, trace: list[Any], place: int, files: dict[str, bytes], drain_every: int
) -> None:
    notes = [event for event in trace[:place] if isinstance(event, dict)]
    lay_out(folder, files)
    left = look(folder / "jobs.db", notes)
    tally.note(left, f"run {tally.runs}, after event {place} of {len(trace)}")
    if drain_every and tally.images % drain_every == 0 and not left.wrong and left.usable:
        tally.drained += 1
        for text in drained(folder, notes, full=job.run.level == "full", next_lease=left.next_lease):
            tally.counts["drained"] += 1
            tally.examples.append(f"drained: run {tally.runs}, after event {place}: {text}")


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """Put the files of an image into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def drained(folder: Path, notes: list[Record], *, full: bool, next_lease: int) -> list[str]:
    """Let a worker drain the image; everything that is wrong with the history then."""
    (folder / "ledgers").mkdir()
    draining = PROCESSES.Process(target=drain_image, args=(Setup(folder, 0),))
    draining.start()
    draining.join(60)
    if draining.exitcode != 0:
        draining.kill()
        return [f"the image was not drained: exit code {draining.exitcode}"]
    jobs, attempts = read_database(folder / "jobs.db")
    ledger = [*_told(notes, full=full, next_lease=next_lease), *read_all(folder / "ledgers")]
    return [f"{one.check}: {one.text}" for one in check(History(ledger, jobs, attempts))]


def _told(notes: list[Record], *, full: bool, next_lease: int) -> Iterator[Record]:
    """What still counts of what was told before the cut, and the cut itself, which is like a kill.

    Where commits may be lost nothing acknowledged counts, nor do attempts whose claim was lost with their lease.
    """
    for note in notes:
        lost = note["kind"] in ("ack", "checkpoint") or note.get("lease", 0) >= next_lease
        if full or not lost:
            yield note
    if notes:
        last = notes[-1]
        yield {"kind": "kill", "victim": last["pid"], "pid": os.getpid(), "at": last["at"] + 1, "wall": last["wall"]}


RESTARTED = Job("full, the same, restarted", Run("full", failing=3, alone=True, restarts=True))
"""Recovery after failed syncs finds what only memory has; a cut during the checkpoint that comes first does harm."""


def jobs_of(levels: list[str]) -> list[Job]:
    """What to try: each level; a disk that fails two syncs; and the control, which must do harm."""
    made = [Job(level, Run(level)) for level in levels]
    if "full" in levels:
        made.append(Job("full, two syncs failed", Run("full", failing=2)))
        made.append(Job("full, the same, alone", Run("full", failing=2, alone=True)))
    return [*made, Job("control: log not synced", Run("full"), LOG)]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=6000, help="for each level")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--durability", default="full,normal,mixed", help=f"of {','.join(LEVELS)}")
    parser.add_argument("--drain-every", type=int, default=50, help="a worker drains every so-manieth image; 0: none")
    parser.add_argument("--restarted", action="store_true", help="also a line, not judged, of restarts on a bad disk")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    try:
        print(f"seed {seed}  SQLite {sqlite3.sqlite_version} in {vfs.library()}", flush=True)
    except vfs.NoLibrary as error:
        sys.exit(f"powercut: {error}")
    PROCESSES.set_forkserver_preload(["__main__", "faults.powercut_app"])
    failed = False
    if given.restarted:
        print(play(RESTARTED, given.images, seed, 0), flush=True)
    for job in jobs_of(given.durability.split(",")):
        control = job.deaf_to is not None
        images = max(100, given.images // 10) if control else given.images
        tally = play(job, images, seed, 0 if control else given.drain_every)
        print(tally, flush=True)
        if control:
            failed |= tally.harm == 0
            continue
        failed |= tally.harm > 0
        print(*tally.examples[:10], sep="\n", end="\n" if tally.examples else "")
    print("FAILED" if failed else "held; the control did harm, so it would have been seen")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
