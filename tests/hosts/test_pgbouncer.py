"""Behind pgbouncer, as docs/pgbouncer.md says; skipped where it is not installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from faults.helpers import eventually
from postgres import SAFE, Server, needed
from treadle import JobState, Treadle
from treadle.errors import StoreError

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SETTINGS = """
[databases]
postgres = host=127.0.0.1 port={server} user=postgres dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = {mode}
default_pool_size = 4
unix_socket_dir =
"""
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer here")


class Addresses(NamedTuple):
    """The server itself, and by way of the pooler."""

    direct: str
    pooled: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def running(server: Server, mode: str, server_port: int) -> Iterator[int]:
    """A pgbouncer before *server*; its port."""
    assert PROGRAM is not None
    port = free_port()
    path = server.folder / "pgbouncer.ini"
    path.write_text(SETTINGS.format(server=server_port, port=port, mode=mode))
    path.chmod(0o644)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    started = subprocess.Popen(
        [PROGRAM, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user
    )
    try:
        eventually(lambda: answers(port), "pgbouncer answers")
        yield port
    finally:
        started.terminate()
        started.wait(60)


def answers(port: int) -> bool:
    """True when somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def addresses(request: pytest.FixtureRequest) -> Iterator[Addresses]:
    """A server of its own with a pgbouncer in the mode of the parameter."""
    port = free_port()
    server = Server(needed(), SAFE, port)
    try:
        with running(server, request.param, port) as pooled:
            yield Addresses(*(f"postgresql://postgres@127.0.0.1:{each}/postgres" for each in (port, pooled)))
    finally:
        server.remove()


@pytest.mark.parametrize("addresses", ["transaction"], indirect=True)
def test_transaction_mode_needs_two_settings(addresses: Addresses) -> None:
    """Two programs share four connections of the server: every job runs once, and the bell rings past the pooler."""
    settings: dict[str, Any] = {"listen_url": addresses.direct, "prepared": False}
    with Treadle(addresses.pooled, **settings) as app, Treadle(addresses.pooled, **settings) as other:

        @app.task(name="double")
        async def double(number: int) -> int:
            return 2 * number

        with app.worker():
            ids = other.enqueue_many(other.remote("double").job(number=number) for number in range(1000))
            assert set(other.wait(ids, timeout=60).values()) == {JobState.SUCCEEDED}
            assert double.enqueue(21).result(timeout=60) == 42
        assert app.count() == 1001
        assert app.store.read(lambda session: session.value("SELECT count(*) FROM treadle_attempts")) == 1001


@pytest.mark.parametrize("addresses", ["session"], indirect=True)
def test_session_mode_needs_nothing(addresses: Addresses) -> None:
    """A program that enqueues and reads works as it is."""
    with Treadle(addresses.pooled, connections=2) as app:
        assert [app.get(app.remote("double").enqueue(number=number).id).state for number in range(20)] == [
            JobState.READY
        ] * 20


@pytest.mark.parametrize("addresses", ["statement"], indirect=True)
def test_statement_mode_is_refused_in_words(addresses: Addresses) -> None:
    """The first use says what is wrong."""
    with pytest.raises(StoreError, match="not allowed in statement pooling mode"), Treadle(addresses.pooled) as app:
        app.counts()
