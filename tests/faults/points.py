"""Every fail point x {exception, exit, kill, stall, SQLITE_BUSY, FULL, IOERR} x {first, third, for ever}.

    python tests/faults/points.py --faults kill,ioerr --at 1,3,forever --points 'claim.*' --seed 7

Victims are processes that run a worker and enqueue meanwhile, with a trap at each point; the next victim takes over
what the last one left. After each sweep healthy workers drain the file, and the history checker must find nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from faults.chaos import PROCESSES, Conductor, drain  # noqa: E402
from faults.chaos_app import Setup  # noqa: E402
from faults.checker import Anomaly, History, check, read_database  # noqa: E402
from faults.ledger import Ledger, read_all  # noqa: E402
from faults.points_app import BROKEN, FAULTS, LOST, Plan, live  # noqa: E402
from treadle.host.failpoints import EXIT_CODE  # noqa: E402

PATIENCE = 60.0
"""Seconds after which a victim that has not ended hangs."""
STORED = ("after_commit", "before_told", "after_told")
BOUNDARIES = ("before_begin", "after_begin", "before_commit", *STORED)
ENDS = {
    "": {0}, "exception": {0, BROKEN}, "exit": {EXIT_CODE}, "kill": {-signal.SIGKILL}, "stall": {0, -signal.SIGKILL},
    "busy": {0}, "full": {0}, "ioerr": {LOST}, "disk ioerr": {0, LOST}, "disk full": {0},
    "disk crash": {0, LOST, -signal.SIGKILL},
}  # fmt: skip
"""How a victim may end once a trap of that fault has sprung."""


class Sweep(NamedTuple):
    """What came of one fault at every point."""

    fault: str
    at: str
    sprung: list[str]
    missed: list[str]
    victims: int
    found: list[Anomaly]
    seconds: float

    def __str__(self) -> str:
        missed = f", {len(self.missed)} not reached ({', '.join(self.missed[:3])})" if self.missed else ""
        return (
            f"{self.fault:9} {self.at:8} {len(self.sprung):3} points sprung{missed}, {self.victims} victims, "
            f"{len(self.found)} anomalies, {self.seconds:.0f} s"
        )


@dataclass
class Campaign:
    """Sends victims to one file, one after another."""

    setup: Setup
    luck: random.Random
    victims: int = 0
    stalls: int = 0
    problems: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    ends: list[int | None] = field(default_factory=list)
    unknown: int = 0
    unknown_stored: int = 0

    def __post_init__(self) -> None:
        (self.setup.folder / "ledgers").mkdir()
        self.ledger = Ledger(self.setup.folder / "ledgers")
        PROCESSES.set_forkserver_preload(["__main__", "faults.disk_app", "faults.points_app", "faults.chaos_app"])

    def send(self, plan: Plan, target: Callable[[Setup, Connection, Plan], None] = live) -> list[str]:
        """Send one victim and wait for its end; the points that sprang."""
        ours, theirs = PROCESSES.Pipe()
        victim = PROCESSES.Process(target=target, args=(self.setup, theirs, plan), name=f"victim of {plan.fault}")
        victim.start()
        theirs.close()
        self.victims += 1
        try:
            sprung = self._listen(victim, ours, plan)
        finally:
            victim.join(PATIENCE)
            ours.close()
        self.ends.append(victim.exitcode)
        self._judge_end(victim.exitcode, plan, sprung)
        return sprung

    def _listen(self, victim: BaseProcess, pipe: Connection, plan: Plan) -> list[str]:
        sprung: list[str] = []
        until = time.monotonic() + PATIENCE
        try:
            while pipe.poll(max(0.0, until - time.monotonic())):
                kind, said = pipe.recv()
                if kind == "reached":
                    self.reached += said
                    return sprung
                sprung.append(said)
                if plan.fault == "stall" and len(sprung) == 1:
                    self._end_stall(victim, pipe)
        except (EOFError, ConnectionResetError):
            return sprung
        self.problems.append(f"a victim of {plan.fault} hangs at or after {sprung[-1:]}")
        self._kill(victim)
        return sprung

    def _end_stall(self, victim: BaseProcess, pipe: Connection) -> None:
        """Let go every other one who stalls; kill the others where they stand."""
        self.stalls += 1
        time.sleep(0.02)  # whoever was told too early has time to write it down
        if self.stalls % 2:
            self._kill(victim)
        else:
            pipe.send_bytes(b"go on")

    def _kill(self, victim: BaseProcess) -> None:
        assert victim.pid is not None
        self.ledger.write("kill", victim=victim.pid, role="victim")
        os.kill(victim.pid, signal.SIGKILL)

    def _judge_end(self, code: int | None, plan: Plan, sprung: list[str]) -> None:
        allowed = ENDS[plan.fault] if sprung else {0}
        if plan.fault == "ioerr" and all(is_harmless(point) for point in sprung):
            allowed = {0}
        if code not in allowed:
            self.problems.append(f"a victim of {plan.fault} at {sprung} ended with {code}, not {sorted(allowed)}")

    def sweep(self, fault: str, points: dict[str, int]) -> list[str]:
        """Send victims until each of *points* has sprung at its time, or is not reached any more; what is left."""
        left = dict(points)
        idle = 0
        while left and idle < 3:
            sprung = self.send(Plan(fault, tuple(left.items())))
            left = {point: at for point, at in left.items() if point not in sprung}
            idle = 0 if sprung else idle + 1
        return list(left)

    def finish(self) -> list[Anomaly]:
        """Drain what is left with healthy workers, and check the history."""
        conductor = Conductor(self.setup, self.luck)
        try:
            drain(conductor)
        finally:
            for member in list(conductor.fleet):
                member.process.kill()
                conductor.bury(member)
        jobs, attempts = read_database(self.setup.database)
        history = History(read_all(self.setup.folder / "ledgers"), jobs, attempts)
        unknown = {record["token"] for record in history.of("unknown")}
        self.unknown, self.unknown_stored = len(unknown), len(unknown & history.by_token.keys())
        found = check(history)
        return found + [Anomaly("process", text) for text in self.problems + conductor.problems]


def is_harmless(point: str) -> bool:
    """True where an error of the disk denies nothing: after the commit, and in a caller's own transaction."""
    return point.endswith((*STORED, "_own"))


def dry_run(seed: int) -> dict[str, int]:
    """How often each point is reached by a victim without traps."""
    with tempfile.TemporaryDirectory(prefix="treadle-points-") as folder:
        campaign = Campaign(Setup(Path(folder), seed), random.Random(seed))
        campaign.send(Plan())
        found = campaign.finish()
        assert not found, found
    names = set(campaign.reached) - {point for point in campaign.reached if point.startswith("migrate.")}
    return {point: campaign.reached.count(point) for point in sorted(names)}


def run(fault: str, at: str, points: dict[str, int], seed: int) -> Sweep:
    """One fault at every point, in a folder of its own, which is kept when something is wrong.

    Args:
        fault: which.
        at: the how-manieth time, or "forever". A point that a run reaches less often springs at its last time.
        points: names, and how often a run reaches each.
        seed: for what victims do.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"treadle-{fault}-"))
    campaign = Campaign(Setup(folder, seed), random.Random(seed))
    campaign.send(Plan(rounds=1))
    if at == "forever":
        sprung, missed = set[str](), []
        for boundary in BOUNDARIES:
            sprung.update(campaign.send(Plan(fault, ((f"*.{boundary}", 1),), times=None)))
    else:
        missed = campaign.sweep(fault, {point: min(int(at), count) for point, count in points.items()})
        sprung = set(points) - set(missed)
    found = campaign.finish()
    if found:
        print(f"the run is kept in {folder}")
    else:
        shutil.rmtree(folder)
    return Sweep(fault, at, sorted(sprung), missed, campaign.victims, found, time.monotonic() - began)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"of {','.join(FAULTS)}")
    parser.add_argument("--at", default="1,3,forever", help="times at which a point springs, or forever")
    parser.add_argument("--points", default="*", help="shell patterns, a,b; --list shows the names")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th of them")
    parser.add_argument("--list", action="store_true", help="only show the points and how often one run reaches them")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    reached = dry_run(seed)
    if given.list:
        print("\n".join(f"{count:6} {point}" for point, count in reached.items()))
        return 0
    patterns = given.points.split(",")
    chosen = [point for point in reached if any(fnmatchcase(point, pattern) for pattern in patterns)]
    points = {point: reached[point] for point in chosen[seed % given.every :: given.every]}
    print(f"seed {seed}, {len(points)} of {len(reached)} points", flush=True)
    broken = 0
    for fault in given.faults.split(","):
        for at in given.at.split(","):
            if at == "forever" and fault in ("exit", "kill", "stall"):
                continue  # once is for ever
            sweep = run(fault, at, points, seed)
            print(sweep, flush=True)
            for anomaly in sweep.found[:20]:
                print(f"ANOMALY {anomaly.check}: {anomaly.text}")
            broken += len(sweep.found)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
