"""A real pgbouncer before a test's server, where Debian's package is installed.

``TREADLE_TEST_POOLER=1`` sends every store of the tests through one.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest

import postgres
from treadle.store.options import StoreOptions

PROGRAM = "/usr/sbin/pgbouncer"
PORT = 6432
CONFIGURED = """
[databases]
* = host={server} port={port}
[pgbouncer]
listen_port = {own}
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 8
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
logfile = {folder}/log
"""


class Pooler:
    """One running pgbouncer, reached by a socket in a folder of its own.

    Args:        server: the server behind it.
        mode: for how long a client has a connection: "session", "transaction" or "statement".
    """

    def __init__(self, server: postgres.Server, mode: str = "transaction") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="treadle-pool-"))
        (self.folder / "users").write_text('"postgres" ""\n')
        words = CONFIGURED.format(server=server.folder, port=server.port, own=PORT, folder=self.folder, mode=mode)
        (self.folder / "ini").write_text(words)
        who: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(self.folder / "ini")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, **who,
        )  # fmt: skip
        pause = Event()
        for _ in range(1000):
            if self._answers():
                return
            pause.wait(0.01)
        self.remove()
        raise AssertionError("pgbouncer does not answer")

    def url(self, database: str) -> str:
        """The address of a database through it."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port={PORT}"

    def remove(self) -> None:
        """Stop it and remove everything."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


@cache
def shared(version: str = "", mode: str = "transaction") -> Pooler:
    """The pooler of this run before a server; it stops at exit. Without the package the test is skipped."""
    if not Path(PROGRAM).exists():
        pytest.skip("there is no pgbouncer here")
    made = Pooler(postgres.shared(version), mode)
    atexit.register(made.remove)
    return made


def instead(direct: str, version: str) -> str:
    """The address of the database at *direct* through a pooler; stores listen directly and prepare nothing."""
    defaults = StoreOptions.__init__.__kwdefaults__
    assert defaults is not None
    defaults |= {"prepared": False, "listen_url": direct}
    database = psycopg.conninfo.conninfo_to_dict(direct)["dbname"]
    return shared(version).url(str(database))
