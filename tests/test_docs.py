"""The documentation says what the code does."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from treadle import defaults

PAGE = Path(__file__).parents[1] / "docs" / "defaults.md"
UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "min": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}
ROW = re.compile(r"^\| `(?P<name>[A-Z_]+)` \| (?P<value>[^|]+) \| (?P<meaning>[^|]+) \|$", re.MULTILINE)


def shown(value: object) -> str:
    """Write a default the way the page writes it."""
    match value:
        case timedelta():
            for unit, size in UNITS.items():
                if value >= size and not value % size:
                    return f"{value // size} {unit}"
            return f"{value // timedelta(milliseconds=1)} ms"
        case (low, high):
            return f"{low} to {high}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def rows() -> dict[str, str]:
    """Read the tables of the page: name to value."""
    return {row["name"]: row["value"] for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


VALUES = {name: value for name, value in vars(defaults).items() if name.isupper()}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_default_is_documented_with_its_value(name: str) -> None:
    """A reader of docs/defaults.md sees the value the code uses."""
    assert rows().get(name) == shown(VALUES[name])


def test_no_default_is_documented_that_does_not_exist() -> None:
    """A default that left the code has left the page too."""
    assert set(rows()) - set(VALUES) == set()
