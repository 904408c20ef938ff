"""Store URLs: which kind of database they name, and how they may be shown."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

POSTGRES: Final = ("postgresql://", "postgres://")
HIDDEN: Final = "…"


def is_server(url: str) -> bool:
    """True when *url* names a PostgreSQL database, not a file.

    Example:
        >>> is_server("postgresql://db.example/shop"), is_server("sqlite:///jobs.db")
        (True, False)
    """
    return url.startswith(POSTGRES)


def without_password(url: str) -> str:
    """The URL as messages may show it; of one that cannot be taken apart only the beginning.

    Example:
        >>> without_password("postgresql://app:secret@db.example/shop?sslmode=require")
        'postgresql://app@db.example/shop'
        >>> without_password("postgresql://app:sec/ret@db.example/shop")
        'postgresql://…'
    """
    if url.startswith("sqlite://") or not ("://" in url or "@" in url):
        return url
    scheme, separator, rest = url.partition("://")
    if not separator:
        return HIDDEN
    try:
        parts = urlsplit(url)
        user = f"{quote(parts.username)}@" if parts.username else ""
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    # A password with a letter that should have been encoded ends the host's part early: its rest is in the path.
    behind = rest[len(parts.netloc) :]
    unsure = behind if parts.netloc and "@" not in parts.netloc else behind.partition("?")[0]
    if parts.netloc.count("@") > 1 or "@" in unsure:
        return f"{scheme}://{HIDDEN}"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, user + host, parts.path, "", ""))
