from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypedDict
from uuid import UUID

import pytest

from treadle import JobState, Treadle
from treadle.errors import ConfigurationError, InvalidPayload, PayloadTooLarge
from worker.kit import PATIENCE, states


class Colour(Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: Decimal
    parts: list[Item] = field(default_factory=list)


class Row(TypedDict):
    id: UUID
    at: datetime


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def item(value: Item) -> Item:
    assert type(value) is Item
    return value


def row(value: Row) -> Row:
    return value


def moment(value: datetime) -> datetime:
    return value


def day(value: date) -> date:
    return value


def span(value: timedelta) -> timedelta:
    return value


def number(value: Decimal) -> Decimal:
    return value


def id_(value: UUID) -> UUID:
    return value


def colour(value: Colour) -> Colour:
    assert value is Colour.RED
    return value


def raw(value: bytes) -> bytes:
    return value


def words(value: set[str]) -> set[str]:
    return value


def pair(value: tuple[int, str]) -> tuple[int, str]:
    return value


def many(*value: int, **named: Decimal) -> list[Any]:
    return [list(value), {name: str(one) for name, one in named.items()}]


def size(value: str) -> int:
    return len(value)


NIL = UUID(int=5)
NOON = datetime(2026, 1, 2, 12, 0, 0, 7, tzinfo=UTC)
TYPED: list[tuple[Callable[[Any], Any], object]] = [
    (item, Item("a", Decimal("1.10"), [Item("b", Decimal("2"))])),
    (row, {"id": NIL, "at": NOON}),
    (moment, NOON),
    (day, NOON.date()),
    (span, timedelta(days=1, microseconds=3)),
    (number, Decimal("0.10")),
    (id_, NIL),
    (colour, Colour.RED),
    (raw, b"\x00\xff"),
    (words, {"a", "ä", "日本"}),
    (pair, (1, "x")),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("function", "value"), TYPED, ids=[function.__name__ for function, _ in TYPED])
def test_typed_values_come_back_as_they_were(
    app: Treadle, function: Callable[[Any], Any], value: object, codec: str
) -> None:
    """What annotations say is what the handler gets and what result() returns."""
    job = app.task(codec=codec)(function).enqueue(value)
    with app.worker():
        found = job.result(timeout=PATIENCE)
    assert (found, type(found)) == (value, type(value))


def test_stars_are_typed_too(app: Treadle) -> None:
    """Extra arguments have the type of their annotation."""
    job = app.task(many).enqueue(1, 2, a=Decimal("1.0"))
    with app.worker():
        assert job.result(timeout=PATIENCE) == [[1, 2], {"a": "1.0"}]


REFUSED = {
    "NaN": (float("nan"), r"\$\.value\.a\[1\] is nan"),
    "infinity": (float("-inf"), r"\$\.value\.a\[1\] is -inf"),
    "surrogate": ("x\ud800", r"\$\.value\.a\[1\] contains a lone surrogate at character 1"),
    "integer": (2**70, r"\$\.value\.a\[1\] is an integer beyond 64 bit"),
    "nesting": (deep(250), "nested deeper than 200 levels"),
    "very deep": (deep(100_000), "nested deeper than 200 levels"),
    "NUL": ("a\0b", r"\$\.value\.a\[1\] contains a NUL character"),
    "object": (object(), r"\$\.value\.a\[1\] is a value of type object, which cannot be stored"),
}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("bad", REFUSED)
def test_values_that_would_not_come_back_are_refused_with_their_path(app: Treadle, bad: str, codec: str) -> None:
    """Nothing that a database or a codec would change is stored; the message has the path of the value."""
    value, path = REFUSED[bad]
    task = app.task(name="any", codec=codec)(lambda value: value)
    with pytest.raises(InvalidPayload, match=path):
        task.enqueue({"a": [0, value]})
    assert states(app) == []


@pytest.mark.parametrize("bad", REFUSED)
def test_a_bad_value_spoils_nothing_of_async_callers(app: Treadle, bad: str) -> None:
    """One caller's mistake fails that caller only, though commits are shared."""
    task = app.task(name="any")(lambda value: value)

    async def main() -> list[object]:
        values = [1, REFUSED[bad][0], 2]
        return await asyncio.gather(*(task.aenqueue(value) for value in values), return_exceptions=True)

    found = asyncio.run(main())
    assert [type(one).__name__ for one in found] == ["Job", "InvalidPayload", "Job"]
    assert states(app) == ["ready", "ready"]


def test_arguments_have_a_cap(app: Treadle) -> None:
    """More than a megabyte is refused; the message says how much it is and what to do."""
    task = app.task(name="any")(size)
    with pytest.raises(PayloadTooLarge, match=r"arguments of any take 1,000,012 bytes.*1,000,000"):
        task.enqueue("x" * 1_000_000)
    with pytest.raises(PayloadTooLarge):
        asyncio.run(task.aenqueue("x" * 1_000_000))
    with pytest.raises(PayloadTooLarge):
        app.remote("any").enqueue(value="x" * 1_000_000)
    assert states(app) == []


def test_arguments_just_below_the_cap_run(app: Treadle) -> None:
    """Large arguments arrive whole."""
    job = app.task(name="any")(size).enqueue("x" * 999_900)
    with app.worker():
        assert job.result(timeout=PATIENCE) == 999_900


def test_the_cap_can_be_raised() -> None:
    """A program may say how large its arguments are."""
    with Treadle("memory://", payload_cap=3_000_000) as app:
        job = app.task(name="any")(size).enqueue("x" * 2_000_000)
        with app.worker():
            assert job.result(timeout=PATIENCE) == 2_000_000


# --- codecs ------------------------------------------------------------------------------------------


class Shouting:
    """A codec of a program's own: JSON in upper case."""

    name = "shout"

    def encode(self, value: object) -> bytes:
        return json.dumps(value).upper().encode()

    def decode(self, data: bytes, type_: object) -> object:
        return json.loads(data.lower())


def test_an_app_chooses_its_codec() -> None:
    """codec= of the app is the codec of its tasks, arguments and results."""
    with Treadle("memory://", codec="msgpack") as app:
        job = app.task(raw).enqueue(b"\xff")
        record = job.record()
        assert (record.codec, record.arguments) == ("msgpack", b"\x81\xa5value\xc4\x01\xff")
        with app.worker():
            assert job.result(timeout=PATIENCE) == b"\xff"


def test_a_task_chooses_its_codec(app: Treadle) -> None:
    """codec= of a task leaves the others as they are."""
    packed, plain = app.task(name="packed", codec="msgpack")(raw).enqueue(b"1"), app.task(raw).enqueue(b"2")
    assert (packed.record().codec, plain.record().codec) == ("msgpack", "json")
    with app.worker():
        assert (packed.result(timeout=PATIENCE), plain.result(timeout=PATIENCE)) == (b"1", b"2")


def test_a_codec_of_ones_own() -> None:
    """A program can bring a codec; annotations hold for what it decodes."""
    with Treadle("memory://", codec="shout", codecs=[Shouting()]) as app:

        @app.task
        def join(left: Colour, at: list[int]) -> str:
            return left.value + str(sum(at))

        job = join.using().enqueue_encoded(b'{"LEFT": "RED", "AT": [1, 2]}')
        assert join.enqueue("red", [1]).record().arguments == b'{"LEFT": "RED", "AT": [1]}'
        with app.worker():
            assert job.result(timeout=PATIENCE) == "red3"


def test_raw_bytes_pass_untouched(app: Treadle) -> None:
    """The bytes codec stores the one argument as it is and returns the result as it is."""
    job = app.task(codec="bytes")(raw).enqueue(b"\x00\xff")
    assert job.record().arguments == b"\x00\xff"
    with app.worker():
        assert job.result(timeout=PATIENCE) == b"\x00\xff"


def test_raw_bytes_need_one_parameter(app: Treadle) -> None:
    """A function with two parameters cannot use the bytes codec; that is said when it is declared."""

    def two(left: bytes, right: bytes) -> None: ...

    with pytest.raises(ConfigurationError, match="exactly one"):
        app.task(codec="bytes")(two)


def test_encoded_messagepack_is_accepted(app: Treadle) -> None:
    """Bytes from a program in another language run, in the task's codec."""
    job = app.task(codec="msgpack")(raw).enqueue_encoded(b"\x81\xa5value\xc4\x01\xff")
    with app.worker():
        assert job.result(timeout=PATIENCE) == b"\xff"


def test_a_task_that_changed_its_codec_still_reads_old_jobs(file_app: Treadle, path: object) -> None:
    """Each job names its codec, so a deploy may change the task's."""
    old = file_app.task(name="raw")(raw).enqueue(b"old")
    with Treadle(f"sqlite:///{path}") as newer:
        newer.task(name="raw", codec="msgpack")(raw)
        with newer.worker():
            assert old.result(timeout=PATIENCE) == b"old"


def test_a_job_in_an_unknown_codec_is_held(path: object) -> None:
    """A worker without the job's codec holds the job with the reason and spends nothing."""
    with Treadle(f"sqlite:///{path}", codec="shout", codecs=[Shouting()]) as writer:
        job = writer.task(name="raw")(lambda value: value).enqueue("x")
    with Treadle(f"sqlite:///{path}") as reader:
        reader.task(name="raw")(lambda value: value)

        async def main() -> None:
            async with reader.worker() as worker:
                await worker.idle()

        asyncio.run(main())
        record = reader.get(job.id)
    assert (record.state, record.failures) == (JobState.HELD, 0)
    assert record.reason is not None
    assert "'shout'" in record.reason


def test_a_changed_signature_holds_old_jobs(path: object) -> None:
    """Arguments that do not fit today's function are held with the reason, not failed."""
    with Treadle(f"sqlite:///{path}") as before:
        job = before.task(name="send")(lambda to: to).enqueue("ada")
    with Treadle(f"sqlite:///{path}") as after:
        after.task(name="send")(lambda address: address)

        async def main() -> None:
            async with after.worker() as worker:
                await worker.idle()

        asyncio.run(main())
        record = after.get(job.id)
    assert (record.state, record.failures) == (JobState.HELD, 0)
    assert record.reason is not None
    assert "to" in record.reason
