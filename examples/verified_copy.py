"""Verified copy: `python examples/verified_copy.py --source DIR --dest DIR` copies a folder with jobs.

The code is `src/treadle/demo/` (its task is in `verified_copy.py` there), so that an installed Treadle has it too:
this file and `treadle demo` are the same program.
"""

from __future__ import annotations

import sys

from treadle.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]], prog_name="treadle")
