"""The examples in the documentation run as they stand, page by page, in an empty folder."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from treadle import Treadle
from treadle.errors import TreadleError
from treadle.settings import Settings, load

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN = {"python", "sql", "toml"}
SHOWN = {"sh", "console", "ini", "yaml", "json", "text", "mermaid"}
"""Languages of blocks that are only shown: shell, files of other programs, output and pictures."""
FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n.*?^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
"""First line of a block that a reader saves under this name; later blocks import it."""
PLAIN = {"README.md", "design.md", "benchmarks.md"}
"""Pages that may have blocks without a language; those are never run."""


def run_sql(example: Example) -> None:
    """Run a SQL block on jobs.db of the page's folder, as another program would: with a connection of its own."""
    connection = sqlite3.connect("jobs.db", isolation_level=None)
    try:
        # The constant of recent sqlite3 modules is not there in 3.11: statements are split as the shell does.
        held = ""
        for piece in str(example.parsed).split(";"):
            held += piece + ";"
            if sqlite3.complete_statement(held):
                connection.execute(held).fetchall()
                held = ""
    finally:
        connection.close()


def load_toml(example: Example) -> None:
    """Read a TOML block as the pyproject.toml of the page's folder; an unknown setting is an error."""
    Path("pyproject.toml").write_text(str(example.parsed), encoding="utf-8")
    load(Settings(), {}, Path.cwd())


EXAMPLES = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="sql", evaluator=run_sql),
        CodeBlockParser(language="toml", evaluator=load_toml),
    ]
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, so that a page's files and modules are its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def close_what_is_open(names: dict[str, Any]) -> None:
    """Close apps and connections a page left open, as the end of a program would."""
    for value in names.values():
        if isinstance(value, Treadle):
            value.close()
        if isinstance(value, sqlite3.Connection):
            value.close()


def run_page(document: Document) -> int:
    """Run every example of a page in order, with one set of names; return how many there were."""
    document.namespace["__name__"] = "shop"  # tasks are named after their module
    count = 0
    try:
        for example in document.examples():
            saved = FILE.match(str(example.parsed))
            if saved:
                Path(saved[1]).write_text(str(example.parsed), encoding="utf-8")
            else:
                example.evaluate()
            count += 1
    except TreadleError as error:
        raise AssertionError(f"An example failed: {error}") from error
    finally:
        close_what_is_open(document.namespace)
    return count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("folder")
def test_examples_of_a_page_run(page: Path) -> None:
    """What a reader copies from the documentation works."""
    languages = [found["language"].strip() for found in FENCE.finditer(page.read_text(encoding="utf-8"))]
    assert run_page(EXAMPLES.parse(page)) == sum(language in RUN for language in languages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page: Path) -> None:
    """No example escapes from being run because its language was forgotten or misspelt."""
    languages = {found["language"].strip() for found in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert languages - RUN - SHOWN <= ({""} if page.name in PLAIN else set())


@pytest.mark.usefixtures("folder")
def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    """The runner above is not blind: a page whose example fails, fails."""
    page = tmp_path / "wrong.md"
    page.write_text("```python\nassert 1 == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(EXAMPLES.parse(page))
