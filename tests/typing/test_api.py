from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["api.py", "testing_api.py"])
def test_types_flow_through(page: str) -> None:
    """Mypy --strict sees arguments and results as declared, and finds every wrong argument in the page."""
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--no-error-summary",
            "--cache-dir", str(ROOT / ".mypy_cache" / "typing"), str(Path(__file__).with_name(page)),
        ],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT / "src"), "NO_COLOR": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
