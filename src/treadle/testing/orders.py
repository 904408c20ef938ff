"""What the processes of a crash test are told."""

from __future__ import annotations

import msgspec

from treadle.host.linetrace import Place


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """What a victim imports.

    Attributes:
        app: ``module:attribute``.
        main: what the program was started with, when the app is taken from that.
        sys_path: where imports look.
        modules: name and file of the modules that make the app and declare the task.
        task: the task's name.
    """

    app: str
    main: str
    sys_path: list[str]
    modules: list[tuple[str, str]]
    task: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a victim does.

    Attributes:
        store: URL of the store that has the job.
        note: file for the places that are passed.
        at: at which place to die, 0 for none.
        places: functions whose lines are places.
        timeout: seconds the job may take.
    """

    store: str
    note: str
    at: int
    places: list[Place]
    timeout: float
