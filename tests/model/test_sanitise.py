from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.model.sanitise import class_name, clean_text, cut_middle, describe_exception

ANY_TEXT = st.text(st.characters())


class MuteError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


def caught(function: object, *args: object) -> BaseException:
    try:
        function(*args)  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def dive(depth: int) -> None:
    if depth == 0:
        raise ValueError("bottom")
    dive(depth - 1)


def bounce(depth: int) -> None:
    if depth == 0:
        raise ValueError("bottom")
    bounce_back(depth - 1)


def bounce_back(depth: int) -> None:
    bounce(depth - 1) if depth else dive(0)


@given(text=ANY_TEXT, cap=st.integers(0, 100))
def test_clean_text_is_storable_and_bounded(text: str, cap: int) -> None:
    """Whatever goes in, UTF-8 of at most cap bytes without NUL comes out."""
    for cut in (clean_text, cut_middle):
        clean = cut(text, cap)
        assert len(clean.encode("utf-8")) <= cap
        assert "\0" not in clean


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_good_text_is_unchanged(text: str) -> None:
    """Text that fits is left alone."""
    assert clean_text(text, 10_000) == text


def test_replacement_and_marker() -> None:
    """NUL and surrogates become U+FFFD; the marker counts what was cut."""
    assert clean_text("a\0b\ud800c", 100) == "a\ufffdb\ufffdc"
    cut = clean_text("é" * 1000, 100)
    kept, _, marker = cut.partition("…")
    assert marker == f" [{2000 - len(kept.encode())} bytes cut]"
    middle = cut_middle("start" + "x" * 1000 + "end", 100)
    assert middle.startswith("start")
    assert middle.endswith("end")
    assert "bytes cut]" in middle


def test_an_ordinary_exception() -> None:
    """Name, message and frames with their source line."""
    name, message, trace = describe_exception(caught(dive, 1), 10_000)
    assert (name, message) == ("ValueError", "bottom")
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in dive" in trace
    assert trace.endswith("ValueError: bottom\n")
    assert class_name(MuteError).endswith("test_sanitise.MuteError")


def test_a_message_that_raises_is_replaced() -> None:
    """__str__ may raise even a BaseException: the description goes on."""
    name, message, trace = describe_exception(caught(lambda: (_ for _ in ()).throw(MuteError())), 10_000)
    assert name.endswith("MuteError")
    assert message == "(its message could not be had: KeyboardInterrupt)"
    assert message in trace


def test_chains_are_followed_once() -> None:
    """Causes and contexts appear, and a chain that loops ends."""
    first, second = ValueError("first"), KeyError("second")
    second.__cause__, first.__cause__ = first, second
    trace = describe_exception(second, 10_000)[2]
    assert trace.count("ValueError: first") == 1
    assert "direct cause" in trace
    hidden = ValueError("shown")
    hidden.__context__, hidden.__suppress_context__ = KeyError("hidden"), True
    assert "hidden" not in describe_exception(hidden, 10_000)[2]


def test_endless_chains_are_cut() -> None:
    """Ten thousand links stay small."""
    link = Exception("0")
    for number in range(10_000):
        newer = Exception(str(number))
        newer.__context__ = link
        link = newer
    trace = describe_exception(link, 32_000)[2]
    assert "left out" in trace
    assert trace.endswith("Exception: 9999\n")


def test_groups_show_their_members() -> None:
    """Members of an exception group are listed, and so are nested ones, down to a depth."""
    group: BaseExceptionGroup[BaseException] = BaseExceptionGroup(
        "many", [ValueError(str(n)) for n in range(50)]
    )
    for _ in range(50):
        group = BaseExceptionGroup("outer", [group, KeyboardInterrupt()])
    name, message, trace = describe_exception(group, 32_000)
    assert name == "BaseExceptionGroup"
    assert message == "outer (2 sub-exceptions)"
    assert "KeyboardInterrupt" in trace
    assert "deeper groups are left out" in trace


def test_deep_stacks_keep_both_ends() -> None:
    """Twenty frames at each end, and the number left out between."""
    trace = describe_exception(caught(bounce, 100), 32_000)[2]
    assert trace.count("in bounce") == 39
    assert "frames left out" in trace
    assert describe_exception(caught(dive, 10**6), 32_000)[0] == "RecursionError"


@given(message=ANY_TEXT, cap=st.integers(0, 3000))
def test_the_three_parts_together_stay_under_the_cap(message: str, cap: int) -> None:
    """Name, message and traceback share one cap."""
    error = ValueError(message * 50)
    error.add_note(message * 50)
    parts = describe_exception(error, cap)
    assert sum(len(part.encode()) for part in parts) <= cap


def test_hostile_classes_do_not_break_it() -> None:
    """Classes with strange names and notes, and giant messages, are described too."""
    Odd = type("Odd", (Exception,), {"__module__": "m\ud800\0", "__notes__": 7})
    name, message, trace = describe_exception(Odd("x" * 10_000_000), 1_000)
    assert "\ufffd" in name
    assert len(message) <= 250
    assert len(trace.encode()) <= 1_000

    class Bad(Exception):
        __cause__ = property(lambda self: 1 / 0)

    assert "could not be written: ZeroDivisionError" in describe_exception(Bad(), 1_000)[2]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exceptions_are_described(kind: type[BaseException]) -> None:
    """BaseExceptions are described like others."""
    assert describe_exception(kind("bye"), 1_000)[:2] == (kind.__name__, "bye")
