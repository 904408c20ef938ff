"""Processes that measure: ``python -m benchmarks.child module:function '{"key": value}'``.

The function is a generator. It sets up, yields when it is ready, goes on when told to and returns a
value that can be written as JSON. A second yield, if it has one, waits to be told to stop.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Generator
from typing import Any

from benchmarks import ROOT

Role = Generator[None, None, Any]


class Child:
    """A running role.

    Args:
        role: ``benchmarks.module:function``.
        **arguments: what the function gets.
    """

    def __init__(self, role: str, **arguments: object) -> None:
        paths = [str(ROOT), str(ROOT / "src")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", role, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        self.pid = self._process.pid
        atexit.register(self._process.kill)  # a measurement that failed leaves nobody behind

    def ready(self) -> Child:
        """Wait until it has set up."""
        self._expect("ready")
        return self

    def go(self) -> Child:
        """Tell it to go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self

    def result(self) -> Any:
        """Wait for its end and return what it returned."""
        found = json.loads(self._expect("result"))
        self._process.communicate()
        return found

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def run(self) -> Any:
        """From setup to result in one call."""
        return self.ready().go().result()

    def _expect(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found, _, rest = line.partition(" ")
            if found.strip() == word:
                return rest
        raise SystemExit(f"A measuring process ended with code {self._process.wait()} before it said {word!r}.")


def stop_all(children: list[Child]) -> list[Any]:
    """Tell every child to go on, then collect what they return."""
    for child in children:
        child.go()
    return [child.result() for child in children]


def main(role: str, arguments: str) -> None:
    logging.basicConfig(level=logging.ERROR)
    module, _, name = role.partition(":")
    steps: Role = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    try:
        while True:
            next(steps)
            print("ready", flush=True)
            if not sys.stdin.readline():
                sys.exit(3)  # the measuring process is gone
    except StopIteration as end:
        print("result", json.dumps(end.value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
