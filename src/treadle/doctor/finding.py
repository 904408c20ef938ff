"""One thing that was looked at, and how bad it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad a finding is; only a problem makes the store unhealthy."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, in a few words.
        level: how bad it is.
        text: what was found.
        remedy: what to do, None when nothing is wrong.
    """

    check: str
    level: Level
    text: str
    remedy: str | None = None


def ok(check: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, level=Level.OK, text=text)


def note(check: str, text: str, remedy: str | None = None) -> Finding:
    """Somebody should know."""
    return Finding(check=check, level=Level.NOTE, text=text, remedy=remedy)


def problem(check: str, text: str, remedy: str) -> Finding:
    """Somebody has to do something."""
    return Finding(check=check, level=Level.PROBLEM, text=text, remedy=remedy)


def counted(number: int, thing: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "job"), counted(1203, "job")
        ('1 job', '1,203 jobs')
    """
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
