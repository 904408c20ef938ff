"""Processes that Treadle starts find what their parent found, however that was: by edits of sys.path too."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import msgspec
import pytest

from worker.kit import PATIENCE, SOURCE

# A Python of its own, in which nothing is installed: the script finds Treadle, its dependencies and the app by itself.
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from shop import app, tell
if __name__ == "__main__":
    {use}
"""
SHOP = """
import os, sys
from treadle import Treadle
app = Treadle("sqlite:///" + os.environ["SHOP"])
@app.task(name="tell", isolation="process")
def tell() -> str:
    import helper
    return helper.WORD
"""
CHILD = """with app.worker():
        print(tell.enqueue().result(60))
    app.close()"""
MEMBERS = """from treadle.cli import main
    from treadle import Treadle
    job = tell.enqueue()
    app.close()
    sys.argv[1:] = ["worker", "shop:app", "--processes", "2", "--burst"]
    try:
        main()
    finally:
        with Treadle(app.settings.store) as seen:
            print(seen.result(job.id, timeout=60))"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python without packages."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare/bin/python"
    ended = subprocess.run([python, "-c", "import treadle"], cwd=tmp_path, capture_output=True, env={}, check=False)
    assert b"No module named 'treadle'" in ended.stderr
    return python


@pytest.mark.parametrize("use", [CHILD, MEMBERS], ids=["child", "members"])
def test_edits_of_the_import_path_are_passed_on(bare: Path, tmp_path: Path, use: str) -> None:
    """Children and supervised workers import Treadle, the app and what handlers import from where the script did."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/shop.py").write_text(SHOP)
    (tmp_path / "elsewhere/helper.py").write_text("WORD = 'found'")
    packages = str(Path(msgspec.__file__).parents[1])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[SOURCE, packages, str(tmp_path / "elsewhere")], use=use))
    ended = subprocess.run(
        [bare, script], capture_output=True, text=True, timeout=2 * PATIENCE, check=False, cwd=tmp_path,
        env={"SHOP": str(tmp_path / "jobs.db"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert ended.stdout == "found\n", ended.stderr
