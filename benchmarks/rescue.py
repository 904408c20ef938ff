"""Rescue: from SIGKILL of a worker to the next attempt of what it ran, and whether anybody alive was robbed."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.app import ask, make
from benchmarks.child import Child
from benchmarks.measure import Bench, Figure, Section, Target, median, percentile

CRASHED = "SELECT count(*) FROM treadle_attempts WHERE outcome = 8"
BLOCKED_FOR = 2.0
PATIENCE = 30.0


def run(bench: Bench) -> Section:
    kills = bench.size(100, 5)
    rounds: list[list[float]] = []
    false: list[int] = []
    bench.interleave({"rescue": lambda: once(bench, kills, rounds, false)})
    p50, p99 = (tuple(percentile(values, percent) for values in rounds) for percent in (50, 99))
    return Section(
        name="rescue",
        title="Rescue after kill -9 on one host",
        settings=(
            f"{kills} kills a round: one worker runs a job that does not end, another has nothing to do; from SIGKILL "
            "to the first line of the second attempt. The killed worker is replaced afterwards only. Beside them a "
            f"third worker blocks its event loop {BLOCKED_FOR:g} s at a time: a rescue of anything but a killed "
            "attempt counts as false."
        ),
        figures=(
            Figure(name="p50", values=p50, unit="s"),
            Figure(name="p99", values=p99, unit="s"),
            Figure(name="max", values=tuple(max(values) for values in rounds), unit="s"),
            Figure(name="false rescues", values=tuple(map(float, false)), unit=""),
        ),
        targets=(
            Target(name="p50", value=median(p50), target=0.5, unit="s", least=False),
            Target(name="p99", value=median(p99), target=2, unit="s", least=False),
            Target(name="false rescues", value=sum(false), target=0, unit="", least=False),
        ),
        notes=("A dead worker is looked for every 250 ms, so 0.125 s is the mean to expect; there is no bare floor.",),
    )


def once(bench: Bench, kills: int, rounds: list[list[float]], false: list[int]) -> float:
    path = bench.database()
    log = Path(f"{path}-log")
    log.touch()
    kit = make(path)
    with kit.app:
        kit.app.enqueue_many([kit.block.job(BLOCKED_FOR) for _ in range(1000)])
        bystander = Child("benchmarks.workers:serve", path=path, queue="bystander")
        workers = [Child("benchmarks.workers:serve", path=path) for _ in range(2)]
        for child in (bystander, *workers):
            child.ready()
        taken = []
        for _ in range(kills):
            job = kit.linger.enqueue(str(log)).id
            taken.append(kill_and_wait(log, job, workers, path))
        crashed = ask(path, CRASHED)  # before the others are killed: their jobs would count too
        for child in (bystander, *workers):
            child.kill()
    rounds.append(taken)
    false.append(crashed - kills)
    return 0.0


def kill_and_wait(log: Path, job: int, workers: list[Child], path: str) -> float:
    """Kill the worker that runs *job*, wait for the next attempt, then replace the worker."""
    pid = int(see(log, job, 1)["pid"])
    victim = next(child for child in workers if child.pid == pid)
    killed = time.monotonic_ns()
    victim.kill()
    again = see(log, job, 2)
    workers.remove(victim)
    workers.append(Child("benchmarks.workers:serve", path=path).ready())
    return (int(again["at"]) - killed) / 1e9


def see(log: Path, job: int, attempt: int) -> dict[str, int]:
    """Wait until the log tells of *attempt* of *job*."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for line in reversed(log.read_text("ascii").splitlines()):
            found: dict[str, int] = json.loads(line)
            if found["job"] == job and found["attempt"] == attempt:
                return found
        time.sleep(0.001)
    raise SystemExit(f"Attempt {attempt} of job {job} did not begin within {PATIENCE:g} s.")
