"""Fixtures of the worker's tests."""

from __future__ import annotations

from worker.kit import app, clock, file_app, held_app, path, shop

__all__ = ["app", "clock", "file_app", "held_app", "path", "shop"]
