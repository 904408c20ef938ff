"""``treadle worker``: run an application's jobs until told to stop."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import click

from treadle.app import Treadle
from treadle.cli.output import safe
from treadle.cli.store import store_option, url_of
from treadle.errors import ConfigurationError, StoreError, TreadleError
from treadle.host.process import stop_own_process
from treadle.model.retention import Keep, Retention
from treadle.worker.capture import capture_logging, capture_output
from treadle.worker.options import WorkerOptions
from treadle.worker.worker import Worker

STORE_LOST = 70
DAYS = click.FloatRange(min=0, max=36_500)
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
log = logging.getLogger("treadle.cli")


@click.command()
@click.argument("app", metavar="MODULE:APP")
@store_option
@click.option("--queues", help="Queues to take, in strict order: a,b. Or with weights: a=3,b=1. Default: every queue.")
@click.option("--tasks", help="Names of the tasks to run: a,b. Default: every one the app has.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Jobs at once. Default: 10.")
@click.option("--name", help="What people call this worker. Default: host, pid and slot.")
@click.option("--grace", type=click.FloatRange(min=0), help="Seconds a stop waits for running jobs. Default: 25.")
@click.option("--keep-succeeded", metavar="DAYS", type=DAYS, help="Days succeeded jobs are kept. Default: 7.")
@click.option("--keep-failed", metavar="DAYS", type=DAYS, help="Days failed jobs are kept. Default: 90.")
@click.option("--until-eof", is_flag=True, help="Also stop when standard input ends: when the parent dies.")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
def worker(
    app: str,
    store: str | None,
    queues: str | None,
    tasks: str | None,
    concurrency: int | None,
    name: str | None,
    grace: float | None,
    keep_succeeded: float | None,
    keep_failed: float | None,
    *,
    until_eof: bool,
    verbose: bool,
) -> None:
    """Run the jobs of MODULE:APP until SIGTERM or Ctrl-C.

    The first signal lets running jobs finish, the second cancels them.

    Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 70 the store was lost.
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, stream=sys.stderr, format=LOG_FORMAT)
    found = load_app(app, store)
    if not found.registry.names():
        raise ConfigurationError(f"{app} has no tasks, so a worker would have nothing to do.")
    given = {
        "queues": parse_queues(queues) or found.settings.queues,
        "tasks": _words(tasks),
        "concurrency": concurrency or found.settings.concurrency,
        "name": name,
        "grace": grace,
        "retention": kept(keep_succeeded, keep_failed),
    }
    working = found.worker(WorkerOptions(**{key: value for key, value in given.items() if value is not None}))  # type: ignore[arg-type]
    if until_eof:
        threading.Thread(target=_stop_at_eof, name="treadle-eof", daemon=True).start()
    _run(working, found)


def load_app(where: str, store: str | None) -> Treadle:
    """Import the Treadle that *where* names; the current folder comes first on the path.

    Raises:
        click.UsageError: there is no such module or attribute, or it is not a Treadle.
        ConfigurationError: the app has a store of its own and another one was asked for.
    """
    module_name, separator, attribute = where.partition(":")
    if not module_name or not separator or not attribute:
        raise click.UsageError(f"{safe(where)!r} is not MODULE:APP, such as shop.jobs:app.")
    if store is not None:
        os.environ["TREADLE_STORE"] = url_of(store)  # read by an app that names no store itself
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    log.debug("%s is on sys.path, so modules there are found.", here)
    found: object = _module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"Module {module_name} has no attribute {attribute!r}.")
        found = getattr(found, part)
    if not isinstance(found, Treadle):
        raise click.UsageError(f"{where} is a {type(found).__name__}, not a Treadle.")
    if store is not None and found.settings.store != url_of(store):
        raise ConfigurationError(f"{where} names its own store, {found.settings.store}; leave --store out.")
    return found


def parse_queues(text: str | None) -> tuple[str, ...] | Mapping[str, int] | None:
    """Read ``a,b`` or ``a=3,b=1``.

    Raises:
        click.UsageError: the two are mixed, or a weight is not a whole number above 0.

    Example:
        >>> parse_queues("mail,reports"), parse_queues("mail=3,reports=1")
        (('mail', 'reports'), {'mail': 3, 'reports': 1})
    """
    words = _words(text)
    if words is None or not any("=" in word for word in words):
        return words
    pairs = [word.rpartition("=") for word in words]
    if not all(name and weight.isascii() and weight.isdecimal() and int(weight) for name, _, weight in pairs):
        raise click.UsageError(f"--queues {safe(text or '')!r}: write a,b or a=3,b=1, with whole numbers from 1 on.")
    return {name: int(weight) for name, _, weight in pairs}


def kept(succeeded: float | None, failed: float | None) -> Retention:
    """How long ended jobs are kept, from days; None leaves the default.

    Example:
        >>> kept(1, None).succeeded, kept(1, None).failed == Retention().failed
        (Keep(age=datetime.timedelta(days=1), count=None), True)
    """
    days = {"succeeded": succeeded, "failed": failed}
    rules = {name: Keep(age=timedelta(days=value)) for name, value in days.items() if value is not None}
    return replace(Retention(), **rules)


def _run(working: Worker, app: Treadle) -> None:
    try:
        with capture_logging(), capture_output():
            working.run()
    except TreadleError as error:
        if working.failure is None:
            raise
        click.echo(safe(f"Error: {error}", lines=True), err=True)
        sys.exit(STORE_LOST if isinstance(error, StoreError) else 1)
    finally:
        app.close()


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there; something that it imports is not, and the traceback says what
        raise click.UsageError(f"There is no module {name!r}; looked in {os.getcwd()} and the Python path.") from error


def _stop_at_eof() -> None:
    # os.read and not sys.stdin: a thread inside sys.stdin's lock would break the interpreter's exit.
    while os.read(0, 4096):
        continue
    stop_own_process()


def _words(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    return words or None
