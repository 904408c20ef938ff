"""The shape of the code: layers, sizes, and who may touch what.

The linters run here too, so that one command proves everything.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "treadle"
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
FILE_LINES, FUNCTION_LINES, NESTING = 400, 50, 3

OPTIONAL = (
    "psycopg", "starlette", "jinja2", "uvicorn", "textual", "opentelemetry", "prometheus_client",
    "django", "flask", "sqlalchemy", "pydantic",
)  # fmt: skip
HOST_MODULES = {"fcntl", "signal", "subprocess", "select", "multiprocessing"}
HOST_CALLS = {"os.fork", "os.forkpty", "os.kill", "os.killpg", "os.mkfifo", "os.register_at_fork"}
CLOCK_CALLS = {f"{name}.{verb}" for name in ("datetime", "date") for verb in ("now", "utcnow", "today")}
SQL = re.compile(
    r"^\s*(SELECT\s|INSERT\s|UPDATE\s+\w+\s+SET\b|DELETE\s+FROM\s|CREATE\s+(TABLE|VIEW|TRIGGER|UNIQUE|INDEX)\b"
    r"|ALTER\s+TABLE\s|DROP\s+(TABLE|VIEW|INDEX|TRIGGER)\b|WITH\s+\w+.*\bAS\b|PRAGMA\s|BEGIN\s+IMMEDIATE"
    r"|SAVEPOINT\s)|\b(FROM|INTO|UPDATE|JOIN)\s+treadle_",
    re.DOTALL,
)
NESTS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef


# --- the tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("lint-imports",), ("ruff", "check"), ("mypy",)], ids=lambda argv: argv[0])
def test_tool_has_nothing_to_say(argv: tuple[str, ...]) -> None:
    """Imports go down only, and the linter and the type checker find nothing."""
    tool = Path(sys.executable).parent / argv[0]
    done = _run(tool, *argv[1:])
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout}\n{done.stderr}"


def test_every_dependency_is_pinned() -> None:
    """The files of pins know every package that pyproject.toml asks for, with a hash."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    for wanted, name in (
        (project["project"]["dependencies"] + groups["dev"], "dev.txt"),
        (groups["bench"], "bench.txt"),
    ):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        pinned = set(re.findall(r"^([\w.-]+)==[^\n]*\\\n +--hash=sha256:", text, re.MULTILINE))
        assert {re.split(r"[<>=!~\[; ]", line)[0] for line in wanted} <= pinned, name


# --- sizes -------------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    """No source file is longer than 400 lines."""
    lengths = {path: len((SOURCE / path).read_text(encoding="utf-8").splitlines()) for path in TREES}
    assert {path: length for path, length in lengths.items() if length > FILE_LINES} == {}


def test_functions_are_short() -> None:
    """No function is longer than 50 lines, its docstring not counted."""
    found = {
        f"{path}:{node.lineno} {node.name}": length
        for path, node in _nodes(Function)
        if (length := _length(node)) > FUNCTION_LINES
    }
    assert found == {}


def test_nesting_is_shallow() -> None:
    """No statement stands inside more than three others; a function inside a function starts no new count."""
    found = {path: deep for path, tree in TREES.items() if (deep := list(_too_deep(tree.body, 0)))}
    assert found == {}


def test_the_measures_measure() -> None:
    """Docstrings and elif cost nothing; else, loops and inner functions are counted."""
    body = 'def f(a):\n    """One.\n\n    Two.\n    """\n    if a:\n        g()\n    elif b:\n        h()\n'
    (function,) = ast.parse(body).body
    assert isinstance(function, ast.FunctionDef)
    assert _length(function) == 5
    assert _depth(body) == 1
    assert _depth("if a:\n    b\nelse:\n    if c:\n        d\n") == 2
    assert _depth("for a in b:\n    def f():\n        with c:\n            d\n") == 2
    assert _depth("try:\n    a\nexcept B:\n    while c:\n        d\nfinally:\n    e\n") == 2
    assert _depth("match a:\n    case 1:\n        if b:\n            c\n") == 2


# --- who may touch what ------------------------------------------------------------------------------


def test_only_the_clock_asks_for_the_time() -> None:
    """A held clock holds everything: nobody else imports time or asks datetime for now."""
    assert _importers({"time"}, allowed="clock") == []
    assert _callers(CLOCK_CALLS, allowed="clock") == []


def test_only_the_host_room_touches_the_operating_system() -> None:
    """Locks, signals, children and pipes have one room; nobody else imports their modules."""
    assert _importers(HOST_MODULES, allowed="host") == []
    assert _callers(HOST_CALLS, allowed="host") == []


def test_only_the_store_speaks_sql() -> None:
    """The database has one door: SQL and sqlite3 are found in the store and nowhere else."""
    assert _importers({"sqlite3"}, allowed="store") == []
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if _room(path) != "store"
        for node in _strings(tree)
        if SQL.search(node.value)
    ]
    assert found == []
    assert [p for p in SOURCE.rglob("*.sql") if _room(p.relative_to(SOURCE).as_posix()) != "store"] == []


def test_nothing_unpickles() -> None:
    """Stored bytes can never become code."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
    assert _importers(modules, allowed=None) == []
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in modules)
        or (isinstance(node, ast.Attribute) and node.attr in modules)
    ]
    found += [f"{p}:{n.lineno}" for p, tree in TREES.items() for n in _strings(tree) if n.value in modules]
    assert found == []


def test_no_error_is_swallowed() -> None:
    """There is no bare except, and nobody catches every exception to do nothing."""
    found = [f"{path}:{node.lineno}" for path, node in _nodes(ast.ExceptHandler) if _swallows(node)]
    found += [
        f"{path}:{node.lineno}"
        for path, node in _nodes(ast.Call)
        if _dotted(node.func).endswith("suppress") and any(_is_broad(each) for each in node.args)
    ]
    assert found == []


# --- the public face ---------------------------------------------------------------------------------


def test_public_names_are_sorted_importable_and_described() -> None:
    """Every name in treadle.__all__ exists, has a docstring of its own, and is easy to find in the list."""
    treadle = importlib.import_module("treadle")
    names: list[str] = treadle.__all__
    assert names == sorted(set(names), key=_sort_key)
    assert [name for name in names if not hasattr(treadle, name)] == []
    assert [name for name in names if not _described(name, getattr(treadle, name))] == []


def test_import_is_light_and_opens_nothing() -> None:
    """Importing treadle needs no extra and touches no database."""
    code = """
import json, sys
opened = []
def hook(event, args):
    if event == "sqlite3.connect" or (event == "open" and str(args[0]).endswith(".db")):
        opened.append([event, str(args[0])])
sys.addaudithook(hook)
import treadle
print(json.dumps({"opened": opened, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["opened"] == []
    assert set(seen["modules"]) & set(OPTIONAL) == set()


# --- the repository ----------------------------------------------------------------------------------


def test_no_file_names_a_registry_or_a_workplace() -> None:
    """The repository is the same wherever it is: no package host and no path of one machine is in it."""
    # put together here, so that this file does not find itself
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.", "yarn" + "pkg.", "crates" + ".io"]
    places = ["wo" + "rk/(main|shared|in|out)", "tm" + "p/(t|venv|bash_jobs)", "fa" + "rm", "ro" + "ot/"]
    word = re.compile("|".join(map(re.escape, hosts)) + r"|(?<![\w.~-])/(" + "|".join(places) + r")(?![\w-])")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in _text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert found == []


# --- measures ----------------------------------------------------------------------------------------


def _run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    return subprocess.run(
        argv,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _room(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _nodes(kind: Any) -> Iterator[tuple[str, Any]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, kind))


def _length(function: Function) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def _depth(text: str) -> int:
    return max(depth for depth, _ in _statements(ast.parse(text).body, 0))


def _too_deep(body: list[ast.stmt], depth: int) -> Iterator[int]:
    return (node.lineno for inside, node in _statements(body, depth) if inside > NESTING)


def _statements(body: list[ast.stmt], depth: int) -> Iterator[tuple[int, ast.stmt]]:
    """Yield every statement with the number of statements it stands in."""
    for node in body:
        yield depth, node
        inner = depth + isinstance(node, NESTS)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, [])
            yield from _statements(block, depth if _is_elif(node, name, block) else inner)
        for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from _statements(part.body, inner)


def _is_elif(node: ast.stmt, name: str, block: list[ast.stmt]) -> bool:
    """Tell `elif` from `else` with an `if` inside: only the first starts in the column of its `if`."""
    return (
        isinstance(node, ast.If)
        and name == "orelse"
        and len(block) == 1
        and isinstance(block[0], ast.If)
        and block[0].col_offset == node.col_offset
    )


def _importers(modules: set[str], *, allowed: str | None) -> list[str]:
    return _outside(allowed, lambda node: bool(_imported(node) & modules))


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.partition(".")[0]}
    if isinstance(node, ast.Call) and _dotted(node.func).endswith(("import_module", "__import__")):
        return {str(arg.value).partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return set()


def _callers(calls: set[str], *, allowed: str) -> list[str]:
    def uses(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return any(f"{node.module}.{alias.name}" in calls for alias in node.names)
        return isinstance(node, ast.Attribute) and ".".join(_dotted(node).split(".")[-2:]) in calls

    return _outside(allowed, uses)


def _outside(allowed: str | None, wrong: Callable[[ast.AST], bool]) -> list[str]:
    return [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for path, tree in TREES.items()
        if _room(path) != allowed
        for node in ast.walk(tree)
        if wrong(node)
    ]


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield every text in the code that is not a docstring."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def _swallows(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    idle = all(isinstance(node, ast.Pass) or _is_remark(node) for node in handler.body)
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return idle and any(_is_broad(each) for each in caught)


def _is_remark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_broad(node: ast.expr) -> bool:
    return _dotted(node).rpartition(".")[2] in ("Exception", "BaseException")


def _sort_key(name: str) -> tuple[int, str]:
    """Sort constants, then classes, then the rest, as ruff does."""
    bare = name.strip("_")
    return (0 if bare.isupper() and len(bare) > 1 else 1 if name[:1].isupper() else 2, name)


def _described(name: str, value: object) -> bool:
    if inspect.isclass(value):
        own = vars(value).get("__doc__") or ""
        return bool(own) and not own.startswith(f"{name}(")  # dataclasses and tuples write their own
    return bool(getattr(value, "__doc__", None))


def _text_files() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder)
        top = here == ROOT
        folders[:] = [
            name
            for name in folders
            if (not name.startswith(".") or name in (".ci", ".github"))
            and name != "__pycache__"
            and not name.endswith((".egg-info", ".db-treadle"))
            and not (top and name in ("dist", "build", "demo", "site"))
        ]
        for name in names:
            if not (top and name == "uv.lock") and _is_text(here / name):
                yield here / name


def _is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):  # binary, or another test's file that is gone again
        return False
