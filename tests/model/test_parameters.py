from __future__ import annotations

from functools import partial, wraps
from typing import Any, Optional, Union

import pytest

from treadle.errors import InvalidPayload
from treadle.model.codec import JsonCodec
from treadle.model.parameters import body_of, label_of, resolved_hints
from treadle.model.signature import Signature


def double(number: int) -> int:
    return 2 * number


@wraps(double)
def wrapped(*args: Any) -> Any:
    return double(*args)


class Adder:
    def __call__(self, number: int) -> int:
        return number


ADDER = Adder()


def test_the_body_is_what_has_the_annotations() -> None:
    """Functions, methods and classes are their own body; partials and other objects have one below."""
    for own in (double, wrapped, ADDER.__call__, len, Adder):
        assert body_of(own) is own
    assert body_of(partial(partial(double), 1)) is double
    assert body_of(ADDER) is body_of(partial(ADDER)) is Adder.__call__


def test_every_callable_has_a_label() -> None:
    """Messages name the function, what a partial calls, or the class of an object."""
    assert [label_of(one) for one in (double, partial(double, 1), ADDER, partial(ADDER))] == [
        "double", "double", "Adder", "Adder",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (object, Any), (list[object], list[Any]), (dict[str, object], dict[str, Any]),
        (tuple[object, ...], tuple[Any, ...]), (dict[str, list[object]], dict[str, list[Any]]),
        (Optional[list[object]], Optional[list[Any]]), (list[object] | None, Union[list[Any], None]),  # noqa: UP007,UP045
        (list[int], list[int]), (int | None, int | None),
    ],
    ids=str,
)  # fmt: skip
def test_object_means_anything(said: object, meant: object) -> None:
    """A parameter annotated ``object`` takes what one annotated Any takes, inside containers and unions too."""

    def f(value) -> None: ...  # type: ignore[no-untyped-def]

    f.__annotations__["value"] = said
    assert resolved_hints(f, "f")["value"] == meant


def test_object_arguments_are_stored_and_come_back() -> None:
    """Plain data fits ``object``; what no codec carries is refused at enqueue, as for Any."""

    def f(value: object, *rest: object) -> None: ...

    signature, codec = Signature.of(f), JsonCodec()
    stored = signature.encode(codec, ({"a": [1, None]}, "b"), {})
    assert signature.decode(codec, stored) == ([{"a": [1, None]}, "b"], {})
    with pytest.raises(InvalidPayload):
        signature.encode(codec, (object(),), {})
