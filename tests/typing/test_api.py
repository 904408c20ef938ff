from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_types_flow_through() -> None:
    """Mypy --strict sees arguments and results as declared, and finds every wrong argument in api.py."""
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--no-error-summary",
            "--cache-dir", str(ROOT / ".mypy_cache" / "typing"), str(Path(__file__).with_name("api.py")),
        ],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT / "src"), "NO_COLOR": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
