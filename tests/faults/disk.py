"""The N-th write, sync or read fails, once and for ever, N = 1 … until a whole run goes through.

    python tests/faults/disk.py --kinds write,sync,read --codes ioerr,full --how once,forever --step 1 --seed 7

One process runs a worker and enqueues in every way while SQLite's N-th touch of its files is refused by a VFS under the
real library. After each the file is opened and checked; at the end healthy workers drain it and the history is judged.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from faults import vfs  # noqa: E402
from faults.chaos_app import Setup  # noqa: E402
from faults.checker import Anomaly  # noqa: E402
from faults.disk_app import CODES, suffer  # noqa: E402
from faults.points import Campaign  # noqa: E402
from faults.points_app import LOST, Plan  # noqa: E402

MANY = ("write", "sync", "read")
CREATION = 60
"""So many of a run's first touches make the file: for these each victim gets a new one."""


class Loop(NamedTuple):
    """What came of one kind of failure at every place."""

    kind: str
    code: str
    how: str
    victims: int
    lost: int
    last: int
    unknown: int
    stored: int
    found: list[Anomaly]
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.kind:8} {self.code:5} {self.how:7} {self.victims:4} victims up to N = {self.last}, "
            f"{self.lost} ended with 70, {self.unknown} outcomes unknown of which {self.stored} were stored, "
            f"{len(self.found)} anomalies, {self.seconds:.0f} s"
        )


def loop(kind: str, code: str, how: str, step: int, seed: int) -> Loop:
    """Let the first fail, then one *step* later, and so on."""
    began = time.monotonic()
    found: list[Anomaly] = []
    victims = lost = unknown = stored = idle = 0
    step = step if kind in MANY else 1
    at = 1 + seed % step
    campaign = _campaign(seed)
    while idle < 2:  # how long a run is varies
        fault = "disk crash" if how == "crash" else f"disk {code}"
        plan = Plan(fault, ((kind, at),), times=None if how == "forever" else 1, rounds=2)
        sprung = campaign.send(plan, suffer)
        campaign.problems += _damage(campaign.setup.database)
        victims += 1
        lost += campaign.ends[-1] == LOST
        idle = 0 if sprung else idle + 1
        if not sprung or at <= CREATION or campaign.victims == 30:
            found += _end(campaign)
            unknown += campaign.unknown
            stored += campaign.unknown_stored
            campaign = _campaign(seed + at)
        at += step
    shutil.rmtree(campaign.setup.folder)
    return Loop(kind, code, how, victims, lost, at, unknown, stored, found, time.monotonic() - began)


def _campaign(seed: int) -> Campaign:
    return Campaign(Setup(Path(tempfile.mkdtemp(prefix="treadle-disk-")), seed), random.Random(seed))


def _end(campaign: Campaign) -> list[Anomaly]:
    campaign.send(Plan(rounds=1))  # on a healthy disk everything works again, even on a file that was cut while made
    found = campaign.finish()
    if found:
        print(f"a run is kept in {campaign.setup.folder}")
    else:
        shutil.rmtree(campaign.setup.folder)
    return found


def _damage(path: Path) -> list[str]:
    """What is wrong with the file that a victim left; opening it recovers what its log has."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return [f"{path} is corrupt: {text}" for text in found if text != "ok"]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", default="write,sync,read,truncate,delete", help=f"of {','.join(CODES)}")
    parser.add_argument("--codes", default="ioerr,full", help="of ioerr,full; full is for writes")
    parser.add_argument("--how", default="once,forever,crash", help="of once,forever,crash")
    parser.add_argument("--step", type=int, default=1, help="try only every so-manieth N")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    try:
        print(f"seed {seed}  SQLite {sqlite3.sqlite_version} in {vfs.library()}", flush=True)
    except vfs.NoLibrary as error:
        sys.exit(f"disk: {error}")
    broken = 0
    for kind in given.kinds.split(","):
        for code in given.codes.split(","):
            for how in given.how.split(","):
                if code == "full" and (kind != "write" or how == "crash"):
                    continue
                done = loop(kind, code, how, given.step, seed)
                print(done, flush=True)
                for anomaly in done.found[:20]:
                    print(f"ANOMALY {anomaly.check}: {anomaly.text}")
                broken += len(done.found)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
