"""A mark beside a file whose disk has failed: the next worker looks before it claims."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from treadle.host.files import create_beside, remove_quietly

SUSPECT: Final = "suspect"
log = logging.getLogger("treadle.store")


def mark(side: Path) -> None:
    """Leave the mark in the side folder; a disk that fails may refuse even that."""
    try:
        create_beside(side / SUSPECT)
    except OSError as error:
        log.warning("%s could not be marked as suspect: %s", side, error)


def is_marked(side: Path) -> bool:
    """True when a process has seen the disk fail since the file was last found whole."""
    return (side / SUSPECT).exists()


def clear(side: Path) -> None:
    """Take the mark away: the file was found whole."""
    remove_quietly(side / SUSPECT)
