"""Text from the database cannot harm the terminal it is shown on."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faces.commands import harmless
from treadle.cli.output import moment, safe, say, say_json, table

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "a\rb",
    "\u202eexe.gpj",
    "\u2066x\u2069",
    "\x7f",
    "\ue000",
    "\udcff",
    "\u2028",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_escaped(text: str) -> None:
    """Escape sequences, control, bidi, private and surrogate characters come out as their escapes."""
    assert harmless(safe(text))
    assert "\\" in safe(text)


@given(st.text(st.characters()))
def test_nothing_harmful_gets_through(text: str) -> None:
    """Whatever is stored, only harmless characters are printed."""
    assert harmless(safe(text))
    assert harmless(safe(text, lines=True).replace("\t", ""))


@pytest.mark.parametrize("text", ["plain", "snow\u2603man", "Привет", "日本", "é", "emoji 🎉"])
def test_ordinary_text_stays_readable(text: str) -> None:
    """Letters of every script are shown as they are."""
    assert safe(text) == text


def test_json_is_safe_and_still_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON output escapes what could harm a terminal, and parses back to the same value."""
    value = {"text": [text for text in HOSTILE if text != "\udcff"], "far": "\U000e0041"}
    say_json(value)
    printed = capsys.readouterr().out
    assert harmless(printed)
    assert json.loads(printed) == value


def test_say_and_table_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines and table cells cannot bring escape sequences, and a cell cannot bring a line of its own."""
    say("one\x1b[31m\ntwo")
    table(("name", "text"), [("a\nb", "x\x1b[0m"), ("c" * 200, None)])
    printed = capsys.readouterr().out
    assert harmless(printed)
    assert len(printed.splitlines()) == 2 + 3


def test_times_are_utc() -> None:
    """A time of any zone is printed as UTC in ISO form."""
    assert moment(datetime(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2029-12-31T23:00:00.000Z"
    assert moment(None) == "-"
