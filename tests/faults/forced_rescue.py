"""A rescue forced on a living worker: ``python -m faults.forced_rescue FOLDER``.

The first attempt is taken away while its handler runs, a second one begins elsewhere, then the first one ends. With
the fence its outcome changes nothing. Run against a copy without the fence, the history checker must see it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from faults.helpers import eventually
from faults.stage import Stage, build
from treadle.store.ops import rescue as rescuing
from treadle.store.ops import workers


def main(folder: Path) -> None:
    """Play the scenario; the ledgers and the database stay in *folder*."""
    stage, other = build(folder), build(folder)
    with stage.app.worker(name="first", concurrency=1):
        job = stage.wait.enqueue(name="first goes on").id
        eventually(lambda: len(stage.starts(job)) == 1, "the first attempt runs")
        rescue_all(stage)
        with other.app.worker(name="second", concurrency=1):
            eventually(lambda: len(stage.starts(job)) == 2, "the second attempt runs")
            (folder / "first goes on").touch()
            eventually(lambda: other.app.get(job).state.ended, "the job ended")
            probe = stage.quick.enqueue(number=1)
            probe.result(30)
    other.app.close()
    stage.app.close()


def rescue_all(stage: Stage) -> None:
    """Do to every registered worker what is done to dead ones."""
    store = stage.app.store
    for row in store.read(workers.identities):
        take = partial(rescuing.rescue_dead, slot=row.slot, epoch=row.epoch, worker="forced", seen_at=row.seen_at)
        store.submit(take).result()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
