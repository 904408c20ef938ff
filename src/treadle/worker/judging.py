"""Judging an attempt: its outcome under the policy in force for its very job."""

from __future__ import annotations

import random

from treadle.errors import ConfigurationError
from treadle.model.extra import policy_of
from treadle.model.outcome import Held, Outcome, Succeeded
from treadle.model.settle import Transition, settle, succeeded
from treadle.worker.runner import Attempt


def judge(
    attempt: Attempt, outcome: Outcome, started_at: int, now: int, immediates: dict[str, int] | None = None
) -> Transition:
    """Settle *outcome*, with the lines that the attempt has kept back.

    Args:
        attempt: what ended.
        outcome: what it came to.
        started_at: when its handler began, microseconds.
        now: when it ended, microseconds.
        immediates: immediate retries already granted, by error class name.
    """
    claimed, definition = attempt.claimed, attempt.definition
    if type(outcome) is Succeeded:
        found = succeeded(claimed, outcome, started_at, now)
    else:
        retry = definition.retry
        if claimed.extra is not None:
            try:
                retry = policy_of(claimed.extra, retry)
            except ConfigurationError as error:
                outcome = Held(f"undecodable: its options cannot be read: {error}"[:500])
        luck = random.random()  # noqa: S311 - jitter
        found = settle(claimed, outcome, retry, started_at, now, luck, immediates, definition.crash_cap)
    if attempt.context.lines is None:
        return found
    lines = attempt.context.last_lines()
    return found._replace(logs=tuple(lines)) if lines else found
