"""What an app can do to its jobs: each verb for plain code, and its twin for async code."""

from __future__ import annotations

from functools import partial

from treadle.model.sanitise import clean_text
from treadle.reading import Reading
from treadle.store.ops import change

REASON_CAP = 500


class Changing(Reading):
    """The changing half of :class:`treadle.Treadle`."""

    def retry(self, job_id: int) -> None:
        """Make a failed, held or cancelled job ready again: its budget is whole, its history stays.

        Raises:
            JobNotFound: there is none.
            JobStateError: it is in another state.
        """
        self.store.run(partial(change.retry, job_id=job_id))

    async def aretry(self, job_id: int) -> None:
        """The same from async code."""
        await (await self.aopen()).arun(partial(change.retry, job_id=job_id))

    def cancel(self, job_id: int, reason: str = "cancelled by hand") -> None:
        """Call off a job that has not begun; it is kept as ``cancelled`` with *reason* (at most 500 bytes).

        Raises:
            JobNotFound: there is none.
            JobStateError: it runs or has ended.
        """
        self.store.run(partial(change.cancel, job_id=job_id, reason=clean_text(reason, REASON_CAP)))

    async def acancel(self, job_id: int, reason: str = "cancelled by hand") -> None:
        """The same from async code."""
        store = await self.aopen()
        await store.arun(partial(change.cancel, job_id=job_id, reason=clean_text(reason, REASON_CAP)))
