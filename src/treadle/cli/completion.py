"""Shell completion: the script, and names from the store where they are cheap to find."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import click
from click.shell_completion import get_completion_class

from treadle.cli.store import opened
from treadle.errors import TreadleError
from treadle.store.ops import names
from treadle.store.session import Session

Completer = Callable[[click.Context, click.Parameter, str], list[str]]
PLAIN: Final = re.compile(r"[\w.,:@%+=/-]+", re.ASCII)
"""Names a shell takes as they are. Others are not offered: whoever enqueues may name a queue ``$(reboot)``."""
SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(*, shell: str) -> None:
    """Print the completion script for SHELL.

    bash: eval "$(treadle completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc;
    fish: treadle completion fish > ~/.config/fish/completions/treadle.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    main = click.get_current_context().find_root().command
    click.echo(found(main, {}, "treadle", "_TREADLE_COMPLETE").source())


def _offer(read: Callable[[Session], Sequence[str]]) -> Completer:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        # Without a store there is nothing to offer, and nobody to tell.
        try:
            with opened(ctx.params.get("store")) as app:
                found = app.store.read(read)
        except TreadleError:
            return []
        return [name for name in found if name.startswith(incomplete) and PLAIN.fullmatch(name)]

    return complete


def _ids(session: Session) -> Sequence[str]:
    return [str(number) for number in names.newest_jobs(session)]


known_queues: Completer = _offer(names.queues)
known_tasks: Completer = _offer(names.tasks)
known_workers: Completer = _offer(names.workers)
known_jobs: Completer = _offer(_ids)
