"""An app whose module opens something when it is imported, so that it must not be forked."""

from __future__ import annotations

import os
from pathlib import Path

from treadle import Treadle

app = Treadle("sqlite:///till.db")
connection = os.pipe()


@app.task(name="charge")
def charge(folder: str) -> None:
    with (Path(folder) / "charges").open("a") as file:
        file.write(f"{os.getppid()}\n")
