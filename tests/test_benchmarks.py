"""Every benchmark still runs, with tiny sizes. What they measure is for ``python3 dev.py bench``, never for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))
NAMES = [path.stem for path in FILES if "\ndef run(bench: Bench)" in path.read_text("utf-8")]


def test_they_are_found() -> None:
    """The test below runs what it claims to run."""
    assert {"drain", "enqueue", "pickup", "rescue", "server"} <= set(NAMES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    """It ends, and has figures."""
    measured = tmp_path / "measured.json"
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick", "--repeat", "1", "--json", measured,
         "--folder", tmp_path],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (section,) = json.loads(measured.read_text("utf-8"))["sections"]
    assert all(figure["values"] for figure in section["figures"])
