"""Which store a command works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from treadle.app import Treadle
from treadle.errors import ConfigurationError, StoreUnusable
from treadle.settings import Settings, load
from treadle.store.opening import file_of

store_option: Callable[[Any], Any] = click.option(
    "--store", metavar="PATH|URL", help="The database. Default: TREADLE_STORE, then pyproject.toml."
)


def url_of(store: str) -> str:
    """The URL of a store given as a path or a URL.

    Example:
        >>> url_of("jobs.db"), url_of("memory://")
        ('sqlite:///jobs.db', 'memory://')
    """
    return store if "://" in store else f"sqlite:///{store}"


def path_of(store: str | None) -> Path:
    """The file of the store that was asked for.

    Raises:
        ConfigurationError: it has no file, or a setting cannot be used.
    """
    settings = load(Settings(store=None if store is None else url_of(store)))
    path = file_of(settings.store or "")
    if path is None:
        raise ConfigurationError("A memory:// store lives inside one process; nothing outside can see it.")
    return path


@contextmanager
def opened(store: str | None, *, auto_migrate: bool = False) -> Iterator[Treadle]:
    """The store that was asked for, opened to look at; it is neither created nor upgraded.

    Raises:
        StoreUnusable: there is no such file.
    """
    path = path_of(store)
    if not path.exists():
        raise StoreUnusable(f"There is no database {path.absolute()}; pass --store or set TREADLE_STORE.")
    with Treadle(f"sqlite:///{path}", auto_migrate=auto_migrate) as app:
        yield app
