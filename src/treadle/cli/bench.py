"""``treadle bench``: what this machine does with real worker processes."""

from __future__ import annotations

import platform
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from treadle.bench.figures import Figures, Spread
from treadle.bench.run import Options, run
from treadle.cli.options import DURATION, json_option
from treadle.cli.output import facts, plain, say, say_json
from treadle.cli.store import asked
from treadle.settings import Settings, load
from treadle.store.engine import About
from treadle.store.opening import file_of
from treadle.store.urls import is_server, without_password


@click.command()
@click.option("--jobs", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="How many jobs.")
@click.option("--every", type=DURATION, default="700us", show_default=True, help="One job each so long; 0: no pause.")
@click.option("--concurrency", type=click.IntRange(1, 1000), default=50, show_default=True, help="Slots of a worker.")
@click.option("--processes", type=click.IntRange(1, 64), default=4, show_default=True, help="Worker processes.")
@click.option("--idle", type=DURATION, default="5s", show_default=True, help="How long idling is measured; 0: not.")
@click.option("--store", metavar="PATH|URL", help="A new file, or a schema without jobs. Default: a temporary one.")
@json_option
def bench(
    *,
    jobs: int,
    every: timedelta,
    concurrency: int,
    processes: int,
    idle: timedelta,
    store: str | None,
    as_json: bool,
) -> None:
    """Measure how soon jobs start on this machine.

    Real worker processes, and a producer that keeps its rate. Pickup is the time from a job's enqueue to the
    beginning of its handler, from the history. Exit code 1 when a job ran twice or not at all. Durability is that of
    the settings: TREADLE_DURABILITY=normal treadle bench.
    """
    with tempfile.TemporaryDirectory(prefix="treadle-bench-") as folder:
        url = f"sqlite:///{folder}/jobs.db" if store is None else asked(store)
        options = Options(
            url=url, log=_log(url, Path(folder)), jobs=jobs, every=every.total_seconds(), concurrency=concurrency,
            processes=processes, idle=idle.total_seconds(),
        )  # fmt: skip
        figures, database = run(options, lambda text: say(text, err=True))
    about = _about(options, database, kept=store is not None)
    if as_json:
        say_json(about | plain(figures) | {"good": figures.good})
    else:
        _say(options, figures, about)
    sys.exit(0 if figures.good else 1)


def _log(url: str, folder: Path) -> Path:
    """Beside a file that is kept, so that it is kept too."""
    return folder / "workers.log" if is_server(url) else Path(f"{file_of(url)}.log")


def _about(options: Options, database: About, *, kept: bool) -> dict[str, Any]:
    return {
        "jobs": options.jobs, "every": options.every, "concurrency": options.concurrency,
        "processes": options.processes, "durability": load(Settings()).durability,
        "database": _shown(options.url) if kept else None,
        "sqlite": database.version if database.software == "SQLite" else None,
        "postgresql": database.version if database.software == "PostgreSQL" else None,
        "python": platform.python_version(),
    }  # fmt: skip


def _say(options: Options, figures: Figures, about: dict[str, Any]) -> None:
    idle = figures.idle_cpu_percent
    software = f"SQLite {about['sqlite']}" if about["sqlite"] else f"PostgreSQL {about['postgresql']}"
    facts((
        ("jobs", f"{figures.done:,} of {options.jobs:,} done in {figures.seconds:.1f} s"),
        ("workers", f"{options.processes} processes, {options.concurrency} slots each"),
        ("durability", about["durability"]),
        ("pickup", _spread(figures.pickup_ms)),
        ("enqueue", _spread(figures.enqueue_ms)),
        ("produced", f"{figures.produced_per_second:,.0f} jobs/s"),
        ("throughput", f"{figures.jobs_per_second:,.0f} jobs/s"),
        ("idle CPU", None if idle is None else f"{idle:.2f} % of a core for each worker"),
        ("given back", f"{figures.given_back:,} claims before anything began"),
        ("duplicates", f"{figures.duplicates:,}"),
        ("missing", f"{figures.missing:,}"),
        ("made with", f"Python {about['python']}, {software}"),
        ("database", about["database"]),
    ))  # fmt: skip


def _shown(url: str) -> str:
    return without_password(url) if is_server(url) else str(file_of(url))


def _spread(found: Spread | None) -> str:
    if found is None:
        return "nothing was measured"
    parts = ("min", "median", "p95", "p99", "max")
    return ", ".join(f"{name} {getattr(found, name):.2f}" for name in parts) + " ms"
