"""The face of treadle.testing: small, documented, and nobody's burden."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import treadle
from treadle import testing
from treadle.testing.running import adrain, arun_pending, drain, run_pending

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted([*testing.__all__, *testing.Like.__annotations__]))
def test_every_name_is_on_its_page(name: str) -> None:
    """Whatever can be imported from treadle.testing is on docs/testing.md, and so is what can be asked for."""
    assert re.search(rf"(?<!\w){name}(?!\w)", PAGE)


def test_names_are_sorted_importable_and_described() -> None:
    """Every name exists and has a docstring."""
    names = testing.__all__
    assert [name for name in names if not (getattr(testing, name).__doc__ or "").strip()] == []
    assert sorted(names, key=lambda name: (not name[0].isupper(), name)) == names


@pytest.mark.parametrize(
    ("verb", "twin"), [(run_pending, arun_pending), (drain, adrain), (testing.perform, testing.aperform)]
)
def test_twins_are_alike(verb: Callable[..., object], twin: Callable[..., object]) -> None:
    """A verb and its coroutine take and return the same."""
    assert inspect.signature(verb) == inspect.signature(twin)
    assert inspect.iscoroutinefunction(twin)


def test_import_treadle_leaves_it_out() -> None:
    """A program pays nothing for the kit unless it imports it; and importing it opens no database and no pytest."""
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "sqlite3.connect" else None)
import treadle
print([name for name in sys.modules if name.startswith("treadle.testing")])
import treadle.testing
print([name for name in ("pytest", "_pytest") if name in sys.modules], opened)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(treadle.__file__).parents[1])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[]", "[] []"]
