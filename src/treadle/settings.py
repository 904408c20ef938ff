"""Where settings come from: ``[tool.treadle]`` of pyproject.toml, then ``TREADLE_*``, then arguments."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle import defaults
from treadle.errors import ConfigurationError
from treadle.store.options import StoreOptions

PREFIX = "TREADLE_"
OTHERS: Final = ("TREADLE_TEST_", "TREADLE_LOG")
"""How variables begin that are none of these settings, however much they look like one."""
ALIKE: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set from outside; None means not set here.

    Attributes:
        store: URL of the database.
        durability: "full" or "normal".
        lock_timeout: seconds enqueue waits for the write lock.
        max_size: bytes of database beyond which enqueue is refused.
        min_free: bytes that enqueue leaves free on the disk for running work.
        schema: PostgreSQL: the schema that holds the tables.
        connections: PostgreSQL: at most so many connections of one process, beside the one that listens.
        listen_url: PostgreSQL: where to listen when *store* leads to a pooler.
        prepared: PostgreSQL: let the server keep statements.
        queues: names a worker takes, in order.
        concurrency: attempts a worker runs at once.
        processes: worker processes that ``treadle worker`` keeps alive.
    """

    store: str | None = None
    durability: str | None = None
    lock_timeout: float | None = None
    max_size: int | None = None
    min_free: int | None = None
    schema: str | None = None
    connections: int | None = None
    listen_url: str | None = None
    prepared: bool | None = None
    queues: list[str] | None = None
    concurrency: int | None = None
    processes: int | None = None


DEFAULTS = Settings(
    store="sqlite:///treadle.db",
    durability=defaults.DURABILITY,
    lock_timeout=defaults.LOCK_TIMEOUT.total_seconds(),
    min_free=defaults.MIN_FREE,
    schema=defaults.SCHEMA,
    connections=defaults.CONNECTIONS,
    prepared=True,
    concurrency=defaults.CONCURRENCY,
)


def store_options(settings: Settings, *, auto_migrate: bool) -> StoreOptions:
    """The part of *settings* that says how to open the store."""
    chosen = {item.name: getattr(settings, item.name, None) for item in fields(StoreOptions)}
    return StoreOptions(
        auto_migrate=auto_migrate, **{name: value for name, value in chosen.items() if value is not None}
    )


def load(given: Settings, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Merge every source, the later ones winning: defaults, pyproject.toml, environment, *given*.

    Args:
        given: what the program passed.
        environ: by default the process's.
        folder: where pyproject.toml lies; by default the current folder.

    Raises:
        ConfigurationError: a setting is unknown or of the wrong kind, or a variable looks like a misspelt one;
            the message says where.
    """
    found = _convert("pyproject.toml, [tool.treadle]", _from_file(folder or Path.cwd()))
    env = _convert("the environment", _from_environment(os.environ if environ is None else environ))
    merged: dict[str, Any] = {}
    for source in (DEFAULTS, found, env, given):
        merged |= {item.name: value for item in fields(source) if (value := getattr(source, item.name)) is not None}
    return Settings(**merged)


def _from_file(folder: Path) -> dict[str, Any]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        return {}
    try:
        table = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("treadle", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    return dict(table)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = [item.name for item in fields(Settings)]
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if not value or not name.startswith(PREFIX) or name.startswith(OTHERS):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in known:
            found[key] = value.split(",") if key == "queues" else value
        elif meant := get_close_matches(key, known, n=1, cutoff=ALIKE):
            raise ConfigurationError(
                f"The environment sets {name}, which is no setting; did you mean {PREFIX}{meant[0].upper()}?"
            )
    return found


def _convert(where: str, found: dict[str, Any]) -> Settings:
    unknown = found.keys() - {item.name for item in fields(Settings)}
    if unknown:
        raise ConfigurationError(f"Unknown setting {', '.join(sorted(unknown))} in {where}.")
    try:
        return msgspec.convert(found, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"A setting in {where} cannot be used: {error}") from error
