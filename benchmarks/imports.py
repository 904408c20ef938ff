"""What ``import treadle`` costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from benchmarks import ROOT
from benchmarks.measure import Bench, Figure, Section, Target, median

ALLOWED = {"treadle", "msgspec", "cronsim", "click"}
FLOOR = "asyncio, sqlite3, msgspec, click"
SCRIPT = """
import sys, time
before = set(sys.modules)
begun = time.perf_counter()
import {what}
taken = time.perf_counter() - begun
import json
added = sorted(set(sys.modules) - before)
print(json.dumps([taken * 1e3, added]))
"""


def run(bench: Bench) -> Section:
    modules: dict[str, list[str]] = {}
    variants = {what: partial(once, what, modules) for what in ("treadle", FLOOR)}
    for what in variants:
        once(what, modules)  # writes the byte code
    often = Bench(folder=bench.folder, quick=bench.quick, repeat=bench.repeat * bench.size(7, 2))
    found = often.interleave(variants)
    foreign = sorted({name.partition(".")[0] for name in modules["treadle"]} - sys.stdlib_module_names - ALLOWED)
    foreign = [name for name in foreign if not name.startswith("_")]
    return Section(
        name="imports",
        title="import treadle",
        settings=f"A fresh interpreter each time, byte code written before, {often.repeat} times. Floor: {FLOOR}.",
        figures=(
            Figure(name="import treadle", values=found["treadle"], unit="ms"),
            Figure(name="floor", values=found[FLOOR], unit="ms"),
            Figure(name="import treadle, modules", values=(float(len(modules["treadle"])),), unit=""),
            Figure(name="floor, modules", values=(float(len(modules[FLOOR])),), unit=""),
        ),
        targets=(
            Target(name="import", value=median(found["treadle"]), target=80, unit="ms", least=False),
            Target(name="optional dependencies imported", value=len(foreign), target=0, unit="", least=False),
        ),
        notes=(f"imported beyond its dependencies: {', '.join(foreign)}",) if foreign else (),
    )


def once(what: str, modules: dict[str, list[str]]) -> float:
    """Milliseconds the import took; the modules it brought are kept."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(what=what)], env=environment, capture_output=True, text=True, check=True
    )
    taken, modules[what] = json.loads(done.stdout)
    return float(taken)
