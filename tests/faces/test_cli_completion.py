"""Shell completion: the scripts, and names from the store that are safe on a command line."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from faces.commands import as_json, environment, run, treadle
from treadle import Treadle

HOSTILE = ("$(reboot)", "a;b", "`id`", "it's", "two words", "\x1b[31m", "a\nplain,b", "*", "\u202ex")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder whose jobs.db has jobs of queues mail and post, tasks mail.send and post.send, and hostile names."""
    with Treadle(f"sqlite:///{tmp_path}/jobs.db") as app:
        app.remote("mail.send", queue="mail").enqueue()
        app.remote("post.send", queue="post").enqueue()
        app.pause(queue="later")
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        for name in HOSTILE:
            connection.execute("INSERT INTO treadle_enqueue (task, queue) VALUES (?1, ?1)", (name,))
    return tmp_path


def offered(words: str, folder: Path, **more: str) -> list[str]:
    """What the completion protocol of bash offers for the last word of a line."""
    done = treadle(
        cwd=folder, _TREADLE_COMPLETE="bash_complete", COMP_WORDS=f"treadle {words}",
        COMP_CWORD=str(len(f"treadle {words}x".split()) - 1), TREADLE_STORE="sqlite:///jobs.db", **more,
    )  # fmt: skip
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("queues pause ", ["later", "mail", "post"]), ("queues pause m", ["mail"]),
        ("jobs list --queue p", ["post"]), ("jobs cancel --task mail", ["mail.send"]),
        ("tasks resume ", ["mail.send", "post.send"]),
        ("jobs move 1 --to po", ["post"]), ("queues pause --store none.db ", []), ("workers drain ", []),
        ("jobs list --state f", ["failed"]), ("compl", ["completion"]), ("completion z", ["zsh"]),
    ],
)  # fmt: skip
def test_names_are_offered(shop: Path, words: str, wanted: list[str]) -> None:
    """Commands, choices, and the queues, tasks and jobs of the store; a name that a shell would not take is not."""
    assert offered(words, shop) == wanted


def test_the_newest_jobs_are_offered(shop: Path) -> None:
    """Ids of the newest 20 jobs, newest first."""
    ids = [str(job["id"]) for job in as_json("jobs", "list", folder=shop)["jobs"]]
    assert offered("jobs show ", shop) == ids
    assert len(ids) == 2 + len(HOSTILE)


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """Without a store nothing is offered, nothing is said, and no file appears."""
    assert offered("queues pause ", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_each_shell_has_its_script(tmp_path: Path) -> None:
    """The script names the command and its protocol; another shell is wrong usage."""
    for shell in ("bash", "zsh", "fish"):
        done = treadle("completion", shell, cwd=tmp_path)
        assert done.returncode == 0
        assert f"_TREADLE_COMPLETE={shell}_complete" in done.stdout
    assert treadle("completion", "tcsh", cwd=tmp_path).returncode == 2


@pytest.fixture
def surroundings(shop: Path) -> dict[str, str]:
    """Variables of a shell that finds the command and the store."""
    command = shop / "treadle"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m treadle "$@"\n')
    command.chmod(0o755)
    return environment(PATH=f"{shop}:{os.environ['PATH']}", TREADLE_STORE="sqlite:///jobs.db")


BASH = (
    'eval "$(treadle completion bash)"; COMP_WORDS=(treadle queues pause m); COMP_CWORD=3; '
    '_treadle_completion treadle; printf "%s\\n" "${COMPREPLY[@]}"'
)
FISH = 'treadle completion fish | source; complete -C "treadle queues pause m"'


@pytest.mark.parametrize(("shell", "plain", "script"), [("bash", "--norc", BASH), ("fish", "--no-config", FISH)])
def test_a_shell_completes(shop: Path, surroundings: dict[str, str], shell: str, plain: str, script: str) -> None:
    """In a real shell, with the script sourced, the words of the store come out."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run(
        [shell, plain, "-c", script], cwd=shop, capture_output=True, text=True, check=True, timeout=90,
        env=surroundings,
    )  # fmt: skip
    assert done.stdout.split() == ["mail"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes(shop: Path, surroundings: dict[str, str]) -> None:
    """The same in a real zsh, which completes only what is typed at a terminal."""
    outward, inward = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-f", "-i"], cwd=shop, stdin=inward, stdout=inward, stderr=inward, start_new_session=True,
        env=surroundings | {"TERM": "dumb"},
    ) as zsh:  # fmt: skip
        os.close(inward)
        try:
            ready = 'autoload -Uz compinit; compinit -u -D; eval "$(treadle completion zsh)"; echo rea""dy'
            os.write(outward, f"{ready}\n".encode())
            until(outward, b"ready")
            os.write(outward, b"treadle queues pause m\t")
            until(outward, b"pause mail")
        finally:
            zsh.kill()
            os.close(outward)


def until(terminal: int, wanted: bytes) -> None:
    """Read what a terminal shows until *wanted* is there."""
    shown = b""
    while wanted not in shown:
        found, _, _ = select.select([terminal], [], [], 60)
        assert found, shown
        shown += os.read(terminal, 4096)


def test_what_is_completed_is_what_is_meant(shop: Path) -> None:
    """A completed name is understood by the command it was completed for."""
    (name,) = offered("queues pause m", shop)
    assert run("queues", "pause", name, folder=shop)[0] == 0
