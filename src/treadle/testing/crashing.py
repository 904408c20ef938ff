"""Crash injection for tasks of your own: killed at every place, or run twice; then your check must hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from treadle.app import Treadle
from treadle.clock import HeldClock
from treadle.model.job import JobRecord, JobState, NewJob
from treadle.store.opening import MEMORY_FOLDER
from treadle.testing.fuse import in_words
from treadle.testing.killing import Killer
from treadle.testing.solo import Solo

ATTEMPTS: Final = 100
LIMIT: Final = 100
TIMEOUT: Final = 60.0
SHOWN: Final = 3
LINES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashRun:
    """One run that was cut short and brought to its end, as a check gets it.

    Attributes:
        point: where it was cut, in words; empty for the run that was not.
        job: the job after that, with its attempts.
        folder: a folder of this run alone; the one the job was made for.
    """

    point: str
    job: JobRecord
    folder: Path


Making = NewJob | Callable[[Path], NewJob]
Check = Callable[[CrashRun], object]


class _Failure(NamedTuple):
    run: CrashRun
    error: Exception


def assert_survives_crashes(
    app: Treadle,
    job: Making,
    check: Check,
    *,
    lines: bool = True,
    also: Sequence[Callable[..., Any]] = (),
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
) -> list[CrashRun]:
    """Kill a process that runs *job* at every place, finish the job each time, then check.

    Places are: after the claim; before each line of the handler; before and after each commit of what it stores, such
    as an enqueue or a checkpoint; before and after the commit of its outcome. A line in a loop counts twice. Each time
    a process that has imported the app runs the job on a store of its own with a real worker, and dies by SIGKILL. The
    job is then taken back and brought to its end in this process.

    Args:
        app: an attribute of a module, so that another process can import it.
        job: made by ``task.job(...)``; or a function that makes it for the folder of each run, and puts back whatever
            runs have in common.
        check: gets the run, and raises or returns False when the effects are wrong. The app's store is the run's.
        lines: False to kill at commits only.
        also: further functions whose lines count, such as a helper that the handler calls.
        limit: places that may be killed at.
        timeout: seconds one run may take.

    Returns:
        Every run, the one that nobody killed first. All of them passed the check.

    Raises:
        AssertionError: the check failed somewhere; the message says after which kills.
        ConfigurationError: the app cannot be imported in another process.

    Example:
        >>> def charged_once(run: CrashRun) -> bool:
        ...     return (run.folder / "charges").read_text() == "ada 5"
        >>> assert_survives_crashes(app, lambda folder: charge.job(str(folder)), charged_once)  # doctest: +SKIP
    """
    __tracebackhide__ = True
    with _Trials(app, job, check, lines, also, timeout) as trials:
        whole, places = trials.run(0)
        if isinstance(whole, _Failure):
            whole.error.add_note("The check failed although nothing was killed.")
            raise whole.error
        if places > limit:
            raise AssertionError(f"There are {places} places to kill at, more than limit={limit}; or pass lines=False.")
        found: list[CrashRun | _Failure] = [whole]
        for at in range(1, places + 1):
            found.append(trials.run(at)[0])
        return _all_passed(found, f"{trials.task} does not survive every crash")


def assert_idempotent(app: Treadle, job: Making, check: Check) -> CrashRun:
    """Run *job* twice, as after a crash just before its outcome was stored, then check.

    The first attempt runs to its end and its outcome is lost; the second one is the same job again, with the same
    idempotency key. Both run in this process on a private store, so fakes in memory count.

    Args:
        app: whose task it is.
        job: made by ``task.job(...)``, or a function that makes it for a folder of its own.
        check: gets the run, and raises or returns False when the effects are wrong. The app's store is the run's.

    Raises:
        AssertionError: the check failed.

    Example:
        >>> app, paid = Treadle("memory://"), []
        >>> @app.task(name="pay")
        ... def pay(cents: int) -> None:
        ...     paid.append(cents)
        >>> assert_idempotent(app, pay.job(5), lambda run: paid == [5])
        Traceback (most recent call last):
        AssertionError: pay is not idempotent: the check failed.
        ...
        >>> app.close()
    """
    __tracebackhide__ = True
    with _folder() as folder, app.elsewhere("memory://", HeldClock(app.clock.now())):
        new = _made(job, folder)
        (job_id,) = app.store.insert((new,))
        with Solo(app) as first:
            outcome = first.run_and_lose(job_id)
        _finish(app, job_id)
        what = "held" if outcome is None else type(outcome).__name__.lower()
        point = f"after the first attempt had ended ({what}), before its outcome was stored"
        run = _checked(CrashRun(point=point, job=app.get(job_id), folder=folder), check)
    (passed,) = _all_passed([run], f"{new.options.task} is not idempotent")
    return passed


class _Trials:
    """Runs one job again and again, each time in another process and on a fresh store."""

    def __init__(
        self,
        app: Treadle,
        job: Making,
        check: Check,
        lines: bool,  # noqa: FBT001 - passed on
        also: Sequence[Callable[..., Any]],
        timeout: float,
    ) -> None:
        self._app = app
        self._job = job
        self._check = check
        self._lines = lines
        self._also = also
        self._timeout = timeout
        self._killer: Killer | None = None
        self._own = _folder()
        self.task = ""

    def __enter__(self) -> _Trials:
        self._place = self._own.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._killer is not None:
            self._killer.close()
        self._own.__exit__(*error)

    def run(self, at: int) -> tuple[CrashRun | _Failure, int]:
        """Kill at one place, 0 for none; what came of it, and how many places were passed."""
        store, clock = f"sqlite:///{self._place / f'{at}.db'}", HeldClock(self._app.clock.now())
        with _folder() as folder:
            with self._app.elsewhere(store, clock):
                job_id = self._stored(folder)
            passed = self._ready().run(store, at)
            with self._app.elsewhere(store, clock):
                _finish(self._app, job_id)
                point = in_words(passed[-1]) if at and len(passed) == at else ""
                run = CrashRun(point=point, job=self._app.get(job_id), folder=folder)
                return _checked(run, self._check), len(passed)

    def _stored(self, folder: Path) -> int:
        job = _made(self._job, folder)
        self.task = job.options.task
        (job_id,) = self._app.store.insert((job,))
        if self._app.get(job_id).state is JobState.SCHEDULED:
            self._app.reschedule(job_id, delay=0)
        return job_id

    def _ready(self) -> Killer:
        if self._killer is None:
            handler = self._app.registry.get(self.task).function
            functions = (handler, *self._also) if self._lines else ()
            self._killer = Killer(self._app, self.task, functions, self._place, self._timeout)
        return self._killer


def _made(job: Making, folder: Path) -> NewJob:
    return job if isinstance(job, NewJob) else job(folder)


def _finish(app: Treadle, job_id: int) -> None:
    """Run a job to its end under a registration that was not there before; a held one is left as it is."""
    last: object = None
    with Solo(app) as solo:
        for _ in range(ATTEMPTS):
            ran = solo.run(job_id)
            if ran is None:
                return
            last = ran
    raise AssertionError(f"There is no end after {ATTEMPTS} attempts; the last one was {last}.")


def _checked(run: CrashRun, check: Check) -> CrashRun | _Failure:
    try:
        if check(run) is False:
            raise AssertionError("the check returned False")
    except Exception as error:
        return _Failure(run, error)
    return run


@contextmanager
def _folder() -> Iterator[Path]:
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="treadle-", dir=parent) as made:
        yield Path(made)


# Telling -------------------------------------------------------------------------------------------------------


def _all_passed(found: Sequence[CrashRun | _Failure], what: str) -> list[CrashRun]:
    __tracebackhide__ = True
    failures = [one for one in found if isinstance(one, _Failure)]
    passed = [one for one in found if isinstance(one, CrashRun)]
    if not failures:
        return passed
    how_often = f" after {len(failures)} of {len(found) - 1} kills" if len(found) > 1 else ""
    lines = [f"{what}: the check failed{how_often}."]
    for one in failures[:SHOWN]:
        lines += ["", f"Cut {one.run.point}", *(f"  {line}" for line in _story(one))]
    others = [one.run.point for one in failures[SHOWN:]]
    if others:
        lines += ["", "It failed after these, too:", *(f"  {point}" for point in others)]
    safe = [one.point for one in passed if one.point]
    if safe:
        lines += ["", "It passed after these:", *(f"  {point}" for point in safe)]
    raise AssertionError("\n".join(lines)) from failures[0].error


def _story(one: _Failure) -> list[str]:
    """What happened then, and what the check said of it."""
    attempts = [f"attempt {each.attempt} {each.outcome}" for each in one.run.job.attempts]
    told = str(one.error).splitlines()[:LINES]
    kind = type(one.error).__name__
    return [
        f"then: {', '.join(attempts) or 'nothing ran'}; the job is {one.run.job.state}",
        f"check: {kind}: {told[0]}" if told else f"check: {kind}",
        *told[1:],
    ]
