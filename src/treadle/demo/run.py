"""The demonstration from beginning to end: plan, work, kill, verify, report."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Final, NamedTuple

from treadle.app import Treadle
from treadle.clock import SystemClock
from treadle.demo.crew import Crew, Kill, WorkersFailed
from treadle.demo.plan import Options, Plan, prepare, store_jobs
from treadle.demo.report import Figures, Screen, problem_lines, report_lines, summary
from treadle.demo.tree import Tree, differences, walk
from treadle.demo.verified_copy import QUEUE, TASK, Copied, copy_files
from treadle.model.job import JobFilter, JobState
from treadle.store import health

LOOK_EVERY: Final = 0.05
DONE: Final = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.HELD)
INTERRUPTED: Final = 130
CONCURRENCY: Final = 4


class Worked(NamedTuple):
    """What the watch saw: seconds, jobs that ended meanwhile, and the kill."""

    seconds: float
    jobs: int
    kill: Kill | None


def run(options: Options, screen: Screen) -> int:
    """Run the demonstration and return the exit code: 0 only when every file was copied and every digest matches.

    Raises:
        TreadleError: a folder or the store cannot be used.
    """
    options = prepare(options)
    skip = [os.fsencode(name) for name in options.skip]
    with Treadle(options.url) as app:
        tree = walk(os.fsencode(options.source), skip)
        plan = store_jobs(app, options, tree)
        for name in tree.folders:  # empty ones too; jobs are about files
            os.makedirs(os.path.join(os.fsencode(options.copy), name), exist_ok=True)
        screen.say(summary(options, tree, plan))
        clock = SystemClock()
        crew = Crew(
            options.url, options.dest / "workers.log", options.workers, clock,
            words=("treadle.demo.verified_copy:app", "--concurrency", str(CONCURRENCY)), prefix="demo",
        )  # fmt: skip
        try:
            worked = _watch(app, options, plan, crew, screen)
            crew.stop()
            return _conclude(app, options, plan, worked, screen)
        except KeyboardInterrupt:
            screen.clear()
            screen.say("Interrupted; the workers finish what they run.")
            crew.stop()
            done, total = _done(app), plan.jobs
            screen.say(f"{done} of {total} jobs have ended. Run the same command again to go on from there.")
            return INTERRUPTED
        except WorkersFailed as error:
            screen.clear()
            screen.say(str(error))
            return 1
        finally:
            crew.stop()


def _watch(app: Treadle, options: Options, plan: Plan, crew: Crew, screen: Screen) -> Worked:
    """Keep the workers running until every job has ended; kill one of them on the way."""
    clock, pause = SystemClock(), threading.Event()
    begun = clock.monotonic()
    first = done = _done(app)
    kill: Kill | None = None
    halfway = first + (plan.jobs - first) // 2
    while done < plan.jobs:
        crew.mend()
        if options.kill and kill is None and done >= halfway:
            kill = _kill_a_busy_one(app, crew, done)
            if kill is not None:
                screen.say(f"Killed {kill.worker} (pid {kill.pid}) with SIGKILL after {done} jobs; another starts.")
        screen.progress("jobs", done, plan.jobs)
        pause.wait(LOOK_EVERY)
        done = _done(app)
        if not _open(app):
            break  # nothing is left to wait for, though jobs may be missing: the report tells
    screen.clear()
    return Worked(clock.monotonic() - begun, done - first, kill)


def _kill_a_busy_one(app: Treadle, crew: Crew, done: int) -> Kill | None:
    for worker in app.workers():
        if worker.alive and worker.running:
            kill = crew.kill(worker.pid, done)
            if kill is not None:
                return kill
    return None


def _conclude(app: Treadle, options: Options, plan: Plan, worked: Worked, screen: Screen) -> int:
    source, copy = os.fsencode(options.source), os.fsencode(options.copy)
    tree = walk(source, [os.fsencode(name) for name in options.skip])
    compared = 0

    def tick() -> None:
        nonlocal compared
        compared += 1
        screen.progress("files compared", compared, len(tree.files))

    problems = differences(source, copy, tree.files, tick)
    # A handler knows better why; but what it could not copy then may be in order now.
    told = _problems_of_jobs(app).items()
    problems |= {name: why for name, why in told if name in problems or name not in tree.files}
    problems |= tree.problems | _extra(tree, walk(copy))
    screen.clear()
    counts = app.counts().get(QUEUE, {})
    figures = Figures(
        files=len(tree.files), size=sum(tree.files.values()), problems=problems, counts=counts,
        lost=plan.jobs - sum(counts.values()), seconds=worked.seconds, jobs=worked.jobs, kill=worked.kill,
        crashes=_crashes(app, worked.kill), outcomes=app.store.read(health.outcomes),
        twice=app.store.read(health.finished_twice),
    )  # fmt: skip
    screen.say(report_lines(options, plan, figures))
    unhappy = [app.get(job.id) for job in app.find(JobFilter(task=TASK, states=DONE[1:]), size=10).jobs]
    screen.say(problem_lines(figures, unhappy))
    return 0 if figures.good else 1


def _problems_of_jobs(app: Treadle) -> dict[bytes, str]:
    """What the handlers could not copy, from their stored results."""
    problems: dict[bytes, str] = {}
    before: int | None = None
    while True:
        page = app.find(JobFilter(task=TASK, states=(JobState.SUCCEEDED,)), before=before, size=500)
        for job in page.jobs:
            result: Copied = app.result(job.id, copy_files.definition, timeout=0)
            problems |= dict(result.problems)
        if page.next is None:
            return problems
        before = page.next


def _extra(source: Tree, copy: Tree) -> dict[bytes, str]:
    """What stands only in the copy, and folders that it lacks."""
    extra = {*copy.files, *copy.folders} - {*source.files, *source.folders}
    missing = set(source.folders) - set(copy.folders)
    return (
        copy.problems
        | dict.fromkeys(extra, "only in the copy")
        | dict.fromkeys(missing, "there is no such folder in the copy")
    )


def _crashes(app: Treadle, kill: Kill | None) -> health.Crashes | None:
    return app.store.read(partial(health.crashes_of, worker=kill.worker, since=kill.at)) if kill else None


def _done(app: Treadle) -> int:
    counts = app.counts().get(QUEUE, {})
    return sum(counts.get(state, 0) for state in DONE)


def _open(app: Treadle) -> bool:
    counts = app.counts().get(QUEUE, {})
    return any(number for state, number in counts.items() if state not in DONE)
