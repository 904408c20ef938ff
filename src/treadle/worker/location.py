"""Where a program's Treadle object is, so that a fresh Python can import the same one."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from treadle.errors import ConfigurationError

STARTED: Final = "__main__"
REBORN: Final = "__mp_main__"
"""What multiprocessing calls a program's main module in its children; guards of the form
``if __name__ == "__main__":`` keep it from starting again, here as there."""


class Location(NamedTuple):
    """How to find an object again.

    Attributes:
        app: ``module:attribute``.
        main: path of the file or name of the module (``-m``) the program was started with, when *app* is taken from it.
        sys_path: where imports look.
    """

    app: str
    main: str
    sys_path: Sequence[str]


def find_location(wanted: object, declaring: Container[str] = ()) -> Location | None:
    """Look for *wanted* among the attributes of the imported modules; None when it is in none of them.

    The module that the program was started with comes last: a script of three lines need not run again for an app
    that it has imported. Only when it declares tasks itself it comes first.

    Args:
        wanted: the app.
        declaring: names of the modules that declare tasks on it.
    """
    modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    started_last = STARTED not in declaring
    for name, module in sorted(modules, key=lambda each: (each[0] == STARTED) == started_last):
        attribute = _name_in(module, wanted) if name != REBORN else None
        main = _main_of(module) if name == STARTED else ""
        if attribute is not None and main is not None:
            return Location(f"{name}:{attribute}", main, list(sys.path))
    return None


def find_again(app: str, main: str, sys_path: Sequence[str]) -> object:
    """Import what :func:`find_location` found, in another process.

    Raises:
        ConfigurationError: it is not there.
    """
    sys.path[:] = sys_path
    module_name, _, attribute = app.partition(":")
    if module_name == STARTED:
        _start_again(main)
    found: object = importlib.import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"There is no {app} in a fresh process; make it at the top of its module.")
        found = getattr(found, part)
    return found


def _name_in(module: ModuleType, wanted: object) -> str | None:
    return next((name for name, value in list(vars(module).items()) if value is wanted), None)


def _main_of(module: ModuleType) -> str | None:
    """What to run to have the main module again; None for an interactive session."""
    if module.__spec__ is not None:
        return f"-m {module.__spec__.name}"
    file = getattr(module, "__file__", None)
    return None if file is None else str(Path(file).resolve())


def _start_again(main: str) -> None:
    """Run the program's main module under another name, and let it stand in for both names."""
    stand_in = ModuleType(REBORN)
    if main.startswith("-m "):
        names = runpy.run_module(main.removeprefix("-m "), run_name=REBORN, alter_sys=True)
    else:
        names = runpy.run_path(main, run_name=REBORN)
    stand_in.__dict__.update(names)
    sys.modules[STARTED] = sys.modules[REBORN] = stand_in
