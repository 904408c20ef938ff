"""One visible effect for each job, whatever kills its process; the full size is ``python3 dev.py effects``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import postgres

EFFECTS = Path(__file__).with_name("effects.py")


def effects(*words: str) -> str:
    """Run the program and return what it printed; the seed is in it."""
    ended = subprocess.run([sys.executable, EFFECTS, *words], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("store", "trials"), [("sqlite", 20), ("postgresql", 10)])
def test_every_job_has_exactly_one_effect(store: str, trials: int) -> None:
    """Processes killed around the commit of an effect and its job's success leave both or neither."""
    if store == "postgresql":
        postgres.needed()
    assert "0 jobs without, 0 with more than one" in effects("--store", store, "--trials", str(trials))


def test_without_transactions_effects_are_doubled() -> None:
    """The trials see what they look for: an effect that is committed by itself is repeated after a kill."""
    assert "0 with more than one" not in effects("--store", "sqlite", "--trials", "6", "--control")
