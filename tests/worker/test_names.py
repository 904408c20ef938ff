from __future__ import annotations

from treadle import Treadle
from worker.kit import PATIENCE


def test_two_live_workers_may_share_a_name(app: Treadle) -> None:
    """A name is for people: two live workers of one name both work, and neither is taken for the other's leftover."""
    task = app.task(name="work")(lambda: None)
    with app.worker(name="twin") as first, app.worker(name="twin") as second:
        ids = app.enqueue_many(task.job() for _ in range(50))
        app.wait(ids, PATIENCE)
        assert [(one.name, one.alive) for one in app.workers()] == [("twin", True)] * 2
        assert first.failure is None
        assert second.failure is None
    assert all(app.get(job_id).attempt == 1 for job_id in ids)
