"""The state machine: what an outcome makes of a job, and which moves are legal."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import JobStateError
from treadle.model.job import (
    CODES,
    ENDED,
    OUTCOME_CODES,
    OUTCOMES,
    STATES,
    AttemptOutcome,
    Claimed,
    JobState,
    NewJob,
    Options,
)
from treadle.model.outcome import (
    Aborted,
    Cancelled,
    Crashed,
    Failed,
    Held,
    Outcome,
    Released,
    RetryLater,
    Snoozed,
    Succeeded,
    not_stored,
    why_not_stored,
)
from treadle.model.retry import Retry, kinds_of
from treadle.model.settle import MOVES, Transition, called_off, check_move, settle, succeeded

S = JobState
NOW = 1_700_000_000_000_000
SECOND = 1_000_000
BEGAN = NOW - 3 * SECOND


class HashMismatch(ValueError):
    """An error with a rule of its own."""


def claimed(failures: int = 0, attempt: int = 1) -> Claimed:
    """An attempt that ended."""
    return Claimed(7, "mail", attempt, failures, 0, 0, 1, 1, "json", 2, None, 1, "default", 99, b"{}", BEGAN)


def failed(error: BaseException | None = None) -> Failed:
    """What a handler that raised came to."""
    return Failed(kinds_of(error or ValueError("no")), "ValueError", "no", "traceback")


def told(outcome: Outcome, retry: Retry | None = None, failures: int = 0, **more: object) -> Transition:
    """What *outcome* makes of a job with so many failures."""
    return settle(claimed(failures), outcome, retry or Retry(jitter=0), BEGAN, NOW, **more)  # type: ignore[arg-type]


# --- each outcome -----------------------------------------------------------------------------------


def test_every_transition_names_lease_job_and_times() -> None:
    """The lease guards it, the times are the attempt's."""
    for outcome in (Succeeded(), failed(), Snoozed(1), RetryLater(1, ""), Released("x"), Held("x"), Aborted("x")):
        found = told(outcome)
        assert (found.lease, found.job_id, found.started_at, found.finished_at) == (99, 7, BEGAN, NOW)


def test_success() -> None:
    """The job succeeded, spends nothing and carries its result and follow-up jobs."""
    follow = (NewJob(Options(task="next"), b"{}"),)
    found = told(Succeeded("msgpack", b"r", None, follow))
    assert found == Transition(
        99, 7, S.SUCCEEDED, AttemptOutcome.SUCCEEDED, BEGAN, NOW, codec="msgpack", data=b"r", follow=follow
    )
    assert found == succeeded(claimed(), Succeeded("msgpack", b"r", None, follow), BEGAN, NOW)


def test_success_with_a_result_that_was_not_stored() -> None:
    """The job succeeded all the same, and says why there is no result."""
    found = told(Succeeded(reason="too large"))
    assert (found.state, found.reason, found.data) == (S.SUCCEEDED, "too large", None)


def test_failure_with_retries_left() -> None:
    """The job is scheduled after the policy's delay, one failure spent, the error kept."""
    found = told(failed(), Retry(3, backoff=(30,), jitter=0))
    assert (found.state, found.outcome, found.failed) == (S.SCHEDULED, AttemptOutcome.FAILED, 1)
    assert found.due_at == NOW + 30 * SECOND
    assert (found.error_type, found.message, found.traceback) == ("ValueError", "no", "traceback")


def test_failure_without_retries_left() -> None:
    """The job failed for good, and the reason counts the retries."""
    found = told(failed(), Retry(3), failures=3)
    assert (found.state, found.failed, found.due_at) == (S.FAILED, 1, None)
    assert found.reason == "all 3 retries are spent"


def test_failure_of_a_class_that_is_never_retried() -> None:
    """The job failed at its first failure, with the class as the reason."""
    found = told(failed(HashMismatch()), Retry(3, never=(ValueError,)))
    assert (found.state, found.failed) == (S.FAILED, 1)
    assert "ValueError is never retried" in (found.reason or "")


def test_failure_with_an_immediate_retry() -> None:
    """The job is ready at once, spends no retry, and its class is counted apart."""
    found = told(failed(HashMismatch()), Retry(3, immediately={HashMismatch: 1}))
    assert (found.state, found.failed, found.due_at) == (S.READY, 0, NOW)
    assert found.immediate is not None
    assert found.immediate.endswith("HashMismatch")


def test_immediate_retries_run_out() -> None:
    """Once they are spent the ordinary policy decides."""
    retry = Retry(3, immediately={HashMismatch: 1}, jitter=0)
    first = told(failed(HashMismatch()), retry)
    assert first.immediate is not None
    second = told(failed(HashMismatch()), retry, immediates={first.immediate: 1})
    assert (second.state, second.failed, second.immediate) == (S.SCHEDULED, 1, None)


def test_retry_later() -> None:
    """The handler's own delay counts, one failure is spent."""
    found = told(RetryLater(5 * SECOND, "busy"), Retry(3))
    assert (found.state, found.outcome, found.failed) == (S.SCHEDULED, AttemptOutcome.FAILED, 1)
    assert (found.due_at, found.message) == (NOW + 5 * SECOND, "busy")


def test_retry_later_without_retries_left() -> None:
    """Asking to retry does not outlive the budget."""
    found = told(RetryLater(5, "busy"), Retry(2), failures=2)
    assert (found.state, found.failed, found.reason) == (S.FAILED, 1, "all 2 retries are spent")


def test_retry_later_without_words() -> None:
    """History never has an empty message for it."""
    assert told(RetryLater(5, "")).message == "the handler asked to retry"


def test_snooze() -> None:
    """The job is scheduled, nothing is spent."""
    found = told(Snoozed(5 * SECOND), failures=2)
    assert (found.state, found.outcome, found.failed) == (S.SCHEDULED, AttemptOutcome.SNOOZED, 0)
    assert found.due_at == NOW + 5 * SECOND


def test_snooze_never_runs_out() -> None:
    """It is not limited by the retry budget."""
    assert told(Snoozed(1), Retry(0), failures=50).state is S.SCHEDULED


@pytest.mark.parametrize("outcome", [Snoozed(-5), RetryLater(-5, "x")])
def test_a_negative_delay_is_now(outcome: Outcome) -> None:
    """No delay brings a job back before the moment it ended."""
    assert told(outcome).due_at == NOW


def test_released_after_the_start() -> None:
    """The lease goes back, nothing is spent, history tells why."""
    found = told(Released("shutdown"))
    assert (found.state, found.outcome, found.failed, found.due_at) == (S.READY, AttemptOutcome.RELEASED, 0, None)
    assert (found.reason, found.history) == ("shutdown", True)


def test_released_before_the_start() -> None:
    """A lease returned before its handler began leaves no trace."""
    found = told(Released("shutdown", started=False))
    assert (found.state, found.reason, found.history) == (S.READY, None, False)


def test_held() -> None:
    """The job is parked with its reason, nothing is spent."""
    found = told(Held("unreadable"))
    assert (found.state, found.outcome, found.failed, found.reason) == (S.HELD, AttemptOutcome.HELD, 0, "unreadable")


def test_aborted() -> None:
    """The job failed for good whatever is left of its retries."""
    found = told(Aborted("enough"), Retry(10))
    assert (found.state, found.outcome, found.failed) == (S.FAILED, AttemptOutcome.ABORTED, 1)
    assert (found.reason, found.message) == ("enough", "enough")


# --- whole lives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backoff", [(1,), (5, 1), (30, 120, 480, 1800, 7200)])
def test_every_entry_of_a_backoff_list_is_reached(backoff: tuple[int, ...]) -> None:
    """Retry(n) with n delays waits each of them once, in order, and then fails."""
    retry = Retry(len(backoff), backoff=backoff, jitter=0)
    waits = []
    failures = 0
    while (found := told(failed(), retry, failures)).state is S.SCHEDULED:
        assert found.due_at is not None
        waits.append((found.due_at - NOW) // SECOND)
        failures += found.failed
    assert tuple(waits) == backoff
    assert found.state is S.FAILED


@pytest.mark.parametrize("retries", [0, 1, 2, 10])
def test_a_job_runs_once_more_than_it_retries(retries: int) -> None:
    """Retry(n) is n retries after the first run."""
    runs, failures = 0, 0
    while True:
        runs += 1
        found = told(failed(), Retry(retries), failures)
        failures += found.failed
        if found.state is S.FAILED:
            break
    assert (runs, failures) == (retries + 1, retries + 1)


def test_luck_moves_the_delay_within_the_jitter() -> None:
    """Jitter of 10 % makes 90 % to 110 % of the delay."""
    retry = Retry(1, backoff=(100,), jitter=0.1)
    waits = [(told(failed(), retry, luck=luck).due_at or 0) - NOW for luck in (0.0, 0.5, 1.0)]
    assert waits == [90 * SECOND, 100 * SECOND, 110 * SECOND]


# --- the moves --------------------------------------------------------------------------------------

retries = st.builds(
    Retry,
    st.integers(0, 20),
    backoff=st.one_of(st.none(), st.lists(st.integers(0, 10_000), min_size=1, max_size=5)),
    jitter=st.floats(0, 1),
    never=st.sampled_from([(), (ValueError,), (HashMismatch,)]),
    immediately=st.sampled_from([{}, {HashMismatch: 2}, {ValueError: 1}]),
)
delays = st.integers(-10, 10**12)
outcomes = st.one_of(
    st.builds(Succeeded, data=st.none() | st.binary(max_size=5)),
    st.sampled_from([ValueError(), HashMismatch(), KeyError("x"), KeyboardInterrupt()]).map(failed),
    st.builds(Snoozed, delays),
    st.builds(RetryLater, delays, st.text(max_size=5)),
    st.builds(Released, st.text(max_size=5), st.booleans()),
    st.builds(Held, st.text(max_size=5)),
    st.builds(Aborted, st.text(max_size=5)),
    st.builds(Cancelled, st.text(max_size=5)),
    st.builds(Crashed, st.text(max_size=5), st.none() | st.text(max_size=5)),
)


@given(
    outcomes, retries, st.integers(0, 30), st.floats(0, 1, exclude_max=True),
    st.dictionaries(st.sampled_from(["ValueError", "HashMismatch"]), st.integers(0, 3)), st.integers(0, 4),
)  # fmt: skip
def test_settle_only_makes_legal_moves(
    outcome: Outcome, retry: Retry, failures: int, luck: float, immediates: dict[str, int], cap: int
) -> None:
    """Whatever comes, a running job goes where MOVES allows, and no count or moment runs backwards."""
    found = settle(claimed(failures), outcome, retry, BEGAN, NOW, luck, immediates, cap)
    check_move(S.RUNNING, found.state)
    assert found.failed in (0, 1)
    assert found.crashed == isinstance(outcome, Crashed)
    assert found.due_at is None or found.due_at >= NOW
    assert (found.state is S.SCHEDULED) <= (found.due_at is not None)
    assert (found.state is S.HELD) <= (found.reason is not None)
    assert (found.state is S.FAILED) <= (found.failed == 1 and found.reason is not None)
    assert found.history or isinstance(outcome, Released)


@given(outcomes, retries, st.integers(0, 30), st.integers(0, 4))
def test_what_is_called_off_is_never_tried_again(outcome: Outcome, retry: Retry, failures: int, cap: int) -> None:
    """A wish to cancel that came meanwhile lets a success stand and ends everything else, whatever was decided."""
    decided = settle(claimed(failures), outcome, retry, BEGAN, NOW, 0.5, {}, cap)
    found = called_off(decided, "not wanted")
    check_move(S.RUNNING, found.state)
    assert found.state is (S.SUCCEEDED if isinstance(outcome, Succeeded) else S.CANCELLED)
    assert (found.lease, found.error_type, found.traceback) == (decided.lease, decided.error_type, decided.traceback)
    assert isinstance(outcome, Succeeded) or (found.reason, found.due_at, found.immediate) == ("not wanted", None, None)


@pytest.mark.parametrize(
    ("crashes", "cap", "state"), [(0, 3, S.READY), (1, 3, S.READY), (2, 3, S.HELD), (0, 1, S.HELD)]
)
def test_crashes_have_a_cap_of_their_own(crashes: int, cap: int, state: JobState) -> None:
    """A crash spends no retry; at the cap the job is held and says how its process ended."""
    job = claimed()._replace(crashes=crashes)
    found = settle(job, Crashed("its process was killed by SIGSEGV (11)"), Retry(0), BEGAN, NOW, crash_cap=cap)
    assert (found.state, found.outcome, found.failed, found.crashed) == (state, AttemptOutcome.CRASHED, 0, 1)
    assert state is S.READY or "SIGSEGV" in str(found.reason)


def test_work_that_must_not_be_repeated_is_held_at_its_first_crash() -> None:
    """With the cap 0 nobody knows what the attempt has done, and a person has to say."""
    found = settle(claimed(), Crashed("its process exited with code 3"), Retry(5), BEGAN, NOW, crash_cap=0)
    assert found.state is S.HELD
    assert str(found.reason).startswith("outcome unknown: its process exited with code 3")


@given(st.sampled_from(get_args(Outcome)))
def test_every_kind_of_outcome_is_tried(kind: type) -> None:
    """The strategy above leaves none out."""
    assert kind in (Succeeded, Failed, Snoozed, RetryLater, Released, Held, Aborted, Cancelled, Crashed)


def test_every_state_has_its_moves() -> None:
    """The table is complete and knows no stranger."""
    assert set(MOVES) == set(S)
    assert set().union(*MOVES.values()) <= set(S)


def test_no_move_stays_where_it_is() -> None:
    """A move is a change."""
    assert [state for state, after in MOVES.items() if state in after] == []


def test_every_state_can_come_to_an_end() -> None:
    """From everywhere there is a way to an ended state."""
    for start in S:
        reached = {start}
        for _ in S:
            reached |= set().union(*(MOVES[state] for state in reached))
        assert reached & ENDED


def test_only_ready_jobs_start_running() -> None:
    """Running is reached by a claim alone."""
    assert [state for state, after in MOVES.items() if S.RUNNING in after] == [S.READY]


def test_ended_jobs_come_back_only_into_the_queue() -> None:
    """Retrying an ended job makes it ready or scheduled."""
    assert set().union(*(MOVES[state] for state in ENDED)) == {S.READY, S.SCHEDULED}


def test_an_illegal_move_is_refused_with_the_legal_ones() -> None:
    """The message names both states and what is possible instead."""
    with pytest.raises(JobStateError, match=r"A succeeded job cannot become running; .* ready"):
        check_move(S.SUCCEEDED, S.RUNNING)


@pytest.mark.parametrize(("before", "after"), [(before, after) for before in S for after in sorted(MOVES[before])])
def test_a_legal_move_is_allowed(before: JobState, after: JobState) -> None:
    """Everything in the table passes."""
    check_move(before, after)


def test_codes_of_states_never_change() -> None:
    """The numbers are in every database there is."""
    assert {state.value: code for state, code in CODES.items()} == {
        "waiting": 1, "scheduled": 2, "ready": 3, "blocked": 4, "running": 5, "held": 6, "succeeded": 7, "failed": 8,
        "cancelled": 9,
    }  # fmt: skip
    assert {code: state for state, code in CODES.items()} == STATES


def test_codes_of_outcomes_never_change() -> None:
    """The numbers are in every history there is."""
    assert {outcome.value: code for outcome, code in OUTCOME_CODES.items()} == {
        "succeeded": 1, "failed": 2, "snoozed": 3, "released": 4, "held": 5, "aborted": 6, "cancelled": 7, "crashed": 8,
    }  # fmt: skip
    assert {code: outcome for outcome, code in OUTCOME_CODES.items()} == OUTCOMES


@pytest.mark.parametrize("size", [None, 0, 1234567])
@pytest.mark.parametrize("why", ["", "two\nlines", "9 (8 bytes): 7", "result not stored: again"])
def test_why_a_result_is_missing_can_be_read_back(why: str, size: int | None) -> None:
    """The reason kept with a job gives back the words and the size it was made of."""
    assert why_not_stored(not_stored(why, size)) == (why, size)


@pytest.mark.parametrize("reason", [None, "", "crash cap", "was result not stored: no"])
def test_other_reasons_say_nothing_about_a_result(reason: str | None) -> None:
    """Only a reason made for a missing result is read as one."""
    assert why_not_stored(reason) is None
