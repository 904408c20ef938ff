"""The process that a crash test kills: ``python -m treadle.testing.victim HOME [ORDER]``.

It imports the app again, works on the store of the test, and runs one job with a real worker. Without an order it forks
a victim for each one that comes.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path

import msgspec

from treadle.app import Treadle
from treadle.errors import ConfigurationError
from treadle.host.failpoints import arm
from treadle.host.linetrace import trace_lines
from treadle.host.victims import breed, open_now, why_not_fork
from treadle.testing.fuse import Fuse
from treadle.testing.orders import Home, Order
from treadle.testing.running import work
from treadle.worker.location import find_again
from treadle.worker.options import WorkerOptions


def main(home_file: str, order_file: str | None = None) -> None:
    """Carry out one order, or one for each line of standard input."""
    before = open_now()
    home = msgspec.json.decode(Path(home_file).read_bytes(), type=Home)
    app = _app(home)
    if order_file is not None:
        carry_out(app, home.task, order_file)
        return
    breed(partial(carry_out, app, home.task), why_not_fork(before))


def carry_out(app: Treadle, task: str, order_file: str) -> None:
    """Run the job, and die on the way."""
    order = msgspec.json.decode(Path(order_file).read_bytes(), type=Order)
    fuse = Fuse(order.at, Path(order.note))
    arm(fuse.at_store, times=None)
    if order.places:
        trace_lines(order.places, fuse.at_line)
    with app.elsewhere(order.store):
        asyncio.run(work(app, WorkerOptions(tasks=(task,), concurrency=1), {}, order.timeout))


def _app(home: Home) -> Treadle:
    sys.path[:] = home.sys_path
    for name, file in home.modules:
        _bring(name, file)
    app = find_again(home.app, home.main, home.sys_path)
    if not isinstance(app, Treadle):
        raise ConfigurationError(f"{home.app} is a {type(app).__name__} in a fresh process, not a Treadle.")
    app.registry.get(home.task)
    return app


def _bring(name: str, file: str) -> None:
    """Import a module; from its file if it has no name that imports know, as test modules may."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(name, file) if _is_missing(error, name) else None
        if spec is None or spec.loader is None:
            raise
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _is_missing(error: ModuleNotFoundError, name: str) -> bool:
    """True when the module itself is not found, False when something it imports is not."""
    return error.name is not None and (name == error.name or name.startswith(f"{error.name}."))


if __name__ == "__main__":
    main(*sys.argv[1:])
