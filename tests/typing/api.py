"""What a type checker must see of the API; never run. Each ``type: ignore`` is an error that must be found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, assert_type

from treadle import Job, JobContext, JobRecord, JobState, NewJob, Page, Retry, Task, Treadle, Worker, current_job
from treadle.tasks import AsyncTask, Bound, Remote

app = Treadle("memory://")


@app.task
def plain(number: int, text: str = "") -> str:
    return text * number


@app.task
async def coroutine(number: int) -> bytes:
    return bytes(number)


@app.task(queue="mail", retry=Retry(3, backoff=(1, 2.5, timedelta(minutes=1))), timeout=60, aliases=["old"])
async def configured(number: int, *, flag: bool = False) -> list[int]:
    return [number] if flag else []


@app.task(retry=3, priority=5)
def counted() -> None: ...


# Tasks carry their function's parameters, and what it returns once awaited.
configured_as: Task[..., list[int]] = configured
assert_type(counted, Task[[], None])
assert_type(plain.enqueue(1), Job[str])
assert_type(plain.enqueue(1, text="a").result(), str)
assert_type(coroutine.enqueue(1).result(timeout=5), bytes)
assert_type(configured.enqueue(1, flag=True).result(timeout=timedelta(seconds=1)), list[int])
assert_type(counted.enqueue().record(), JobRecord)
assert_type(plain.job(1, "a"), NewJob)
assert_type(plain(1, "a"), str)
assert_type(plain.using(delay=5, tags=["a"]).enqueue(1), Job[str])
assert_type(app.remote("far"), Remote)
assert_type(app.remote("far").enqueue(x=1), Job[Any])


def takes_any_str(job: Job[str | bytes]) -> None: ...


takes_any_str(plain.enqueue(1))  # handles are covariant

# A wrong argument is an error in the editor.
plain.enqueue("1")  # type: ignore[arg-type]
plain.enqueue()  # type: ignore[call-arg]
plain.enqueue(1, txt="a")  # type: ignore[call-arg]
plain.job(None)  # type: ignore[arg-type]
plain("1")  # type: ignore[arg-type]
plain.using(priority=1).enqueue("1")  # type: ignore[arg-type]
plain.using(prio=1)  # type: ignore[call-arg]
plain.using(delay="soon")  # type: ignore[arg-type]
configured.enqueue(1, True)  # type: ignore[call-arg]
takes_any_str(counted.enqueue())  # type: ignore[arg-type]


async def main() -> None:
    assert_type(await plain.aenqueue(1), Job[str])
    assert_type(await (await coroutine.aenqueue(1)).aresult(), bytes)
    coroutine_as: AsyncTask[..., bytes] = coroutine
    assert_type(await coroutine_as(1), bytes)
    assert_type(await coroutine(1), bytes)
    assert_type(await configured(1, flag=True), list[int])
    await plain(1)  # type: ignore[misc]
    await coroutine("1")  # type: ignore[arg-type]
    await coroutine.aenqueue("1")  # type: ignore[arg-type]

    async def source() -> AsyncIterator[NewJob]:
        yield plain.job(1)

    await app.aenqueue_many(source(), chunk=10)
    await app.aenqueue_many([plain.job(1), coroutine.job(2)])
    assert_type(await app.await_jobs([plain.enqueue(1), 5]), dict[int, JobState])
    async with app.worker(concurrency=2) as worker:
        assert_type(worker, Worker)
        await worker.idle()


def reading() -> None:
    app.enqueue_many(plain.job(number) for number in range(3))
    app.enqueue_many([1])  # type: ignore[list-item]
    assert_type(app.get(1), JobRecord)
    assert_type(app.find(), Page)
    assert_type(app.wait([1]), dict[int, JobState])
    assert_type(plain.using(retry=3).enqueue(1), Job[str])
    with app.worker() as worker:
        assert_type(worker, Worker)


def context() -> None:
    job = current_job()
    assert_type(job, JobContext)
    assert_type(job.attempt, int)
    job.on_success(plain.job(1))
    job.on_success(plain)  # type: ignore[arg-type]


def bound(made: Bound[[int], str]) -> str:
    return made.enqueue(1).result()
