from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worker.kit import PATIENCE, SOURCE

SHOP = """
    from treadle import Treadle

    app = Treadle("sqlite:///jobs.db")

    @app.task
    def greet(name: str) -> str:
        return "hello " + name

    if __name__ == "__main__":
        job = greet.enqueue("ada")
        print(job.task)
        app.close()
"""
LATER = """
    import sys
    from {module} import app

    with app.worker():
        print(app.result(int(sys.argv[1]), timeout={patience}))
    app.close()
"""


def run(folder: Path, *words: str) -> str:
    """Run a Python in *folder* to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{folder}"},
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("file", "words", "module"),
    [
        ("shop.py", ("shop.py",), "shop"), ("shop.py", ("./shop.py",), "shop"), ("shop.py", ("-m", "shop"), "shop"),
        ("house/shop.py", ("-m", "house.shop"), "house.shop"),
        ("house/__main__.py", ("-m", "house"), "house.__main__"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)  # fmt: skip
def test_a_started_module_and_an_imported_one_agree(
    tmp_path: Path, file: str, words: tuple[str, ...], module: str
) -> None:
    """Jobs that a script enqueues are run by a worker that imports the same file."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(textwrap.dedent(SHOP), encoding="utf-8")
    (tmp_path / "later.py").write_text(textwrap.dedent(LATER).format(module=module, patience=PATIENCE))
    assert run(tmp_path, *words) == f"{module}.greet"
    assert run(tmp_path, "later.py", "1") == "hello ada"


def test_the_worker_command_runs_what_a_script_enqueued(tmp_path: Path) -> None:
    """``python shop.py`` enqueues, ``treadle worker shop:app`` runs: the same task, never held as unknown."""
    code = """
        if __name__ == "__main__":
            import subprocess, sys
            job = greet.enqueue("bob")
            worker = subprocess.Popen([sys.executable, "-m", "treadle", "worker", "shop:app"])
            try:
                print(job.result(timeout=60))
            finally:
                worker.terminate()
                worker.wait(60)
            app.close()
    """
    text = textwrap.dedent(SHOP).partition("if __name__")[0] + textwrap.dedent(code)
    (tmp_path / "shop.py").write_text(text, encoding="utf-8")
    assert run(tmp_path, "shop.py") == "hello bob"


def test_a_program_without_a_file_keeps_its_name(tmp_path: Path) -> None:
    """Code given on the command line has no module that others could import."""
    code = "from treadle import Treadle\ndef f(): ...\nprint(Treadle('memory://').task(f).name)"
    assert run(tmp_path, "-c", code) == "__main__.f"
