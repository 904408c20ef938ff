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
from functools import partial
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from treadle import defaults
from treadle.app import Treadle
from treadle.cli.output import safe
from treadle.cli.store import store_option, url_of
from treadle.clock import SystemClock
from treadle.errors import ConfigurationError, StoreError, StoreLost, TreadleError
from treadle.host.fleet import tell_supervisor
from treadle.host.process import end_at_late_signals, stop_own_process
from treadle.model.retention import Keep, Retention
from treadle.settings import Settings
from treadle.store.urls import without_password
from treadle.worker.capture import capture_logging, capture_output
from treadle.worker.options import WorkerOptions
from treadle.worker.process import end_despite_threads
from treadle.worker.supervisor import Supervisor
from treadle.worker.worker import Worker

STORE_LOST = 70
RECYCLING: Final = ("max_jobs", "max_age", "max_memory")
DAYS = click.FloatRange(min=0, max=36_500)
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
log = logging.getLogger("treadle.cli")


@click.command()
@click.argument("app", metavar="MODULE:APP")
@store_option
@click.option("--queues", help="Queues to take, in strict order: a,b. Or with weights: a=3,b=1. Default: every queue.")
@click.option("--tasks", help="Names of the tasks to run: a,b. Default: every one the app has.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Jobs at once. Default: 10.")
@click.option("--processes", type=click.IntRange(min=1), help="Worker processes to keep alive. Default: 1.")
@click.option("--name", help="What people call this worker. Default: host, pid and slot.")
@click.option("--grace", type=click.FloatRange(min=0), help="Seconds a stop waits for running jobs. Default: 25.")
@click.option("--burst", is_flag=True, help="End when there is nothing left to do now.")
@click.option("--max-jobs", type=click.IntRange(min=1), help="Attempts after which a fresh process takes over.")
@click.option("--max-age", type=click.FloatRange(min=0, min_open=True), help="Seconds after which one does.")
@click.option("--max-memory", type=click.IntRange(min=1), metavar="BYTES", help="Size beyond which one does.")
@click.option("--evict-stalled-after", type=float, metavar="SECONDS", help="Take the jobs of workers without a sign.")
@click.option("--keep-succeeded", metavar="DAYS", type=DAYS, help="Days succeeded jobs are kept. Default: 7.")
@click.option("--keep-failed", metavar="DAYS", type=DAYS, help="Days failed jobs are kept. Default: 90.")
@click.option("--until-eof", is_flag=True, help="Also stop when standard input ends: when the parent dies.")
@click.option("--status-fd", type=int, hidden=True, help="Where to tell a supervisor that this worker drains.")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
@click.pass_context
def worker(ctx: click.Context, /, **given: Any) -> None:
    """Run the jobs of MODULE:APP until SIGTERM or Ctrl-C.

    The first signal lets running jobs finish, the second cancels them, the third ends the process at once.

    With --processes, or a --max- option, a supervisor keeps worker processes alive: one that ends is started again,
    with a growing pause when it keeps failing; one that drains by itself is replaced at once.

    Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 70 the store was lost.
    """
    level = logging.DEBUG if given["verbose"] else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format=LOG_FORMAT)
    app = load_app(given["app"], given["store"])
    if not app.registry.names():
        raise ConfigurationError(f"{given['app']} has no tasks, so a worker would have nothing to do.")
    processes = given["processes"] or app.settings.processes or 1
    options = options_of(given, app.settings)
    if given["until_eof"]:
        threading.Thread(target=_stop_at_eof, name="treadle-eof", daemon=True).start()
    if given["status_fd"] is None and (processes > 1 or any(given[name] for name in RECYCLING)):
        app.close()
        command = partial(member_arguments, ctx, processes=processes)
        supervisor = Supervisor(command, processes, SystemClock(), burst=given["burst"])
        end_at_late_signals(lambda: supervisor.code)
        _leave(supervisor.run())
    working = app.worker(options)
    if given["status_fd"] is not None:
        working.on_draining = partial(tell_supervisor, given["status_fd"])
    end_at_late_signals(lambda: 0 if working.failure is None else _code_of(working.failure))
    _leave(_run(working, app, burst=given["burst"]))


def options_of(given: Mapping[str, Any], settings: Settings) -> WorkerOptions:
    """How the worker works: what was given, else what is set."""
    named = {name: given[name] for name in ("name", "grace", "evict_stalled_after", *RECYCLING)}
    named |= {
        "queues": parse_queues(given["queues"]) or settings.queues,
        "tasks": _words(given["tasks"]),
        "concurrency": given["concurrency"] or settings.concurrency,
        "retention": kept(given["keep_succeeded"], given["keep_failed"]),
    }
    return WorkerOptions(**{key: value for key, value in named.items() if value is not None})


def member_arguments(ctx: click.Context, place: int, *, processes: int) -> list[str]:
    """The command line of one supervised process: ours, but for what is the supervisor's."""
    words = ["worker", ctx.params["app"], "--until-eof"]
    for option in ctx.command.params:
        name, value = option.name or "", ctx.params.get(option.name or "")
        asked = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not asked or name in ("app", "processes", "until_eof", "status_fd"):
            continue
        if name == "name" and processes > 1:
            value = f"{value}-{place}"
        words += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    return words


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
        own = without_password(found.settings.store or "")
        raise ConfigurationError(f"{where} names its own store, {own}; leave --store out.")
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


def _run(working: Worker, app: Treadle, *, burst: bool) -> int:
    try:
        with capture_logging(), capture_output():
            working.run(burst=burst)
    except TreadleError as error:
        if working.failure is None and not isinstance(error, StoreLost):
            raise
        click.echo(safe(f"Error: {error}", lines=True), err=True)
        return _code_of(error)
    finally:
        app.close()
    return 0


def _code_of(error: TreadleError) -> int:
    return STORE_LOST if isinstance(error, StoreError) else 1


def _leave(code: int) -> NoReturn:
    end_despite_threads(code, defaults.EXIT_PATIENCE.total_seconds())
    sys.exit(code)


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
