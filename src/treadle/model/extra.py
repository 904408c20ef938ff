"""What only some jobs carry, as one small JSON object: a retry policy of their own, and meta."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from treadle.errors import ConfigurationError, InvalidPayload
from treadle.model.codec import JsonCodec
from treadle.model.retry import Retry


def encode_extra(retry: Retry | None, meta: Mapping[str, object] | None) -> str | None:
    """Encode what is given, None when nothing is.

    Raises:
        InvalidPayload: *meta* holds a value JSON cannot carry.

    Example:
        >>> encode_extra(None, {"tenant": 7})
        '{"meta":{"tenant":7}}'
    """
    stored: dict[str, object] = {}
    if retry is not None:
        stored["retry"] = msgspec.json.decode(retry.to_json())
    if meta:
        if not all(isinstance(key, str) for key in meta):
            raise InvalidPayload(f"meta keys must be text, not {list(meta)!r}")
        stored["meta"] = dict(meta)
    return JsonCodec().encode(stored).decode() if stored else None


def policy_of(extra: str, default: Retry) -> Retry:
    """The retry policy in force for a job: its own counts and delays, the task's exception rules.

    Raises:
        ConfigurationError: *extra* cannot be read.
    """
    try:
        stored = msgspec.json.decode(extra)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"The stored options {extra[:200]!r} cannot be read: {error}") from error
    own = stored.get("retry") if isinstance(stored, dict) else None
    return default if own is None else Retry.from_json(msgspec.json.encode(own).decode()).with_rules_of(default)


def meta_of(extra: str | None) -> dict[str, object]:
    """The meta a job carries; empty when it has none or it cannot be read."""
    if extra is None:
        return {}
    try:
        stored = msgspec.json.decode(extra)
    except msgspec.MsgspecError:
        return {}
    meta = stored.get("meta") if isinstance(stored, dict) else None
    return meta if isinstance(meta, dict) else {}
