"""Signal x phase: every signal a worker may get, in every phase of its life, and all promises are checked after each.

    python tests/faults/signals.py --signals TERM,KILL --phases sync,settling --seed 7

A cell is one ``treadle worker`` that is brought into a phase and hit. It must end as the documentation says; a fresh
worker then runs what is left, and the history checker must find nothing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from faults.helpers import Process, eventually  # noqa: E402
from faults.shop import Shop  # noqa: E402
from treadle import JobState  # noqa: E402

STALLED = {"claiming": "claim.before_commit", "settling": "apply.before_commit"}
RUNNING = ("sync", "async", "process")
PHASES = ("idle", "claiming", *RUNNING, "settling", "draining")
SIGNALS = {
    "TERM": ("TERM",), "TERM2": ("TERM", "TERM"), "TERM3": ("TERM", "TERM", "TERM"), "INT": ("INT",),
    "INT_TERM": ("INT", "TERM"), "KILL": ("KILL",), "HUP": ("HUP",), "QUIT": ("QUIT",), "STOP": ("STOP", "CONT"),
}  # fmt: skip
ASKING = ("TERM", "INT")
"""The first of them drains, the second cancels, the third ends the process."""
ENDING = ("KILL", "HUP", "QUIT")
DRAINS, TAKEN = "drains: it finishes what runs", "running attempts are cancelled now"


class Cell(NamedTuple):
    """One signal, or a few in a row, in one phase."""

    hit: str
    phase: str

    def __str__(self) -> str:
        return f"{self.hit:8} while {self.phase}"


@dataclass
class Play:
    """One cell being played.

    Attributes:
        asked: how often the worker was asked to stop.
        ends: the exit codes that are allowed.
    """

    cell: Cell
    shop: Shop
    worker: Process
    asked: int = 0
    ends: tuple[int, ...] = (0,)

    def reach(self) -> None:
        """Bring the worker into the phase; its job is stored already."""
        shop, phase = self.shop, self.cell.phase
        if phase in STALLED:
            eventually((shop.folder / "stalled").exists, f"it stands still while {phase}")
        elif phase == "idle":
            eventually(shop.app.workers, "it is registered")
        else:
            eventually(lambda: any(one.state is JobState.RUNNING for one in shop.app.find().jobs), "its job runs")
            shop.begun()
        if phase == "draining":
            self.send("TERM")

    def send(self, name: str) -> None:
        """Send one signal, and wait until it has come to something where a second one could get lost in it."""
        self.asked += name in ASKING
        third = name in ASKING and self.asked == 3
        if name in ENDING or third:
            self.shop.gone(self.worker)
            number = signal.Signals[f"SIG{name}"]
            # Before a third one it may have drained already.
            self.ends = (0, 128 + number) if third else (-number,)
        self.worker.send(signal.Signals[f"SIG{name}"])
        if name in ASKING and self.asked < 3:
            text = DRAINS if self.asked == 1 else TAKEN
            eventually(lambda: self.worker.popen.poll() is not None or text in self.shop.log.read_text(), text)

    def play(self) -> None:
        """Everything between the worker's start and its end."""
        self.reach()
        for name in SIGNALS[self.cell.hit]:
            self.send(name)
        # Who is dead does not go on; whoever was asked twice ends although nobody lets it go on, unless it is stalled.
        if not self.ends[-1] and (self.asked < 2 or self.cell.phase in STALLED):
            self.shop.go()
        if not self.asked and self.ends == (0,):
            self.send("TERM")

    def judge(self) -> list[str]:
        """What is wrong."""
        code, fresh = self.worker.finish(), self.shop.drain()
        jobs = self.shop.app.find().jobs
        left = [f"{job.task} is {job.state}" for job in jobs if job.state is not JobState.SUCCEEDED]
        wrong = [] if code in self.ends else [f"it ended with {code}, not {self.ends}"]
        wrong += [f"the fresh worker ended with {fresh}"] if fresh else []
        return wrong + left + self.shop.judge().splitlines()[:-1]


def run(cell: Cell) -> list[str]:
    """Play one cell; what is wrong with it. Its folder is kept then."""
    folder = Path(tempfile.mkdtemp(prefix="treadle-signal-"))
    shop = Shop(folder)
    if cell.phase != "idle":
        tasks = {phase: f"hold_{phase}" for phase in RUNNING} | {"draining": "hold_async"}
        shop.enqueue(tasks.get(cell.phase, "mail"))
    with closing(shop.worker("--concurrency", "2", "--verbose", stall=STALLED.get(cell.phase, ""))) as worker:
        play = Play(cell, shop, worker)
        try:
            play.play()
            found = play.judge()
        except AssertionError as error:
            found = [f"{error}", *shop.log.read_text().splitlines()[-20:]]
    if found:
        return [*found, f"it is kept in {folder}"]
    shutil.rmtree(folder)
    return []


def chosen(hits: str, phases: str, most: int, luck: random.Random) -> list[Cell]:
    """The cells that are asked for; with *most* some of them, every phase and every signal in turn."""
    cells = [Cell(*pair) for pair in product(hits.split(","), phases.split(","))]
    luck.shuffle(cells)
    if not most:
        return cells
    taken: list[Cell] = []

    def rarity(cell: Cell) -> int:
        return sum((one.hit == cell.hit) + (one.phase == cell.phase) for one in taken)

    while cells and len(taken) < most:
        cell = min(cells, key=rarity)
        cells.remove(cell)
        taken.append(cell)
    return taken


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", default=",".join(SIGNALS), help=f"of {','.join(SIGNALS)}")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"of {','.join(PHASES)}")
    parser.add_argument("--most", type=int, default=0, help="play only so many cells")
    parser.add_argument("--rounds", type=int, default=1, help="play each cell so often")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    cells = chosen(given.signals, given.phases, given.most, random.Random(seed)) * given.rounds
    print(f"seed {seed}, {len(cells)} cells", flush=True)
    began, broken = time.monotonic(), 0
    with ThreadPoolExecutor(2) as pool:
        for cell, found in zip(cells, pool.map(run, cells), strict=True):
            print(f"{cell}: {'ANOMALY' if found else 'well'}", *found, sep="\n    ", flush=True)
            broken += bool(found)
    print(f"{len(cells)} cells, {broken} with anomalies, {time.monotonic() - began:.1f} s")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
