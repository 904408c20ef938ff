"""The ``treadle`` command."""

from __future__ import annotations

from treadle.cli.main import main

__all__ = ["main"]
