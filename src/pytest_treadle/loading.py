"""Importing the app under test."""

from __future__ import annotations

from functools import reduce
from importlib import import_module

import pytest

from treadle import Treadle


def load_app(name: str) -> Treadle:
    """The Treadle called ``MODULE:APP``.

    Raises:
        pytest.UsageError: it is not there.
    """
    module, _, attribute = name.partition(":")
    try:
        found: object = reduce(getattr, attribute.split("."), import_module(module))
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(
            f"treadle_app = {name!r} cannot be imported: {error}. Write MODULE:APP; the setting pythonpath says where "
            "modules are."
        ) from error
    if not isinstance(found, Treadle):
        raise pytest.UsageError(f"treadle_app = {name!r} is a {type(found).__name__}, not a Treadle.")
    return found
