"""The few SQL fragments in which databases differ, and statements written once for all of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

_OWN: Final = re.compile(r"\b(treadle_[a-z_]+)\b")
_PARAMETER: Final = re.compile(r"(?<![:\w]):([a-z_]+)\b")


class Dialect(ABC):
    """What one database calls what others call otherwise; operations splice it into their statements.

    Lists travel as one JSON parameter each, so that a statement for a thousand jobs is one step.

    Attributes:
        name: "sqlite" or "postgresql".
        shares_rows: several transactions may write at once, so rows have to be locked before they are judged.
        among: what stands between a column and a subselect that takes a limited number of rows, and is run once.
        taken: what stands after that subselect: rows that others have locked are passed over.
        empty_blob: a blob of no bytes.
        skip_locked: the same for a subselect in FROM.
        for_update: end of a select whose rows nobody may change before this transaction ends.
        for_key_share: end of a select whose rows nobody may delete before this transaction ends.
        materialized: keeps a common table expression from being merged into the statement around it.
    """

    name: str
    shares_rows: bool
    among: str
    taken: str
    empty_blob: str
    skip_locked: str
    for_update: str
    for_key_share: str
    materialized: Final = "MATERIALIZED"

    @abstractmethod
    def text(self, sql: Sql | str) -> str:
        """The statement as this database takes it."""

    @abstractmethod
    def index(self, name: str) -> str:
        """Pins the index of the table just named; empty where the planner is left alone."""

    @abstractmethod
    def ints(self, name: str) -> str:
        """A select of the whole numbers of a list parameter."""

    @abstractmethod
    def texts(self, name: str) -> str:
        """A select of the texts of a list parameter."""

    @abstractmethod
    def one_of_ints(self, name: str) -> str:
        """What follows a column that has to be one of a list parameter's whole numbers."""

    @abstractmethod
    def one_of_texts(self, name: str) -> str:
        """The same for texts."""

    @abstractmethod
    def numbered(self, name: str) -> str:
        """A table of a list parameter's whole numbers: columns ``place``, from 0, and ``value``."""

    @abstractmethod
    def rows(self, name: str) -> str:
        """A table of a list parameter's rows: column ``value``, to be read by :meth:`item`, and ``place``."""

    @abstractmethod
    def item(self, column: str, place: int, kind: str = "bigint") -> str:
        """One item of a row: *kind* is ``bigint`` or ``text``."""

    @abstractmethod
    def pairs(self, name: str) -> str:
        """A table of an object parameter whose keys and values are whole numbers: columns ``key`` and ``value``."""

    @abstractmethod
    def named(self, name: str) -> str:
        """A table of an object parameter: columns ``key``, a text, and ``value``, a whole number."""

    @abstractmethod
    def members(self, column: str) -> str:
        """A table of the texts of a column that holds a JSON list: column ``value``."""

    @abstractmethod
    def final(self, column: str) -> str:
        """A condition: no row can appear any more whose place in commit order, *column*, is lower than this one's."""

    @abstractmethod
    def slice(self, name: str, place: str) -> str:
        """The part of a blob parameter that *place* names: offset << 31 | length."""

    @abstractmethod
    def list_of(self, value: str, order: str = "") -> str:
        """An aggregate: the values of a group as one JSON list, in *order* as after ORDER BY."""

    @abstractmethod
    def joined_blobs(self, column: str, order: str) -> str:
        """An aggregate: the blobs of a group one after the other, in *order*."""

    @abstractmethod
    def row_of(self, *columns: str) -> str:
        """Columns as one JSON row."""

    def joined(self, value: bytes | str | None) -> bytes:
        """What :meth:`joined_blobs` gave, as bytes."""
        if value is None:
            return b""
        return bytes.fromhex(value) if isinstance(value, str) else value


class Sql:
    """One statement, written once: a function of the dialect.

    Example:
        >>> statement = Sql(lambda d: f"SELECT id FROM treadle_jobs WHERE id IN ({d.ints('ids')})")
        >>> statement.sqlite
        'SELECT id FROM treadle_jobs WHERE id IN (SELECT value FROM json_each(:ids))'
    """

    __slots__ = ("make", "sqlite")

    def __init__(self, make: Callable[[Dialect], str]) -> None:
        self.make = make
        self.sqlite = make(SQLITE)

    def __repr__(self) -> str:
        return f"<Sql {' '.join(self.sqlite.split())[:60]}>"


class SqliteDialect(Dialect):
    """SQLite 3.37 or newer."""

    name = "sqlite"
    shares_rows = False
    among = "IN ("
    taken = ")"
    empty_blob = "x''"
    skip_locked = ""
    for_update = ""
    for_key_share = ""

    def __init__(self, joined_blob: str) -> None:
        self._joined_blob = joined_blob

    def text(self, sql: Sql | str) -> str:
        """The statement; made anew only where blobs are joined in another way."""
        if type(sql) is str:
            return sql
        assert isinstance(sql, Sql)
        return sql.sqlite if self is SQLITE else sql.make(self)

    def index(self, name: str) -> str:
        """``INDEXED BY``: the planner picks other indexes on an analysed file, and a claim gets quadratic."""
        return f"INDEXED BY {name}"

    def ints(self, name: str) -> str:
        """By ``json_each``."""
        return f"SELECT value FROM json_each(:{name})"

    def texts(self, name: str) -> str:
        """By ``json_each``."""
        return f"SELECT value FROM json_each(:{name})"

    def one_of_ints(self, name: str) -> str:
        """By ``IN``."""
        return f"IN ({self.ints(name)})"

    def one_of_texts(self, name: str) -> str:
        """By ``IN``."""
        return f"IN ({self.texts(name)})"

    def numbered(self, name: str) -> str:
        """By ``json_each``, whose keys are the places."""
        return f"(SELECT key AS place, value FROM json_each(:{name}))"

    def rows(self, name: str) -> str:
        """By ``json_each``."""
        return f"(SELECT key AS place, value FROM json_each(:{name}))"

    def item(self, column: str, place: int, kind: str = "bigint") -> str:
        """By ``json_extract``, which knows the kind itself."""
        return f"json_extract({column}, '$[{place}]')"

    def pairs(self, name: str) -> str:
        """By ``json_each``."""
        return f"(SELECT CAST(key AS INTEGER) AS key, value FROM json_each(:{name}))"

    def named(self, name: str) -> str:
        """By ``json_each``."""
        return f"json_each(:{name})"

    def members(self, column: str) -> str:
        """By ``json_each``."""
        return f"json_each({column})"

    def final(self, column: str) -> str:
        """Always: one transaction writes at a time."""
        return "1"

    def slice(self, name: str, place: str) -> str:
        """By ``substr``; an empty part is an empty blob and not NULL."""
        return f"coalesce(substr(:{name}, ({place} >> 31) + 1, {place} & 2147483647), x'')"

    def list_of(self, value: str, order: str = "") -> str:
        """By ``json_group_array``, which keeps the order of an ordered subselect."""
        return f"json_group_array({value})"

    def joined_blobs(self, column: str, order: str) -> str:
        """By ``group_concat``, which keeps the order of an ordered subselect."""
        return self._joined_blob.format(column=column)

    def row_of(self, *columns: str) -> str:
        """By ``json_array``."""
        return f"json_array({', '.join(columns)})"


class PostgresDialect(Dialect):
    """PostgreSQL 14 or newer.

    Args:
        schema: where Treadle's tables are; every name is qualified, so no connection needs a search path.
    """

    name = "postgresql"
    shares_rows = True
    # An array: a subselect after IN may be run again for each row, and take more than its limit.
    among = "= ANY (ARRAY("
    taken = "FOR UPDATE SKIP LOCKED))"
    empty_blob = "''::bytea"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    for_update = "FOR UPDATE"
    for_key_share = "FOR KEY SHARE"

    def __init__(self, schema: str = "treadle") -> None:
        self.schema = schema
        self.quoted = '"' + schema.replace('"', '""') + '"'
        self._texts: dict[Sql | str, str] = {}

    def text(self, sql: Sql | str) -> str:
        """The statement with qualified tables and psycopg's parameters; translated once."""
        found = self._texts.get(sql)
        if found is None:
            found = self._texts[sql] = self._translated(sql if isinstance(sql, str) else sql.make(self))
        return found

    def index(self, name: str) -> str:
        """Nothing: the planner chooses."""
        return ""

    def ints(self, name: str) -> str:
        """By ``jsonb_array_elements_text``."""
        return f"SELECT value::bigint FROM jsonb_array_elements_text(:{name}::jsonb) AS listed (value)"

    def texts(self, name: str) -> str:
        """By ``jsonb_array_elements_text``."""
        return f"SELECT value FROM jsonb_array_elements_text(:{name}::jsonb) AS listed (value)"

    def one_of_ints(self, name: str) -> str:
        """By an array: as a join the planner would rather sort a whole queue than read the first rows of an index."""
        return f"= ANY (ARRAY({self.ints(name)}))"

    def one_of_texts(self, name: str) -> str:
        """By an array, too."""
        return f"= ANY (ARRAY({self.texts(name)}))"

    def numbered(self, name: str) -> str:
        """With ordinality."""
        return (
            f"(SELECT place - 1 AS place, value::bigint AS value "
            f"FROM jsonb_array_elements_text(:{name}::jsonb) WITH ORDINALITY AS listed (value, place))"
        )

    def rows(self, name: str) -> str:
        """With ordinality."""
        return (
            f"(SELECT place - 1 AS place, value "
            f"FROM jsonb_array_elements(:{name}::jsonb) WITH ORDINALITY AS listed (value, place))"
        )

    def item(self, column: str, place: int, kind: str = "bigint") -> str:
        """By ``->>`` and a cast."""
        return f"({column} ->> {place})::{kind}"

    def pairs(self, name: str) -> str:
        """By ``jsonb_each_text``."""
        return (
            f"(SELECT key::bigint AS key, value::bigint AS value "
            f"FROM jsonb_each_text(:{name}::jsonb) AS listed (key, value))"
        )

    def named(self, name: str) -> str:
        """By ``jsonb_each_text``."""
        return f"(SELECT key, value::bigint AS value FROM jsonb_each_text(:{name}::jsonb) AS listed (key, value))"

    def members(self, column: str) -> str:
        """By ``jsonb_array_elements_text``."""
        return f"LATERAL (SELECT value FROM jsonb_array_elements_text({column}::jsonb) AS listed (value))"

    def final(self, column: str) -> str:
        """Places begin with the number of their transaction: those below every one still under way are final."""
        return (
            f"{column} < (pg_snapshot_xmin(pg_current_snapshot())::text::bigint "
            "+ (SELECT value::bigint FROM treadle_meta WHERE name = 'place_offset')) << 20"
        )

    def slice(self, name: str, place: str) -> str:
        """By ``substring``."""
        return f"substring(:{name}::bytea FROM ({place} >> 31)::int + 1 FOR ({place} & 2147483647)::int)"

    def list_of(self, value: str, order: str = "") -> str:
        """By ``json_agg``, as text."""
        ordered = f" ORDER BY {order}" if order else ""
        return f"coalesce(json_agg({value}{ordered}), '[]')::text"

    def joined_blobs(self, column: str, order: str) -> str:
        """By ``string_agg``."""
        return f"string_agg({column}, ''::bytea ORDER BY {order})"

    def row_of(self, *columns: str) -> str:
        """By ``json_build_array``."""
        return f"json_build_array({', '.join(columns)})"

    def qualified(self, text: str) -> str:
        """The same text, with its tables qualified."""
        return _OWN.sub(lambda found: f"{self.quoted}.{found[1]}", text)

    def _translated(self, text: str) -> str:
        qualified = self.qualified(text.replace("%", "%%"))
        return _PARAMETER.sub(r"%(\1)s", qualified).replace("?", "%s")


SQLITE: Final = SqliteDialect("CAST(group_concat({column}, '') AS BLOB)")
SQLITE_HEX: Final = SqliteDialect("group_concat(hex({column}), '')")
"""For builds whose group_concat stops at a NUL byte, and for UTF-16 databases."""
