"""Chaos: kill, stop and block real processes at random, then prove that nothing was lost or done twice.

    python tests/faults/chaos.py --kills 2000 --seed 7 --seconds 900 --nemesis kill,stop,lock,checkpoint
    python tests/faults/chaos.py --scenario durable-enqueue --rounds 1000
    python tests/faults/chaos.py --scenario mixture --seconds 600

The seed decides who is hit and when as far as the operating system lets it; it is printed first. Exit code 1 means
anomalies; the run's folder is kept then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from faults import mixture  # noqa: E402
from faults.chaos_app import ROLES, Setup, connect  # noqa: E402
from faults.checker import CRASHED, HELD, Anomaly, History, check, read_database  # noqa: E402
from faults.ledger import Ledger, read_all  # noqa: E402

NEMESES = ("kill", "stop", "lock", "checkpoint", "clock")
WORKERS, PRODUCERS = 3, 2
DRAIN_PATIENCE = 180.0
# Forked from one clean process that has imported everything and opened nothing: 10 ms instead of 300.
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass
class Member:
    """One child process and what it said so far."""

    role: str
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    stopped_until: float = 0.0

    def is_ready(self) -> bool:
        """True once the child said that it works."""
        while not self.ready and self.pipe.poll():
            try:
                self.pipe.recv_bytes()
            except EOFError:
                break
            self.ready = True
        return self.ready


@dataclass
class Conductor:
    """Keeps the fleet running and hits it."""

    setup: Setup
    luck: random.Random
    fleet: list[Member] = field(default_factory=list)
    kills: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.setup.folder / "ledgers")

    def start(self, role: str) -> Member:
        """Start one more child."""
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=ROLES[role], args=(self.setup, theirs), name=role)
        process.start()
        theirs.close()
        member = Member(role, process, ours)
        self.fleet.append(member)
        return member

    def kill(self, member: Member) -> None:
        """SIGKILL, written down just before."""
        assert member.process.pid is not None
        self.ledger.write("kill", victim=member.process.pid, role=member.role)
        os.kill(member.process.pid, signal.SIGKILL)
        self.bury(member)
        self.kills += 1

    def bury(self, member: Member) -> None:
        """Wait for a child's end and forget it."""
        member.process.join(60)
        if member.process.is_alive():
            self.problems.append(f"{member.role} {member.process.pid} does not end")
        member.pipe.close()
        self.fleet.remove(member)

    def tend(self) -> None:
        """Replace children that ended by themselves, which is a problem in itself; wake stopped ones in time."""
        for member in list(self.fleet):
            if not member.process.is_alive():
                self.problems.append(f"{member.role} {member.process.pid} ended with {member.process.exitcode}")
                self.bury(member)
                self.start(member.role)
            elif member.stopped_until and time.monotonic() >= member.stopped_until:
                self.wake(member)

    def victims(self) -> list[Member]:
        """Children worth killing."""
        return [one for one in self.fleet if one.role in ("worker", "producer") and one.is_ready()]

    def strike(self) -> None:
        """Kill one child, mostly one that works already, and replace it."""
        victims = self.victims()
        if self.luck.random() < 0.05:
            victims = [one for one in self.fleet if one.role in ("worker", "producer")]
        if victims:
            # Workers twice as often: they have more to lose.
            victim = self.luck.choice(victims + [one for one in victims if one.role == "worker"])
            self.kill(victim)
            self.start(victim.role)

    def stop(self) -> None:
        """SIGSTOP one child for 0.1 to 3 s."""
        running = [one for one in self.victims() if not one.stopped_until]
        if running:
            member = self.luck.choice(running)
            assert member.process.pid is not None
            os.kill(member.process.pid, signal.SIGSTOP)
            member.stopped_until = time.monotonic() + self.luck.uniform(0.1, 3)

    def wake(self, member: Member) -> None:
        """SIGCONT."""
        assert member.process.pid is not None
        os.kill(member.process.pid, signal.SIGCONT)
        member.stopped_until = 0.0

    def dismiss(self, *roles: str) -> None:
        """End children in good order, those that touch the database from outside by force."""
        leaving = [one for one in self.fleet if one.role in roles]
        for member in leaving:
            assert member.process.pid is not None
            if member.stopped_until:
                self.wake(member)
            member.process.kill() if member.role in ("lock", "checkpoint") else member.process.terminate()
        for member in leaving:
            self.bury(member)
            if member.role not in ("lock", "checkpoint") and member.process.exitcode != 0:
                self.note_exit(member)

    def note_exit(self, member: Member) -> None:
        """A child that was asked to stop must end with 0, unless it had not even begun to listen."""
        if member.ready:
            self.problems.append(f"{member.role} {member.process.pid} ended with {member.process.exitcode}")


def storm(conductor: Conductor, nemeses: set[str], kills: int, seconds: float) -> None:
    """Run the fleet and hit it until *kills* or *seconds* are reached."""
    for role in ["worker"] * WORKERS + ["producer"] * PRODUCERS + sorted(nemeses & {"lock", "checkpoint"}):
        conductor.start(role)
    end = time.monotonic() + seconds
    next_stop = time.monotonic()
    while conductor.kills < kills and time.monotonic() < end:
        time.sleep(conductor.luck.uniform(0.005, 0.09))
        conductor.tend()
        if "kill" in nemeses:
            conductor.strike()
        if "stop" in nemeses and time.monotonic() >= next_stop:
            next_stop = time.monotonic() + conductor.luck.uniform(0.3, 2)
            conductor.stop()
    conductor.dismiss("lock", "checkpoint")
    conductor.dismiss("producer")
    conductor.dismiss("worker")


def drain(conductor: Conductor) -> None:
    """Let fresh workers finish what is left."""
    for _ in range(2):
        conductor.start("drainer")
    until = time.monotonic() + DRAIN_PATIENCE
    with closing(connect(conductor.setup.database)) as connection:
        while time.monotonic() < until:
            (left,) = connection.execute("SELECT count(*) FROM treadle_jobs WHERE state < 6").fetchone()
            if not left:
                break
            time.sleep(0.05)
        else:
            conductor.problems.append(f"{left} jobs were not drained in {DRAIN_PATIENCE:g} s")
    conductor.dismiss("drainer")


def durable_enqueue(conductor: Conductor, rounds: int) -> None:
    """Kill a producer just after an enqueue returned, again and again."""
    for _ in range(rounds):
        member = conductor.start("durable")
        for _ in range(conductor.luck.randint(1, 4)):
            member.pipe.recv_bytes()
        conductor.kill(member)


def report(conductor: Conductor, jumps: bool) -> list[Anomaly]:
    """Check the history, print the figures, return what is wrong."""
    jobs, attempts = read_database(conductor.setup.database)
    history = History(read_all(conductor.setup.folder / "ledgers"), jobs, attempts, clocks_jump=jumps)
    found = check(history) + [Anomaly("process", text) for text in conductor.problems]
    waits = sorted(
        (row.finished_at - history.killed[int(row.worker[1:])]["wall"]) / 1000
        for row in attempts
        if row.outcome == CRASHED and row.worker.startswith("w") and int(row.worker[1:]) in history.killed
    )
    acked = sum(len(record["ids"]) for record in history.of("ack"))
    held = sum(job.state == HELD for job in jobs)
    print(f"kills {conductor.kills}  acknowledged {acked}  jobs {len(jobs)}  attempts {len(attempts)}  "
          f"rescued {len(waits)}  held at the crash cap {held}  refused {len(history.of('fail'))}")  # fmt: skip
    if waits and not jumps:
        middle, high = waits[len(waits) // 2], waits[min(len(waits) - 1, len(waits) * 99 // 100)]
        print(f"rescue after kill: p50 {middle:.0f} ms  p99 {high:.0f} ms  max {waits[-1]:.0f} ms")
    for anomaly in found[:50]:
        print(f"ANOMALY {anomaly.check}: {anomaly.text}")
    print(f"anomalies {len(found)}")
    return found


def run(folder: Path, seed: int, play: Callable[[Conductor], None], *, jumps: bool = False) -> list[Anomaly]:
    """Play one scenario in *folder*, drain and check."""
    (folder / "ledgers").mkdir()
    conductor = Conductor(Setup(folder, seed, jumps), random.Random(seed))
    PROCESSES.set_forkserver_preload(["__main__", "faults.chaos_app"])
    try:
        play(conductor)
        drain(conductor)
    finally:
        for member in list(conductor.fleet):
            member.process.kill()
            conductor.bury(member)
    return report(conductor, jumps)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", choices=("storm", "durable-enqueue", "mixture"), default="storm")
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--nemesis", default="kill,stop,lock,checkpoint", help=f"of {','.join(NEMESES)}")
    given = parser.parse_args()
    nemeses = set(given.nemesis.split(","))
    if nemeses - set(NEMESES):
        parser.error(f"unknown nemesis {nemeses - set(NEMESES)}; choose of {', '.join(NEMESES)}")
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}  SQLite {sqlite3.sqlite_version}  Python {sys.version.split()[0]}", flush=True)

    def play(conductor: Conductor) -> None:
        if given.scenario == "storm":
            storm(conductor, nemeses, given.kills, given.seconds)
        else:
            durable_enqueue(conductor, given.rounds)

    folder = Path(tempfile.mkdtemp(prefix="treadle-chaos-"))
    began = time.monotonic()
    if given.scenario == "mixture":
        found: Sequence[object] = mixture.run(folder, seed, given.seconds)
    else:
        found = run(folder, seed, play, jumps="clock" in nemeses)
    print(f"{time.monotonic() - began:.1f} s")
    if found:
        print(f"the run is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
