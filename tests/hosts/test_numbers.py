"""Numbers that are given once, also by a server that has lost its last commits."""

from __future__ import annotations

from functools import partial

import pytest

from postgres import Server, needed
from treadle import Treadle
from treadle.store.ops.sequences import burn


@pytest.mark.parametrize("name", ["job", "lease", "epoch"])
def test_a_crash_takes_no_number_back(name: str) -> None:
    """At durability normal a crash may lose commits, but what was given is never given again to somebody else."""
    server = Server(needed(), ("max_connections=50", "wal_writer_delay=10000ms", "autovacuum=off"))
    try:
        with Treadle(server.url(), durability="normal") as app:
            taken: list[set[int]] = [set(), set()]
            for given in taken:
                for _ in range(40):  # the server notes them down for 32 at a time
                    given.update(app.store.run(partial(burn, name=name, count=1)))
                server.stop("immediate")
                server.start()
            assert taken[0] & taken[1] == set()
            assert [len(given) for given in taken] == [40, 40]
    finally:
        server.remove()
