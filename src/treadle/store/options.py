"""How to open and use a store."""

from __future__ import annotations

from dataclasses import dataclass

from treadle import defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to open and use a store.

    Attributes:
        durability: "full" survives a power cut at every acknowledged enqueue; "normal" may lose the last
            commits then (never on a crash of the process); "off" is for tests.
        lock_timeout: seconds enqueue waits for the write lock before StoreBusy.
        max_size: bytes of database beyond which enqueue is refused, None for no budget.
        min_free: bytes that enqueue leaves free on the disk, so that running work can still be settled.
        auto_migrate: create and upgrade tables when the store is opened.
        schema: PostgreSQL: the schema that holds the tables.
        connections: PostgreSQL: at most so many connections, beside the one that listens.
        listen_url: PostgreSQL: where to listen when the store's URL leads to a pooler; None for the same.
        prepared: PostgreSQL: let the server keep statements; not through a pooler that does not.
    """

    durability: str = defaults.DURABILITY
    lock_timeout: float = defaults.LOCK_TIMEOUT.total_seconds()
    max_size: int | None = None
    min_free: int = defaults.MIN_FREE
    auto_migrate: bool = True
    schema: str = defaults.SCHEMA
    connections: int = defaults.CONNECTIONS
    listen_url: str | None = None
    prepared: bool = True
