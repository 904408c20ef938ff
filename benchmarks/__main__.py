"""``python -m benchmarks [name ...] [--quick] [--repeat 3] [--json FILE] [--write docs/benchmarks.md]``."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.measure import Bench, Section
from benchmarks.report import as_text, merge, write_page

NAMES = ("drain", "enqueue", "mixed", "pickup", "scale", "rescue", "payload", "imports", "server")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to run: {', '.join(NAMES)}; default all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, interleaved A B A B; the median is shown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured value; FILE is merged into")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    parser.add_argument("--folder", type=Path, help="where the databases lie; default: the temporary folder")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, show what FILE holds")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    if chosen.repeat < 1:
        parser.error("--repeat must be 1 or more")
    return chosen


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    bench = Bench(folder=folder, quick=chosen.quick, repeat=chosen.repeat)
    machine = describe(folder)
    # Byte code is kept, as on any installed machine: without it imports take twice as long and more memory.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    sections: list[Section] = []
    for name in chosen.names or NAMES:
        begun = time.perf_counter()
        section: Section = importlib.import_module(f"benchmarks.{name}").run(bench)
        sections.append(section)
        print(f"\n{as_text(asdict(section), quick=chosen.quick)}")
        print(f"  ({time.perf_counter() - begun:.0f} s)", flush=True)
    return {
        "machine": machine, "quick": chosen.quick, "repeat": chosen.repeat,
        "sections": [asdict(section) for section in sections],
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.ERROR)
    chosen = parse(arguments)
    if chosen.from_json:
        found = json.loads(chosen.from_json.read_text("utf-8"))
        print("\n\n".join(as_text(section, quick=found["quick"]) for section in found["sections"]))
    else:
        with tempfile.TemporaryDirectory(prefix="treadle-bench-", dir=chosen.folder) as folder:
            found = measure(chosen, Path(folder))
    if chosen.json:
        found = merge(chosen.json, found, NAMES)
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if chosen.write:
        write_page(chosen.write, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
