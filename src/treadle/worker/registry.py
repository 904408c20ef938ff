"""Which tasks are known, by name and alias."""

from __future__ import annotations

from collections.abc import Iterable

from treadle.errors import DuplicateTask, UnknownTask
from treadle.model.definition import TaskDefinition
from treadle.model.parameters import label_of, module_of


class Registry:
    """Tasks by name; owned by one app."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskDefinition] = {}

    def add(self, definition: TaskDefinition) -> None:
        """Register *definition* under its name and aliases.

        Raises:
            DuplicateTask: a name is taken by another function.
        """
        for name in definition.names:
            known = self._tasks.get(name)
            if known is not None:
                raise DuplicateTask(
                    f"Two functions claim the task name {name!r}: {_place(known)} and {_place(definition)}. "
                    "Pass name= to one of them."
                )
        self._tasks.update(dict.fromkeys(definition.names, definition))

    def find(self, name: str) -> TaskDefinition | None:
        """The task called *name*, None when nobody registered it here."""
        return self._tasks.get(name)

    def get(self, name: str) -> TaskDefinition:
        """The task called *name*.

        Raises:
            UnknownTask: nobody registered it here.
        """
        found = self._tasks.get(name)
        if found is None:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise UnknownTask(
                f"No task named {name!r} is registered. Known: {known}. Did you import the module that defines it?"
            )
        return found

    def names(self, only: Iterable[str] | None = None) -> tuple[str, ...]:
        """Every known name, aliases included, sorted; or just those of the tasks named in *only*."""
        if only is None:
            return tuple(sorted(self._tasks))
        return tuple(sorted({alias for name in only for alias in self.get(name).names}))

    def modules(self, names: Iterable[str]) -> frozenset[str]:
        """The modules that have declared the tasks *names*."""
        return frozenset(module_of(self.get(name).function) for name in names)


def _place(definition: TaskDefinition) -> str:
    return f"{module_of(definition.function)}.{label_of(definition.function)}"
