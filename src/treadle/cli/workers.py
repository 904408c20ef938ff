"""``treadle workers``: who works, and what they are told to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import click

from treadle.app import Treadle
from treadle.cli.bulk import consent
from treadle.cli.completion import known_workers
from treadle.cli.options import by_option, dry_run_option, json_option, reason_option, yes_option
from treadle.cli.output import counted, moment, plain, safe, say, say_json, table
from treadle.cli.store import opened, store_option
from treadle.errors import WorkerNotFound
from treadle.model.job import WorkerRecord

workers_argument = click.argument(
    "names", metavar="NAME|SLOT...", nargs=-1, required=True, shell_complete=known_workers
)  # fmt: skip


@click.group()
def workers() -> None:
    """Look at workers and give them orders."""


@workers.command("list")
@store_option
@json_option
def list_workers(*, store: str | None, as_json: bool) -> None:
    """List registered workers; whether one lives is read from its lock."""
    with opened(store) as app:
        found = app.workers()
    if as_json:
        say_json({"workers": [plain(worker) | {"state": _state(worker)} for worker in found]})
        return
    if not found:
        say("No workers.")
        return
    heads = ("slot", "name", "pid", "host", "state", "orders", "running", "slots", "seen at", "queues", "tasks")
    table(heads, [
        (one.slot, one.name, one.pid, one.host, _state(one), _orders(one), one.running, one.concurrency, one.seen_at,
         ",".join(one.queues) or "every", ",".join(one.tasks))
        for one in found
    ])  # fmt: skip


@workers.command("pause")
@workers_argument
@by_option
@store_option
def pause_worker(*, names: tuple[str, ...], by: str | None, store: str | None) -> None:
    """Let workers start nothing; what they run goes on.

    A worker forgets it when it ends.
    """

    def act(app: Treadle, worker: str | int) -> None:
        app.pause(worker=worker, by=by)

    _order(store, names, act, "starts nothing more until it is resumed")


@workers.command("resume")
@workers_argument
@store_option
def resume_worker(*, names: tuple[str, ...], store: str | None) -> None:
    """Let paused workers start jobs again. A drain cannot be taken back."""

    def act(app: Treadle, worker: str | int) -> None:
        app.resume(worker=worker)

    _order(store, names, act, "starts jobs again", undoes=True)


@workers.command("drain")
@workers_argument
@by_option
@store_option
def drain_worker(*, names: tuple[str, ...], by: str | None, store: str | None) -> None:
    """Let workers finish what they run, and end.

    They start nothing more. A supervisor starts others.
    """

    def act(app: Treadle, worker: str | int) -> None:
        app.drain(worker, by=by)

    _order(store, names, act, "finishes what it runs, starts nothing more, and ends")


@workers.command("evict")
@workers_argument
@reason_option
@by_option
@dry_run_option
@yes_option
@store_option
def evict_worker(
    *, names: tuple[str, ...], reason: str, by: str | None, dry_run: bool, yes: bool, store: str | None
) -> None:
    """Take the jobs of a worker away although it lives.

    The last resort for one that is stuck. Attempts that had begun are charged with a crash and run again elsewhere,
    while the old handlers may go on until the worker notices: whatever they do twice is done twice. What they still
    write to the database is refused. Try 'drain' first; to end a hung process kill it, and its jobs go back by
    themselves.
    """
    with opened(store) as app:
        meant = [(name, *_find(app, name)) for name in dict.fromkeys(names)]
        for _, _, records in meant:
            for one in records:
                where = f"slot {one.slot}, pid {one.pid} on {safe(one.host)}"
                how = f"{_state(one)}, seen {moment(one.seen_at)}, and runs {counted(one.running, 'job')}"
                say(f"Worker {safe(one.name)} ({where}) is {how}.")
        say("Its jobs run elsewhere at once, charged with a crash, beside handlers that may still go on.")
        if dry_run:
            return
        consent("Evict?", yes=yes)
        for name, selector, _ in meant:
            taken = app.evict(selector, reason=reason, by=by)
            say(f"{safe(name)} is evicted; {counted(taken, 'job')} taken from it.")


def _order(
    store: str | None,
    names: Iterable[str],
    act: Callable[[Treadle, str | int], None],
    told: str,
    *,
    undoes: bool = False,
) -> None:
    """Give an order to each worker; exit code 1 when one cannot follow it any more."""
    refused = False
    with opened(store) as app:
        for name in dict.fromkeys(names):
            selector, records = _find(app, name)
            why = _refusal(records, undoes=undoes)
            if why is not None:
                refused = True
                say(f"Worker {safe(name)} {why}", err=True)
                continue
            act(app, selector)
            say("\n".join(f"worker {safe(one.name)} (slot {one.slot}) {told}" for one in records))
    if refused:
        sys.exit(1)


def _refusal(records: Iterable[WorkerRecord], *, undoes: bool) -> str | None:
    if not any(one.alive for one in records):
        return "is dead; a live worker takes back its jobs by itself."
    if undoes and any(one.orders == "drain" for one in records):
        return "drains, and that cannot be taken back; start another worker."
    return None


def _find(app: Treadle, text: str) -> tuple[str | int, list[WorkerRecord]]:
    """The workers of a name, or the one of a slot; a name goes first."""
    every = app.workers()
    selector: str | int = text
    if text.isascii() and text.isdecimal() and not any(one.name == text for one in every):
        selector = int(text)
    found = [one for one in every if selector in (one.slot, one.name)]
    if not found:
        raise WorkerNotFound(f"No worker {text!r} is registered; see 'treadle workers list'.")
    return selector, found


def _state(worker: WorkerRecord) -> str:
    return "dead" if not worker.alive else "stalled" if worker.stalled else "alive"


def _orders(worker: WorkerRecord) -> str:
    return "-" if worker.orders is None else f"{worker.orders} by {worker.ordered_by or 'somebody'}"
