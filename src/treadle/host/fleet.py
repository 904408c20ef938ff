"""Worker processes as their supervisor holds them: started, told to stop, watched to their end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Sequence

from treadle.host.process import running, spawn_python


class Member:
    """One worker process. It drains when its standard input ends, so also when we die.

    Args:
        arguments: the words of its command, from ``worker`` on; ``--status-fd N`` is added.
        on_line: called on a thread with each line it writes to its status descriptor.
        on_end: called on a thread with its exit code, -9 for signal 9.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        on_line: Callable[[Member, str], None],
        on_end: Callable[[Member, int], None],
    ) -> None:
        status, theirs = os.pipe()
        try:
            self._popen = spawn_python(
                running("treadle", *arguments, "--status-fd", str(theirs)), pass_fds=(theirs,),
                stdin=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(theirs)
        threading.Thread(target=self._watch, args=(status, on_line, on_end), name="treadle-member", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def stop(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()

    def _watch(
        self, status: int, on_line: Callable[[Member, str], None], on_end: Callable[[Member, int], None]
    ) -> None:
        with open(status, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                on_line(self, line.strip())
        code = self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        on_end(self, code)


def tell_supervisor(descriptor: int, text: str) -> None:
    """Write one line to our supervisor; one that is gone is told nothing."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{' '.join(text.split())}\n".encode())
