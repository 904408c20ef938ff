"""Fixtures of the worker's tests."""

from __future__ import annotations

from worker.kit import app, clock, file_app, held_app, path, shop, store_url
from worker.kit import on_every_store as pytest_generate_tests

__all__ = ["app", "clock", "file_app", "held_app", "path", "pytest_generate_tests", "shop", "store_url"]
