"""What the commands print: text that cannot harm a terminal, tables, JSON, UTC times."""

from __future__ import annotations

import base64
import dataclasses
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec

from treadle.doctor.finding import counted
from treadle.model.job import JobState

ESCAPED: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that can move a cursor, reorder or hide text, or that no terminal can show."""
WIDEST: Final = 60
__all__ = [
    "counted", "counted_states", "facts", "moment", "plain", "safe", "say", "say_json", "size", "span", "table",
]  # fmt: skip


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


def say_json(value: object, *, indent: bool = True) -> None:
    """Print *value* as JSON; every character that could harm a terminal is escaped as JSON allows.

    Args:
        value: what :func:`plain` takes.
        indent: False prints one line.
    """
    data = msgspec.json.encode(plain(value))
    text = (msgspec.json.format(data, indent=2) if indent else data).decode()
    wide = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    click.echo("".join(one if one == "\n" or _fits(one, wide=wide) else _json_escape(one) for one in text))


def plain(value: Any) -> Any:
    """What JSON can carry: records as objects, times as UTC ISO text, durations as seconds, bytes as base64."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case Mapping():
            return {str(key): plain(one) for key, one in value.items()}
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())
        case tuple() | list():
            return [plain(one) for one in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


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


def counted_states(counts: Mapping[JobState, int], states: Sequence[JobState]) -> list[str]:
    """The cells of a table with a column for each of *states*."""
    return [f"{counts.get(state, 0):,}" for state in states]


def span(length: timedelta) -> str:
    """A length of time in its two largest units, for people.

    Example:
        >>> span(timedelta(hours=26, seconds=5)), span(timedelta(seconds=3.2))
        ('1 d 2 h', '3 s')
    """
    seconds = max(0, int(length.total_seconds()))
    for unit, worth, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= worth:
            rest = seconds % worth // part
            return f"{seconds // worth} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns; a value that is None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{name:<{width}}  {moment(value) if isinstance(value, datetime) else safe(str(value))}")


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


def _fits(letter: str, *, wide: bool) -> bool:
    return _harmless(letter) if wide else letter.isascii() and letter.isprintable()


def _harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) not in ESCAPED


def _shown(letter: str) -> str:
    return letter if _harmless(letter) else letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
