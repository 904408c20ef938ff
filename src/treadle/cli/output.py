"""What the commands print: text that cannot harm a terminal, tables, JSON, UTC times."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import click
import msgspec

ESCAPED: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that can move a cursor, reorder or hide text, or that no terminal can show."""
WIDEST: Final = 60


def safe(text: str, *, lines: bool = False) -> str:
    r"""Return *text* with control, escape, bidi and unprintable characters shown as escapes.

    Args:
        text: anything, such as a stored message or a file name.
        lines: let line ends and tabs through, for text of several lines.

    Example:
        >>> safe("red\x1b[31m")
        'red\\x1b[31m'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if lines and letter in "\n\t" else _shown(letter) for letter in text)


def say(text: str = "", *, err: bool = False) -> None:
    """Print lines, made safe."""
    click.echo(safe(text, lines=True), err=err)


def say_json(value: object) -> None:
    """Print *value* as JSON; every character that could harm a terminal is escaped as JSON allows."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()
    click.echo("".join(letter if letter == "\n" or _harmless(letter) else _json_escape(letter) for letter in text))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads; long cells are cut, the last column is not."""
    cells = [[_cell(value, last=place == len(heads) - 1) for place, value in enumerate(row)] for row in rows]
    widths = [max(len(row[place]) for row in [list(heads), *cells]) for place in range(len(heads))]
    for row in [[head.upper() for head in heads], *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def moment(value: datetime | None) -> str:
    """A time as UTC ISO text with milliseconds, ``-`` for none.

    Example:
        >>> moment(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
        '2030-01-02T03:04:05.000Z'
    """
    return "-" if value is None else value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(count: int) -> str:
    """A number of bytes for people.

    Example:
        >>> size(2_500_000)
        '2.5 MB'
    """
    return f"{count:,} bytes" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def _cell(value: object, *, last: bool) -> str:
    if isinstance(value, datetime):
        return moment(value)
    text = safe("-" if value is None else str(value))
    return text if last or len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) not in ESCAPED


def _shown(letter: str) -> str:
    return letter if _harmless(letter) else letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
