"""What the tests of :mod:`treadle.host.children` start: ``python -m host.offspring IN OUT STACKS``.

Each line that comes in is Python; what it prints goes out by its pipe.
"""

from __future__ import annotations

import os
import subprocess
import sys

from treadle.host import children

SLEEPER = [sys.executable, "-c", "import time\nwhile True: time.sleep(1)"]


def daemon() -> int:
    """Start a program the old way: forked twice, in a session of its own. Its process id is returned."""
    reader, writer = os.pipe()
    first = os.fork()
    if not first:
        os.setsid()
        second = os.fork()
        if second:
            os.write(writer, str(second).encode())
            os._exit(0)
        os.execv(SLEEPER[0], SLEEPER)
    os.waitpid(first, 0)
    os.close(writer)
    with os.fdopen(reader) as told:
        return int(told.read())


def start(how: str) -> int:
    """Start a program that sleeps for ever: as everybody does, in a session of its own, or as a daemon."""
    if how == "daemon":
        return daemon()
    return subprocess.Popen(SLEEPER, start_new_session=how == "session").pid


def main(inward: int, outward: int, stacks: int) -> None:
    """Obey until the pipe ends."""
    children.become_child()
    children.write_stacks_to(stacks)
    with os.fdopen(inward) as orders:
        for order in orders:
            found = eval(order)
            os.write(outward, f"{found}\n".encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
