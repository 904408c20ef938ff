"""The documentation says what the code does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import treadle
from treadle import errors
from treadle.cli.main import main
from treadle.declare import Policy
from treadle.model.settle import MOVES
from treadle.settings import PREFIX, Settings
from treadle.worker.options import WorkerOptions

DOCS = Path(__file__).parents[1] / "docs"
CODE = re.compile(r"^```[^\n]*\n(?:.*?)^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
ERROR_ROW = re.compile(r"^\| `([A-Za-z]+)` \|", re.MULTILINE)
TREE_LINE = re.compile(r"^(?P<indent>(?:[│├└ ][─   ]{3})*)(?P<name>[A-Z]\w+)(?:  .*)?$", re.MULTILINE)
ARROW = re.compile(r"^    (\w+) --> (\w+)", re.MULTILINE)
TYPED = re.compile(r"^(?:ExecStart=\S*/| *command: )?(treadle [^\n`]+)$", re.MULTILINE)
POLICY = re.compile(r"`(?:retry=)?(Retry\((?![^`\n]*(?:\.\.\.|=\)))[^`\n]*\))`")
VERB = re.compile(r"(?<![\w.])app\.([a-z_]+)(?!\w)")
INLINE = re.compile(r"`(treadle [a-z][^`\n]*)`")
LINK = re.compile(r"\]\((?P<page>[\w./-]+\.md)?(?:#(?P<heading>[\w-]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Every page of the documentation: name to text."""
    return {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}


def mentioned(word: str) -> bool:
    """True when some page has *word* in code style, alone or within a longer piece of code."""
    whole = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)")
    return any(whole.search(code) for text in pages().values() for code in CODE.findall(text))


def commands(group: click.Group, above: str = "treadle") -> Iterator[str]:
    """Every command a user can type, groups left out."""
    for name, command in group.commands.items():
        full = f"{above} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, full)
        else:
            yield full


class Section(NamedTuple):
    """What the reference says of one command: its own words, and those that stand before it."""

    own: str
    shared: str


def reference() -> dict[str, Section]:
    """The sections of docs/cli.md by command."""
    preamble, *chapters = re.split(r"^## ", pages()["cli.md"], flags=re.MULTILINE)
    common, filters, *chapters = chapters
    found = {}
    for chapter in chapters:
        before, *sections = re.split(r"^### ", chapter, flags=re.MULTILINE)
        for section in sections:
            name, _, own = section.partition("\n")
            linked = filters if "(#filters)" in before + own else ""
            found[name.strip("`")] = Section(own, preamble + common + before + linked)
    return found


def options(text: str) -> set[str]:
    """The long options that a text has in code style."""
    return {word for code in CODE.findall(text) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)}


LEAVES = sorted(commands(main))


def leaf(name: str) -> click.Command:
    """The command of this full name."""
    found: click.Command = main
    for word in name.split()[1:]:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def accepted(name: str) -> set[str]:
    """The long options of a command."""
    return {
        option
        for param in leaf(name).params
        if isinstance(param, click.Option) and not param.hidden
        for option in (*param.opts, *param.secondary_opts)
        if option.startswith("--")
    }


def test_the_reference_has_exactly_the_commands_there_are() -> None:
    """docs/cli.md has a section for each command, and none for another."""
    assert sorted(reference()) == LEAVES


@pytest.mark.parametrize("command", LEAVES)
def test_every_option_of_a_command_is_in_the_reference(command: str) -> None:
    """A reader of a command's section, and of what stands before it, sees each option it takes."""
    section = reference()[command]
    known = options(section.own) | options(section.shared)
    assert accepted(command) - known == set()


@pytest.mark.parametrize("command", LEAVES)
def test_the_reference_names_no_option_that_is_not_there(command: str) -> None:
    """An option that a command's own section names, the command takes."""
    named = options(re.sub(r"^```.*?^```$", "", reference()[command].own, flags=re.MULTILINE | re.DOTALL))
    assert named - accepted(command) == set()


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_helps(command: str) -> None:
    """Each command, option and argument says in its help what it is for; the first sentence fits into a list."""
    found = leaf(command)
    assert found.get_short_help_str(limit=68) == found.get_short_help_str(limit=1000)
    missing = [param.name for param in found.params if isinstance(param, click.Option) and not param.help]
    assert missing == []


ERRORS = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
}


@pytest.mark.parametrize("name", sorted(treadle.__all__))
def test_every_public_name_is_documented(name: str) -> None:
    """Whatever can be imported from treadle is explained on some page."""
    assert mentioned(name)


@pytest.mark.parametrize("command", sorted(commands(main)))
def test_every_command_is_documented(command: str) -> None:
    """Whatever `treadle --help` offers is on some page."""
    assert mentioned(command)


@pytest.mark.parametrize("setting", [item.name for item in fields(Settings)])
def test_every_setting_is_documented(setting: str) -> None:
    """Every setting is there under its own name and under that of its environment variable."""
    assert mentioned(setting)
    assert mentioned(PREFIX + setting.upper())


@pytest.mark.parametrize("option", [item.name for item in fields(WorkerOptions)])
def test_every_worker_option_is_documented(option: str) -> None:
    """Every option of a worker is on the page about workers."""
    assert f"`{option}`" in pages()["workers.md"]


@pytest.mark.parametrize("option", list(Policy.__annotations__))
def test_every_task_option_is_documented(option: str) -> None:
    """Every option of a task is on the page about tasks."""
    assert f"`{option}`" in pages()["tasks.md"]


def test_the_page_of_errors_has_exactly_the_errors_there_are() -> None:
    """docs/errors.md has a row for each error class, in no other number."""
    assert sorted(ERROR_ROW.findall(pages()["errors.md"])) == sorted(ERRORS)


def test_the_drawn_tree_of_errors_is_that_of_the_classes() -> None:
    """The tree in docs/errors.md has every error below the class it inherits from."""
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in TREE_LINE.finditer(pages()["errors.md"]):
        depth = len(line["indent"]) // 4
        above[depth:] = [line["name"]]
        drawn[line["name"]] = above[depth - 1] if depth else "Exception"
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in ERRORS.items()}


def test_the_diagram_of_states_is_the_table_of_moves() -> None:
    """docs/states.md draws the moves of the state machine: all of them, and no other."""
    drawn = set(ARROW.findall(pages()["states.md"]))
    assert drawn == {(str(before), str(after)) for before, followers in MOVES.items() for after in followers}


SHELL = sorted({line.partition(" | ")[0] for text in pages().values() for line in TYPED.findall(text)})
CODED = sorted({code for text in pages().values() for code in INLINE.findall(text)})


@pytest.mark.parametrize("line", SHELL)
def test_every_shown_command_line_can_be_typed(line: str) -> None:
    """Each command line in the documentation names a command and options that exist."""
    words = shlex.split(line.replace("NAME", "1").replace("PID", "1").replace("ID", "1"))[1:]
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(line, words)


@pytest.mark.parametrize("line", CODED)
def test_every_mentioned_command_exists(line: str) -> None:
    """A command that a sentence mentions is there, and so are the options it is mentioned with."""
    command: click.Command = main
    path = "treadle"
    for word in shlex.split(line)[1:]:
        if isinstance(command, click.Group) and "|" not in word:
            command, path = command.commands[word], f"{path} {word}"
    assert options(f"`{line}`") - (set() if isinstance(command, click.Group) else accepted(path)) - {"--help"} == set()


WRITTEN = sorted({found for text in pages().values() for found in POLICY.findall(text)})


@pytest.mark.parametrize("policy", WRITTEN)
def test_every_mentioned_policy_can_be_made(policy: str) -> None:
    """A `Retry(...)` that a sentence shows is one that Retry accepts."""
    assert isinstance(eval(policy, {**vars(treadle), "HashMismatch": ValueError}), treadle.Retry)


def test_every_mentioned_verb_exists() -> None:
    """What a page calls `app.something` is there."""
    app = treadle.Treadle("memory://")
    code = [(name, piece) for name, text in pages().items() for piece in CODE.findall(text)]
    named = {(name, verb) for name, piece in code for verb in VERB.findall(piece) if verb != "py"}
    assert [(name, verb) for name, verb in sorted(named) if not hasattr(app, verb)] == []
    app.close()


def slugs(text: str) -> set[str]:
    """How the headings of a page are linked to."""
    headings = HEADING.findall(FENCED.sub("", text))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [f"docs/{name}" for name in pages()] + ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(name: str) -> None:
    """No page links to a file or a heading that is not there."""
    source = DOCS.parent / name
    for link in LINK.finditer(FENCED.sub("", source.read_text(encoding="utf-8"))):
        target = source.parent / link["page"] if link["page"] else source
        assert target.exists(), link[0]
        assert link["heading"] is None or link["heading"] in slugs(target.read_text(encoding="utf-8")), link[0]


def test_every_page_is_on_the_map() -> None:
    """docs/index.md leads to every other page."""
    assert {link["page"] for link in LINK.finditer(pages()["index.md"])} >= set(pages()) - {"index.md"}


@pytest.mark.parametrize("name", list(pages()))
def test_every_page_says_first_what_it_is_for(name: str) -> None:
    """A page begins with its title and a sentence or two, before any list, table or code."""
    title, first, *_ = re.split(r"\n\n+", pages()[name])
    assert re.fullmatch(r"# [^\n]+", title)
    assert re.match(r"[A-Z`]", first)
    assert not first.startswith("```")
