"""The few SQL fragments in which databases differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """SQL fragments of one database; operations splice them into their statements once, at import.

    Attributes:
        name: "sqlite" or "postgresql".
        joined_blob: expression that concatenates the blobs of a group into one value.
        joined_is_hex: the concatenation is hexadecimal text and has to be decoded.
    """

    name: str
    joined_blob: str
    joined_is_hex: bool = False

    def joined(self, value: bytes | str | None) -> bytes:
        """The concatenated blob as bytes, whatever form the database gave it in."""
        if value is None:
            return b""
        return bytes.fromhex(value) if isinstance(value, str) else value


SQLITE = Dialect(name="sqlite", joined_blob="CAST(group_concat(data, '') AS BLOB)")
SQLITE_HEX = Dialect(name="sqlite", joined_blob="group_concat(hex(data), '')", joined_is_hex=True)
"""For builds whose group_concat stops at a NUL byte, and for UTF-16 databases."""
