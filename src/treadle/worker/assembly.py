"""Putting a worker's parts together, and finding out beforehand whether they can work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec

from treadle import defaults
from treadle.errors import ConfigurationError, TreadleError
from treadle.model.codec import CodecRegistry
from treadle.model.settle import Transition
from treadle.store.store import Store
from treadle.worker.around import Around
from treadle.worker.children import Children
from treadle.worker.claimer import AHEAD_MOST, Claimer
from treadle.worker.context import JobContext
from treadle.worker.crew import Crew
from treadle.worker.desk import WorkerDesk
from treadle.worker.events import Events
from treadle.worker.extensions import Extensions
from treadle.worker.fitness import Fitness
from treadle.worker.location import Location
from treadle.worker.options import WorkerOptions
from treadle.worker.orders import Orders
from treadle.worker.pools import ThreadPool
from treadle.worker.presence import Presence
from treadle.worker.registry import Registry
from treadle.worker.resources import Resources
from treadle.worker.runner import Runner
from treadle.worker.settler import Settler
from treadle.worker.talk import Birth
from treadle.worker.upkeep import Upkeep


class AppParts(NamedTuple):
    """What a worker needs of its app, and how it works."""

    registry: Registry
    codecs: CodecRegistry
    extensions: Extensions
    options: WorkerOptions


class Hooks(NamedTuple):
    """What the parts tell their worker.

    Attributes:
        stored: transitions are stored; the leases of those that were refused.
        lost: the progress of this lease was refused.
        room: a slot became free.
        idle: nothing is left to claim and nothing runs.
        drain: the worker should drain and end, for this reason; on its loop.
        gone: this worker is not registered any more; from any thread.
        fail: the store can no longer be used, or a part broke.
        stop_soon: as drain, from any thread.
        on_loop: runs a coroutine on its loop for another thread.
        raised: a handler raised this under this lease; on the handler's thread. None outside of tests.
    """

    stored: Callable[[Sequence[Transition], Sequence[int]], None]
    lost: Callable[[int], None]
    room: Callable[[], None]
    idle: Callable[[], None]
    drain: Callable[[str], None]
    gone: Callable[[], None]
    fail: Callable[[TreadleError], None]
    stop_soon: Callable[[str], None]
    on_loop: Callable[[Coroutine[Any, Any, Any]], Any]
    raised: Callable[[int, BaseException], None] | None = None


class Parts(NamedTuple):
    """The parts of a worker."""

    settler: Settler
    events: Events
    resources: Resources
    crew: Crew
    claimer: Claimer
    orders: Orders
    fitness: Fitness
    upkeep: Upkeep


def check(app: AppParts, names: tuple[str, ...], location: Location | None) -> None:
    """Find out before a worker registers whether it can run the tasks called *names*.

    Raises:
        ConfigurationError: a task wants a resource that nobody makes, or a process of its own in which the app
            cannot be imported.
    """
    for definition in map(app.registry.get, names):
        if definition.isolated and location is None:
            raise ConfigurationError(
                f"{definition.name} should run in a process of its own, but no module has this Treadle as an "
                "attribute, so a fresh process could not import it. Make it at the top of a module."
            )
        for name, kind in definition.signature.injected.items():
            if kind is not JobContext and kind not in app.extensions.resources:
                raise ConfigurationError(
                    f"{definition.name} wants a {kind.__qualname__} as {name!r}, and no @app.resource makes one."
                )


def assemble(
    app: AppParts, store: Store, presence: Presence, store_id: str, location: Location | None, hooks: Hooks
) -> Parts:
    """Make the parts of a registered worker; nothing is started."""
    options, clock, slots = app.options, store.clock, app.options.concurrency
    names = app.registry.names(options.tasks)
    settler = Settler(store, presence.name, hooks.stored, hooks.lost, hooks.fail)
    desk = WorkerDesk(store, store_id, presence.mark, settler, hooks.stop_soon)
    events = Events(app.extensions.subscribers, clock, presence.name, hooks.stop_soon)
    resources = Resources(app.extensions.resources, hooks.on_loop)
    threads = ThreadPool(slots, "treadle-job")
    runner = Runner(app.codecs, Around(app.extensions, resources), threads.call, hooks.raised)
    birth = None if location is None else Birth(location, presence.children_lock, presence.mark, presence.name)
    crew = Crew(
        slots, app.registry, runner, settler, desk, events, threads, None if birth is None else Children(birth, desk),
        store, presence.roll, clock, hooks.room, hooks.drain,
    )  # fmt: skip
    desk.find = crew.find
    claimer = Claimer(
        store, presence, crew, options.queues, names, _caps(app.registry, names), clock, hooks.fail, hooks.idle,
        AHEAD_MOST if hooks.raised is None else 0,
    )  # fmt: skip
    return Parts(
        settler, events, resources, crew, claimer,
        Orders(store, presence, crew, claimer, hooks.drain, hooks.gone, hooks.fail),
        Fitness(options, clock, hooks.drain),
        Upkeep(store, presence, lambda: names, options, store_id, clock, hooks.gone, hooks.fail),
    )  # fmt: skip


def _caps(registry: Registry, names: tuple[str, ...]) -> str:
    """The crash caps of tasks that have one of their own, as JSON; empty for none."""
    caps = {name: cap for name in names if (cap := registry.get(name).crash_cap) != defaults.CRASH_CAP}
    return msgspec.json.encode(caps).decode() if caps else ""
