"""What the demonstration says: progress while it runs, and a report of what the database and the disk hold."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from treadle.demo.crew import Kill
from treadle.demo.plan import Options, Plan
from treadle.demo.tree import Tree
from treadle.model.job import AttemptOutcome, JobRecord, JobState
from treadle.store.health import Crashes

SHOWN: Final = 20


class Screen(Protocol):
    """Where the demonstration speaks to; stored and file system text is escaped there."""

    def say(self, text: str) -> None:
        """Print whole lines."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far it is, on a terminal in place, elsewhere now and then as a line."""

    def clear(self) -> None:
        """Take a progress bar away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything the report is made of; each is counted in the database or on the disk.

    Attributes:
        files: files and symlinks of the source now.
        size: their bytes.
        problems: what does not match, each with its reason.
        counts: jobs by state.
        lost: jobs that were stored and are not in the database.
        seconds: from the start of the workers to the last job's end.
        jobs: jobs that ended in this time.
        kill: the worker that was killed.
        crashes: what was taken back from it.
        outcomes: ended attempts by outcome.
        twice: jobs with more than one succeeded attempt.
    """

    files: int
    size: int
    problems: Mapping[bytes, str]
    counts: Mapping[JobState, int]
    lost: int
    seconds: float
    jobs: int
    kill: Kill | None
    crashes: Crashes | None
    outcomes: Mapping[AttemptOutcome, int]
    twice: int

    @property
    def good(self) -> bool:
        """True when everything was copied, once, and matches."""
        whole = sum(self.counts.values()) == self.counts.get(JobState.SUCCEEDED, 0)
        return whole and not self.problems and not self.lost and not self.twice


def summary(options: Options, tree: Tree, plan: Plan) -> str:
    """What is about to happen, in a few lines."""
    without = f", without {', '.join(options.skip)}" if options.skip else ""
    lines = [
        f"Verified copy of {options.source}{without}",
        f"  to {options.copy}: {len(tree.files):,} files, {_size(sum(tree.files.values()))}",
    ]
    if not plan.resumed:
        lines.append(f"  {plan.jobs:,} jobs stored in one transaction; {options.workers} worker processes start.")
    elif plan.ended >= plan.jobs:
        lines.append(f"  An earlier run finished all {plan.jobs:,} jobs; --fresh begins anew. Comparing again.")
    else:
        lines.append(f"  Resumed: {plan.ended:,} of {plan.jobs:,} jobs ended in an earlier run; none is stored again.")
    return "\n".join(lines)


def report_lines(options: Options, plan: Plan, figures: Figures) -> str:
    """The report; nothing in it is assumed."""
    bad = len(figures.problems)
    match = "every SHA-256 equals the source's" if not bad else f"{bad:,} problems, see below"
    total = sum(figures.outcomes.values())
    parts = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(figures.outcomes.items()))
    rows = {
        "files": f"{figures.files:,} ({_size(figures.size)}); {match}",
        "jobs": _jobs(plan, figures),
        "attempts": f"{total:,}" + (f": {parts}" if parts else ""),
        "killed": _killed(options, figures),
        "lost": f"{figures.lost:,}",
        "finished twice": f"{figures.twice:,}",
        "database": options.place,
    }
    lines = [f"  {name:<15} {text}" for name, text in rows.items()]
    store = shlex.quote(options.place if options.store else _short(options.database))
    command = _command()
    hints = [f"  {command} stats --store {store}", f"  {command} jobs list --store {store}"]
    return "\n".join(["Report", *lines, "Look inside:", *hints])


def problem_lines(figures: Figures, unhappy: Sequence[JobRecord]) -> str:
    """What went wrong, at most 20 lines of each kind; or that nothing did."""
    lines = [f"  {os.fsdecode(name)}: {why}" for name, why in sorted(figures.problems.items())]
    more = len(lines) - SHOWN
    lines = lines[:SHOWN] + ([f"  and {more:,} more"] if more > 0 else [])
    for job in unhappy:
        last = next((attempt.message for attempt in reversed(job.attempts) if attempt.message), None)
        lines.append(f"  job {job.id} is {job.state}: {job.reason or last or 'no reason was given'}")
    if figures.good:
        return "Everything matches."
    return "\n".join(["Not everything matches:", *lines])


def _jobs(plan: Plan, figures: Figures) -> str:
    states = ", ".join(f"{number:,} {state}" for state, number in sorted(figures.counts.items()))
    text = f"{plan.jobs:,} ({states or 'none'})"
    if figures.jobs:
        rate = figures.jobs / max(figures.seconds, 0.001)
        text += f"; {figures.jobs:,} in {figures.seconds:.1f} s, {rate:,.0f} jobs/s with the start of the workers"
    return text


def _killed(options: Options, figures: Figures) -> str:
    kill, crashes = figures.kill, figures.crashes
    if kill is None or crashes is None:
        return "nobody; no running job was seen at the middle" if options.kill and figures.jobs else "nobody"
    text = f"worker {kill.worker} (pid {kill.pid}) after {kill.after:,} jobs; "
    if crashes.first_at is None:
        return text + "the kill hit no running job, so there was nothing to rescue"
    after = (crashes.first_at - kill.at) / 1000
    return text + f"{crashes.jobs:,} jobs rescued, the first {after:,.0f} ms after the kill"


def _size(count: int) -> str:
    """A number of bytes for people.

    Example:
        >>> _size(2_500_000)
        '2.5 MB'
    """
    return f"{count:,} bytes" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _command() -> str:
    """How to call Treadle from the same shell."""
    if os.path.basename(sys.argv[0]) == "treadle":
        return "treadle"
    return f"{shlex.quote(_short(Path(sys.executable)))} -m treadle"
