"""``python3 dev.py faults [points|disk] ...``: one of the two programs with its words, or both at full size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAMS = ("points", "disk")


def main(words: list[str]) -> int:
    """Run what the first word names; 1 when a promise was broken."""
    chosen = words[:1] if words and words[0] in PROGRAMS else list(PROGRAMS)
    rest = words[1:] if chosen == words[:1] else words
    codes = [
        subprocess.run([sys.executable, Path(__file__).with_name(f"{name}.py"), *rest], check=False).returncode
        for name in chosen
    ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
