"""Every transaction boundary in the source has its fail points: found by reading the code, not by a list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import treadle

SOURCE = Path(treadle.__file__).parent
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
BOUNDARY = re.compile(r"\s*(BEGIN\s+(?:IMMEDIATE|EXCLUSIVE)|COMMIT|END)(?:\s+TRANSACTION)?\s*;?\s*", re.IGNORECASE)
HOME = "store/transaction.py"
SERVER = {(f"store/postgres/{name}.py", "COMMIT") for name in ("transactions", "reading", "opening")}
"""There reading is a transaction too, and its end needs no point; the third is the end of a printed script."""
AFTER = {"begin": "after_begin", "commit": "after_commit"}


def test_only_one_module_begins_and_commits() -> None:
    """For each database writes are begun and committed in one module; nobody calls a driver's commit()."""
    said = {
        (path, match[1])
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (match := BOUNDARY.fullmatch(node.value))
    }
    assert said - SERVER == {(HOME, "BEGIN IMMEDIATE"), (HOME, "COMMIT")}
    assert said >= SERVER
    called = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit"
        if ast.unparse(node.func) != "super().commit"  # where it is refused
    ]
    assert called == []


def test_both_ends_have_a_point_before() -> None:
    """begin() and commit() reach their point just before they speak to SQLite."""
    functions = _functions(TREES[HOME])
    assert _reached(functions["begin"]) == {"before_begin"}
    assert _reached(functions["commit"]) == {"before_commit"}


def test_every_boundary_has_a_point_after() -> None:
    """Whoever begins reaches after_begin, whoever commits reaches after_commit; nobody forgot."""
    assert [f"{path} {missing}" for path, tree in TREES.items() if path != HOME for missing in _missing(tree)] == []
    users = {path for path, tree in TREES.items() for name in AFTER for _ in _users(tree, name)} - {HOME}
    assert users >= {"store/lane.py", "store/connections.py", "store/opening.py", "store/backup.py"}


def test_the_lane_has_every_point() -> None:
    """A group and a lone operation reach a point at each of their boundaries."""
    lane = {point for function in _functions(TREES["store/lane.py"]).values() for point in _words(function)}
    assert lane >= {"after_begin", "after_commit", "before_told", "after_told"}
    assert _reached(_functions(TREES["store/callers.py"])["run_in"]) == {"before_own", "after_own"}


def test_a_missing_point_is_seen() -> None:
    """The search finds a boundary without a point, and takes one that a neighbour reaches."""
    bare = "def store(c):\n    begin(c, 'x')\n    commit(c, p, 'x')\n"
    assert sorted(_missing(ast.parse(bare))) == ["store: after_begin", "store: after_commit"]
    helped = (
        "def store(c):\n    c = take(c)\n    reach('after_begin', 'x')\n    commit(c, p, 'x')\n    ring()\n"
        "def take(c):\n    while True:\n        begin(c, 'x')\n"
        "def ring():\n    reach('after_commit', 'x')\n"
    )
    assert list(_missing(ast.parse(helped))) == []


def _missing(tree: ast.Module) -> Iterator[str]:
    functions = _functions(tree)
    near = {
        name: _reached(function).union(*(_reached(functions[one]) for one in _called(function) & functions.keys()))
        for name, function in functions.items()
    }
    for boundary, point in AFTER.items():
        for user in _users(tree, boundary):
            callers = [name for name, function in functions.items() if user in _called(function)]
            if point not in near[user] and not (callers and all(point in near[name] for name in callers)):
                yield f"{user}: {point}"


def _users(tree: ast.Module, boundary: str) -> list[str]:
    return [name for name, function in _functions(tree).items() if boundary in _called(function)]


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _called(function: ast.FunctionDef) -> set[str]:
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    own = {
        call.attr for call in calls
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "self"
    }  # fmt: skip
    return names | own


def _reached(function: ast.FunctionDef) -> set[str]:
    return {
        str(node.args[0].value)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach"
        and isinstance(node.args[0], ast.Constant)
    }  # fmt: skip


def _words(function: ast.FunctionDef) -> set[str]:
    return {str(node.value) for node in ast.walk(function) if isinstance(node, ast.Constant)}
