"""Which store a command works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from treadle.app import Treadle
from treadle.errors import ConfigurationError, NotSupportedHere, StoreUnusable
from treadle.settings import Settings, load
from treadle.store.opening import file_of
from treadle.store.urls import is_server, without_password

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


def asked(store: str | None) -> str:
    """The URL of the store that was asked for.

    Raises:
        ConfigurationError: it lives in one process only, or a setting cannot be used.
    """
    url = load(Settings(store=None if store is None else url_of(store))).store or ""
    if not is_server(url) and file_of(url) is None:
        raise ConfigurationError("A memory:// store lives inside one process; nothing outside can see it.")
    return url


def path_of(store: str | None, instead: str) -> Path:
    """The file of the store that was asked for, for what only files need.

    Raises:
        NotSupportedHere: it is no file; *instead* says what helps there.
    """
    url = asked(store)
    path = None if is_server(url) else file_of(url)
    if path is None:
        raise NotSupportedHere(f"{without_password(url)} is a PostgreSQL database, and this is for files. {instead}")
    return path


@contextmanager
def opened(store: str | None, *, auto_migrate: bool = False) -> Iterator[Treadle]:
    """The store that was asked for, opened to look at; it is neither created nor upgraded.

    Raises:
        StoreUnusable: there is no such file, or no such tables on the server.
    """
    url = asked(store)
    path = None if is_server(url) else file_of(url)
    if path is not None and not path.exists():
        raise StoreUnusable(f"There is no database {path.absolute()}; pass --store or set TREADLE_STORE.")
    with Treadle(url, auto_migrate=auto_migrate) as app:
        yield app
