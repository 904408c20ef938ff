from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from treadle import NewJob, Treadle
from treadle.errors import ConfigurationError, InvalidPayload
from worker.kit import every_job, states


def note(text: str, times: int = 1) -> str:
    return text * times


def other(number: int) -> int:
    return number


def test_enqueue_many_stores_a_mix_in_order(app: Treadle) -> None:
    """Jobs of any tasks and options in one call; ids come back in order."""
    first, second = app.task(note), app.task(other)
    jobs = [first.job("a"), second.using(queue="slow").job(1), first.job("b"), second.job(2)]
    ids = app.enqueue_many(jobs)
    stored = {job.id: (job.queue, job.arguments) for job in every_job(app)}
    assert [stored[id_] for id_ in ids] == [
        ("default", b'{"text":"a"}'), ("slow", b'{"number":1}'), ("default", b'{"text":"b"}'),
        ("default", b'{"number":2}'),
    ]  # fmt: skip


def test_enqueue_many_takes_a_generator(app: Treadle) -> None:
    """Jobs may be made on the way."""
    task = app.task(other)
    assert len(app.enqueue_many(task.job(number) for number in range(5))) == 5


def test_enqueue_many_of_nothing_is_nothing(app: Treadle) -> None:
    """An empty source is no error."""
    assert list(app.enqueue_many([])) == []
    assert asyncio.run(app.aenqueue_many([])) == []


@pytest.mark.parametrize("chunk", [None, 2, 3, 100])
def test_enqueue_many_takes_async_sources(app: Treadle, chunk: int | None) -> None:
    """Jobs may come from an async iterable, in chunks or at once; ids are in order."""
    task = app.task(other)

    async def source() -> AsyncIterator[NewJob]:
        for number in range(7):
            await asyncio.sleep(0)
            yield task.job(number)

    ids = asyncio.run(app.aenqueue_many(source(), chunk=chunk))
    stored = {job.id: job.arguments for job in every_job(app)}
    assert [stored[id_] for id_ in ids] == [b'{"number":%d}' % number for number in range(7)]


def test_enqueue_many_takes_plain_sources_from_async_code(app: Treadle) -> None:
    """The async verb takes a list too."""
    task = app.task(other)
    assert len(asyncio.run(app.aenqueue_many([task.job(1), task.job(2)], chunk=1))) == 2


def test_one_refused_job_refuses_all(app: Treadle) -> None:
    """Without chunk=, jobs are stored all or none: one payload that cannot be stored stores nothing."""
    task = app.task(name="any")(lambda value: value)
    with pytest.raises(InvalidPayload):
        app.enqueue_many(task.job(value) for value in (1, 2, float("nan"), 4))
    assert states(app) == []


def test_chunks_before_a_refused_job_stay(app: Treadle) -> None:
    """With chunk=, each chunk is one transaction: those before the mistake are stored."""
    task = app.task(name="any")(lambda value: value)
    with pytest.raises(InvalidPayload):
        app.enqueue_many((task.job(value) for value in (1, 2, 3, float("nan"))), chunk=2)
    assert len(states(app)) == 2


def test_a_source_that_fails_stores_nothing(app: Treadle) -> None:
    """An error in the caller's generator reaches the caller and stores nothing."""
    task = app.task(other)

    def source() -> Iterator[NewJob]:
        yield task.job(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.enqueue_many(source())
    assert states(app) == []


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_has_at_least_one_job(app: Treadle, chunk: int) -> None:
    """A chunk of nothing would never end."""
    with pytest.raises(ConfigurationError, match="chunk"):
        app.enqueue_many([app.task(other).job(1)], chunk=chunk)


def test_more_than_one_blob_of_arguments_is_stored_in_one_transaction(app: Treadle) -> None:
    """Many jobs, and many bytes, travel in slices; every job keeps its own arguments."""

    @app.task(name="keep")
    def keep(number: int, text: str) -> None: ...

    small = app.enqueue_many(keep.job(number, "") for number in range(2500))
    large = app.enqueue_many(keep.job(number, "x" * 900_000) for number in range(40))
    numbers = [app.get(job_id).arguments for job_id in (*small[::500], small[-1], large[0], large[-1])]
    assert [data is not None and data[:14].split(b",")[0] for data in numbers] == [
        b'{"number":%d' % number for number in (0, 500, 1000, 1500, 2000, 2499, 0, 39)
    ]
    assert len(set(small) | set(large)) == 2540
