"""Processes that run one job of a crash test and die at a place: forked where that is safe, fresh ones otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.app import Treadle
from treadle.errors import ConfigurationError
from treadle.host.linetrace import Place
from treadle.host.process import running
from treadle.host.victims import KILLED, READY, Nursery, run_fresh
from treadle.model.definition import TaskDefinition
from treadle.model.parameters import body_of, module_of
from treadle.testing.orders import Home, Order
from treadle.worker.location import Location, find_location

MODULE: Final = "treadle.testing.victim"
SPARE: Final = 10.0
"""Seconds beyond a job's own that its process may take."""
TAIL: Final = 2000
log = logging.getLogger("treadle.testing")


class Killer:
    """Lets processes run a stored job of one task and die.

    Args:
        app: an attribute of a module.
        task: name of the job's task.
        functions: whose lines are places.
        folder: for what processes are told and what they print.
        timeout: seconds a job may take.
    """

    def __init__(
        self, app: Treadle, task: str, functions: Sequence[Callable[..., Any]], folder: Path, timeout: float
    ) -> None:
        self._task = task
        self._places = [_place(function) for function in functions]
        self._timeout = timeout
        self._home, self._order = folder / "home.json", folder / "order.json"
        self._note, self._output = folder / "places", folder / "output"
        self._home.write_bytes(msgspec.json.encode(_home(app, app.registry.get(task))))
        self._nursery: Nursery | None = None
        self._can_fork: bool | None = None

    def run(self, store: str, at: int) -> list[str]:
        """Run the job of a store in a process that dies at one place, 0 for none; the places that were passed.

        Raises:
            AssertionError: it ended otherwise; the message has what it printed.
        """
        self._note.write_bytes(b"")
        order = Order(store=store, note=str(self._note), at=at, places=self._places, timeout=self._timeout)
        self._order.write_bytes(msgspec.json.encode(order))
        code = self._run()
        passed = self._note.read_text(encoding="utf-8").splitlines()
        if code == 0 or (code == KILLED and len(passed) == at):
            return passed
        how = "did not end in time" if code is None else f"ended with code {code}"
        told = self._output.read_bytes()[-TAIL:].decode(errors="replace").strip()
        raise AssertionError(f"The process that was to run {self._task} {how}, and not by our kill:\n{told}")

    def close(self) -> None:
        """End what is left."""
        if self._nursery is not None:
            self._nursery.close()

    def _run(self) -> int | None:
        patience = self._timeout + SPARE
        if self._can_fork is None:
            self._nursery = Nursery(running(MODULE, str(self._home)), self._output)
            hello = self._nursery.hello(patience)
            self._can_fork = hello == READY
            if hello is not None and not self._can_fork:
                log.info("Each kill of %s takes a fresh process, none is forked: %s.", self._task, hello)
        if self._can_fork:
            assert self._nursery is not None
            return self._nursery.run(str(self._order), patience)
        return run_fresh(running(MODULE, str(self._home), str(self._order)), self._output, patience)


def _home(app: Treadle, definition: TaskDefinition) -> Home:
    where = _location(app, definition)
    names = dict.fromkeys((where.app.partition(":")[0], module_of(definition.function)))
    modules = [(name, str(getattr(sys.modules.get(name), "__file__", None) or "")) for name in names]
    return Home(
        app=where.app, main=where.main, sys_path=list(where.sys_path),
        modules=[one for one in modules if one[0] != "__main__"], task=definition.name,
    )  # fmt: skip


def _location(app: Treadle, definition: TaskDefinition) -> Location:
    """Where a fresh process finds the app: in the module of the task if it can be."""
    declaring = module_of(definition.function)
    if declaring != "__main__" and declaring in sys.modules:
        for name, value in vars(sys.modules[declaring]).items():
            if value is app:
                return Location(f"{declaring}:{name}", "", list(sys.path))
    found = find_location(app, {declaring})
    if found is None:
        raise ConfigurationError(
            "No module has this Treadle as an attribute, so a fresh process could not import it to be killed. Make the "
            "app and the task at the top of a module; it may be that of the test."
        )
    return found


def _place(function: Callable[..., Any]) -> Place:
    """Where the lines of a function are, below its decorators."""
    code = getattr(unwrap(body_of(function)), "__code__", None)
    if code is None:
        raise ConfigurationError(f"{function!r} has no lines of Python to kill before; pass lines=False.")
    return Place.of(code)
