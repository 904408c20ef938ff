"""Fixtures of the kit's tests."""

from __future__ import annotations

from worker.kit import app, clock, file_app, held_app, path

__all__ = ["app", "clock", "file_app", "held_app", "path"]
