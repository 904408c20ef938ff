"""What a type checker must see of the testing kit; never run. Each ``type: ignore`` is an error that must be found."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_type

from treadle import HeldClock, JobState, NewJob, Treadle
from treadle.testing import (
    CrashRun,
    EnqueuedJob,
    RanJob,
    adrain,
    all_enqueued,
    aperform,
    arun_pending,
    assert_enqueued,
    assert_idempotent,
    assert_survives_crashes,
    drain,
    inline,
    perform,
    private_store,
    refute_enqueued,
    run_pending,
)

clock = HeldClock()
app = Treadle("memory://", clock=clock)


@app.task
def send(to: str, subject: str = "hi") -> str:
    return to + subject


@app.task
async def work(number: int) -> bytes:
    return bytes(number)


clock.advance(timedelta(days=1))
clock.advance(days=1, minutes=2.5)
clock.advance(5)  # type: ignore[arg-type]
clock.move_to(0)  # type: ignore[arg-type]
assert_type(clock.moment, datetime)

assert_type(run_pending(app), list[RanJob])
assert_type(run_pending(app, queue="mail", task=send, raise_errors=True)[0].state, JobState | None)
run_pending(app, task=work)
run_pending(app, task="send")
run_pending(app, task=5)  # type: ignore[arg-type]
run_pending(app, "mail")  # type: ignore[call-arg]
assert_type(drain(app, until=timedelta(hours=1)), list[RanJob])
assert_type(drain(app)[0].error, BaseException | None)

assert_type(assert_enqueued(app, send, arguments={"to": "ada"}, delay=60, count=2), EnqueuedJob)
assert_type(all_enqueued(app, work, run_at=datetime.now())[0].arguments, Mapping[str, object])
refute_enqueued(app, "send", tags=["a"], meta={"x": 1}, state=JobState.HELD)
refute_enqueued(app, send, queu="mail")  # type: ignore[call-arg]
refute_enqueued(app, send, delay="soon")  # type: ignore[arg-type]

assert_type(perform(app, send.job("ada"), attempt=2), RanJob)
perform(app, send.job(5))  # type: ignore[arg-type]
perform(app, send)  # type: ignore[arg-type]

with inline(app) as inside:
    assert_type(inside, Treadle)
with private_store(app, clock=clock) as private:
    assert_type(private, Treadle)


def check(run: CrashRun) -> None:
    assert_type(run.folder, Path)


def make(folder: Path) -> NewJob:
    return send.job(str(folder))


assert_type(assert_survives_crashes(app, make, check, also=[check]), list[CrashRun])
assert_type(assert_idempotent(app, send.job("ada"), lambda run: run.job.attempt == 2), CrashRun)
assert_idempotent(app, send, check)  # type: ignore[arg-type]


async def main() -> None:
    assert_type(await arun_pending(app), list[RanJob])
    assert_type(await adrain(app, until=5), list[RanJob])
    assert_type(await aperform(app, work.job(1)), RanJob)
