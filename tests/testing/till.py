"""An app that crash tests kill; imported again in other processes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

from treadle import JobContext, Treadle, current_job

TESTER = "TREADLE_TEST_PID"
"""Variable with the process of the test itself."""
LEFT = "61.25"
app = Treadle("sqlite:///till.db")


@app.task(name="receipt")
def receipt(name: str) -> None: ...


@app.task(name="charge")
def charge(folder: str, name: str) -> None:
    with (Path(folder) / "charges").open("a") as file:
        file.write(f"{name}\n")
    receipt.enqueue(name)


@app.task(name="careful")
async def careful(folder: str, name: str, job: JobContext) -> int:
    charges = Path(folder) / f"{job.id}"
    for _ in range(5):
        await asyncio.sleep(0)
        write(charges, name)
    await job.acheckpoint(1)
    job.on_success(receipt.job(name))
    return job.attempt


def write(file: Path, name: str) -> None:
    """Write a whole file, at once."""
    other = file.with_suffix(".new")
    other.write_text(name)
    other.replace(file)


@app.task(name="own")
def own(folder: str) -> None:
    connection = sqlite3.connect(app.store.path, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS paid (job INTEGER PRIMARY KEY)")
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("INSERT OR IGNORE INTO paid VALUES (?)", (current_job().id,)).rowcount:
        receipt.using(connection=connection).enqueue("own")
    connection.execute("COMMIT")
    connection.close()


@app.task(name="parked", on_crash="hold")
def parked(folder: str) -> None:
    with (Path(folder) / "charges").open("a") as file:
        file.write("once\n")


@app.task(name="fragile", retry=0)
def fragile(folder: str) -> None:
    if (Path(folder) / "begun").exists():
        raise ValueError("was here before")
    (Path(folder) / "begun").touch()


@app.task(name="ends_badly")
def ends_badly() -> None:
    print("on the way out", flush=True)
    os._exit(3)


@app.task(name="stuck")
def stuck() -> None:
    asyncio.run(asyncio.sleep(60))


@app.task(name="leaves_something")
def leaves_something(folder: str) -> None:
    if os.environ[TESTER] != str(os.getpid()):
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", LEFT)
    (Path(folder) / "begun").touch()
