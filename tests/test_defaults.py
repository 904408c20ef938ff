"""docs/defaults.md has every default there is, with its value: of the code, of parameters and of the command line."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import treadle
import treadle.testing
from treadle import Backoff, Job, JobContext, Keep, Retention, Retry, Task, Treadle, WorkerOptions, defaults
from treadle.cli.main import main
from treadle.cli.worker import options_of
from treadle.declare import Policy, define
from treadle.model.codec import CodecRegistry
from treadle.settings import DEFAULTS, Settings
from treadle.tasks import Bound

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<value>[^|]+) \| (?P<meaning>[^|]+) \|$", re.MULTILINE)
UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "min": timedelta(minutes=1), "s": timedelta(seconds=1)}
IN_HELP = re.compile(r"Default: (.+?)\.(?=$|\s[A-Z])")
EVERYWHERE = ("--store", "--by")
"""Options that many commands have; the page has them once."""
CALLED: tuple[type, ...] = (Treadle, Task, Bound, Job, JobContext)
"""Classes whose methods people call."""
MADE: tuple[type, ...] = (Treadle, WorkerOptions, Retry, Backoff, Keep)
"""Classes that people make."""
INNER = {"Bound", "Treadle.store_now", "Treadle.store_soon"}


def shown(value: object) -> str:
    """Write a default the way the page writes it."""
    match value:
        case timedelta():
            return length(value)
        case Retention():
            return kept(value)
        case Retry():
            return "Retry()"
        case None | () | "" | Mapping():
            return "none"
        case bool():
            return "yes" if value else "no"
        case (low, high):
            return f"{low} to {high}"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def length(value: timedelta) -> str:
    """Write a duration in the largest unit that divides it."""
    for unit, size in UNITS.items():
        if value >= size and not value % size:
            return f"{value // size} {unit}"
    return f"{value // timedelta(milliseconds=1)} ms"


def kept(value: Retention) -> str:
    """Write the ages of a retention by state."""
    ages = {str(state): rule.age for state, rule in value.rules()}
    if not any(ages.values()):
        return "for ever"
    return ", ".join(f"{name} {shown(age)}" for name, age in ages.items())


def parameters(owner: str, function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """The parameters of a function that have a default, as the page names them."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            yield f"{owner}({name}=)", parameter.default


def constants() -> dict[str, str]:
    """What stands in ``treadle/defaults.py``."""
    return {name: shown(value) for name, value in vars(defaults).items() if name.isupper()}


def constructors() -> dict[str, str]:
    """What people make: every parameter, whether its default says something or not."""
    found = {key: shown(value) for kind in MADE for key, value in parameters(kind.__name__, kind)}
    settings = {f"Treadle({item.name}=)": shown(getattr(DEFAULTS, item.name)) for item in fields(Settings)}
    backoff = {"Retry(backoff=)": "Backoff()" if Retry().backoff == Backoff() else "?"}
    caps = {"Retry(cap=)": f"{shown(defaults.RETRY_CAP)}, or none"}
    return found | {key: value for key, value in settings.items() if key in found} | backoff | caps


def task_options() -> dict[str, str]:
    """The options of ``@app.task``: what a task has that gives none of them."""

    def handler() -> None: ...

    definition, options = define(handler, {}, CodecRegistry().get("json"))
    given = {
        "name": "module.function" if definition.name.endswith("task_options.handler") else "?",
        "aliases": definition.aliases, "queue": options.queue, "priority": options.priority,
        "retry": definition.retry if definition.retry == Retry() else "?", "timeout": definition.timeout,
        "codec": definition.codec.name, "result_cap": definition.result_cap,
        "isolation": "process" if definition.isolated else None, "memory": definition.memory,
        "grace": defaults.CANCEL_GRACE if definition.grace is None else "?",
        "on_crash": "retry" if definition.crash_cap else "hold", "crashes": definition.crash_cap,
        "version": definition.version,
    }  # fmt: skip
    assert given.keys() == Policy.__annotations__.keys()
    return {f"@app.task({name}=)": shown(value) for name, value in given.items()}


def method_options() -> dict[str, str]:
    """Parameters of methods and functions whose default says something."""
    found: dict[str, str] = {}
    functions = [
        (f"{kind.__name__}.{name}", function)
        for kind in CALLED
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    ]
    functions += [(name, getattr(treadle.testing, name)) for name in treadle.testing.__all__]
    for owner, function in functions:
        if inspect.isclass(function) or owner.startswith(tuple(INNER)):
            continue
        for key, value in parameters(owner, function):
            if shown(value) not in ("none", "no") and value != treadle.JobFilter():
                found[key] = shown(value)
    return {key: value for key, value in found.items() if not is_twin(key, found)}


def is_twin(key: str, found: Mapping[str, str]) -> bool:
    """True for the async twin of a verb that has the same default."""
    owner, dot, call = key.rpartition(".")
    plain = f"{owner}{dot}{call.removeprefix('a')}"
    return call.startswith("a") and plain != key and found.get(plain) == found[key]


def commands(group: click.Group, above: str = "treadle") -> Iterator[tuple[str, click.Command]]:
    """Every command a user can type, groups left out."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


def told(option: click.Option) -> str | None:
    """The default of an option: what its help says, else its value; None when it has none worth a word."""
    in_help = IN_HELP.search(option.help or "")
    if in_help:
        return in_help[1]
    value = option.default
    return None if value in (None, False, (), "") or "UNSET" in repr(value) else shown(value)


def command_options() -> dict[str, str]:
    """Options of commands that have a default."""
    found: dict[str, str] = {}
    for command, what in commands(main):
        for option in what.params:
            value = told(option) if isinstance(option, click.Option) and not option.hidden else None
            if value is None:
                continue
            name = next(word for word in option.opts if word.startswith("--"))
            key = name if name in EVERYWHERE and found.get(name, value) == value else f"{command} {name}"
            found[key] = "Python's own library" if key == "treadle demo --source" else value
    return found


def documented() -> dict[str, str]:
    """The rows of the page: name to value."""
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    rows = [(row["name"], row["value"]) for row in ROW.finditer(page)]
    assert [name for name, times in Counter(name for name, _ in rows).items() if times > 1] == []
    return dict(rows)


def fixed() -> dict[str, str]:
    """Rows that name a value anywhere in the code: ``treadle.worker.children.JOBS_EACH``."""
    return {name: value for name, value in documented().items() if name.startswith("treadle.")}


DEFAULTS_THERE = constants() | constructors() | task_options() | method_options() | command_options()


@pytest.mark.parametrize("name", sorted(DEFAULTS_THERE))
def test_every_default_is_documented_with_its_value(name: str) -> None:
    """A reader of docs/defaults.md sees each default, and sees the value that the code uses."""
    assert documented().get(name) == DEFAULTS_THERE[name]


def test_no_default_is_documented_that_does_not_exist() -> None:
    """A default that left the code has left the page too."""
    assert documented().keys() - DEFAULTS_THERE.keys() - fixed().keys() == set()


@pytest.mark.parametrize("name", sorted(fixed()))
def test_fixed_values_are_those_of_the_code(name: str) -> None:
    """What nobody can choose, and people meet all the same, is as the page says."""
    module, _, constant = name.rpartition(".")
    assert fixed()[name] == shown(getattr(import_module(module), constant))


def test_every_default_of_the_table_is_used() -> None:
    """A value in treadle/defaults.py that nobody reads would say what is not so."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert [name for name in constants() if f"defaults.{name}" not in code] == []


def test_the_help_of_the_worker_tells_its_true_defaults() -> None:
    """What `treadle worker --help` calls the default is what a worker does that is given nothing."""
    worker = dict(commands(main))["treadle worker"]
    nothing = {str(option.name): None for option in worker.params}
    options = options_of(nothing, DEFAULTS)
    kept = {name: getattr(options.retention, name).age for name in ("succeeded", "failed")}
    expected = {
        "concurrency": options.concurrency, "processes": DEFAULTS.processes or 1,
        "grace": round(options.grace.total_seconds()) if isinstance(options.grace, timedelta) else options.grace,
        **{f"keep_{name}": age.days for name, age in kept.items() if age},
    }  # fmt: skip
    helps = {str(option.name): told(option) for option in worker.params if isinstance(option, click.Option)}
    assert {name: helps[name] for name in expected} == {name: str(value) for name, value in expected.items()}
    assert options == WorkerOptions()


def test_the_help_of_prune_tells_its_true_defaults() -> None:
    """What `treadle prune --help` calls the default ages are those of retention."""
    prune = dict(commands(main))["treadle prune"]
    options = {option.name: option for option in prune.params if isinstance(option, click.Option)}
    text = told(options["older_than"])
    assert text is not None
    ages = {str(state): rule.age for state, rule in Retention().rules()}
    assert dict(reversed(pair) for pair in re.findall(r"(\d+d) (\w+)", text)) == {
        state: f"{age.days}d" for state, age in ages.items() if age
    }
