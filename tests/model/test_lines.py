"""What is kept of the lines of one attempt: the beginning, the end, and how much is missing between them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import defaults
from treadle.model.job import LogLine
from treadle.model.lines import LINE_COST, Lines

CAPS = st.integers(400, 5000)
TEXTS = st.lists(st.text(st.characters(codec=None), max_size=300), max_size=120)


def told(cap: int, texts: list[str]) -> tuple[list[LogLine], list[LogLine]]:
    """What is stored at once, and what comes at the end."""
    lines = Lines(cap)
    at_once = [lines.keep(number, 20, "job", text) for number, text in enumerate(texts)]
    return [line for line in at_once if line is not None], list(lines.rest())


def cost(lines: list[LogLine]) -> int:
    return sum(len(line.text.encode()) + LINE_COST for line in lines)


@given(CAPS, TEXTS)
def test_never_more_than_the_cap(cap: int, texts: list[str]) -> None:
    """Beginning and end together, whatever is said; the line that tells what is missing comes on top."""
    first, last = told(cap, texts)
    kept = [line for line in last if "left out" not in line.text]
    assert cost(first) <= cap - cap // 4
    assert cost(kept) <= cap // 4 + LINE_COST


@given(CAPS, TEXTS)
def test_nothing_is_missing_without_a_word(cap: int, texts: list[str]) -> None:
    """Every line is stored at once, at the end, or counted as left out; order and moments are those of the lines."""
    first, last = told(cap, texts)
    missing = [int(re.match(r"… (\d+) lines left out", line.text)[1]) for line in last if "left out" in line.text]  # type: ignore[index]
    assert len(missing) <= 1
    kept = [*first, *(line for line in last if "left out" not in line.text)]
    assert len(kept) + sum(missing) == len(texts)
    assert [line.logged_at for line in kept] == sorted(line.logged_at for line in kept)
    if texts:
        assert kept[-1].logged_at == len(texts) - 1, "the last line is always kept"
        assert kept[0].logged_at == 0, "and the first"


@given(CAPS, TEXTS)
def test_every_line_can_be_stored(cap: int, texts: list[str]) -> None:
    """No NUL and no lone surrogate is left in it."""
    first, last = told(cap, texts)
    for line in (*first, *last):
        assert "\0" not in line.text
        assert line.text.encode().decode() == line.text


def test_a_source_is_storable_too() -> None:
    """The name of a logger may be anything."""
    line = Lines().keep(0, 20, "sh\0op" * 100, "text")
    assert line is not None
    assert "\0" not in line.source
    assert len(line.source.encode()) <= 200


@pytest.mark.parametrize("size", [0, 1, 100])
def test_little_is_kept_whole(size: int) -> None:
    """Under the cap nothing is kept back."""
    first, last = told(defaults.LOG_CAP, ["x" * 50] * size)
    assert (len(first), last) == (size, [])
