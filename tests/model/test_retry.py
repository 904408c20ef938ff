from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import defaults
from treadle.errors import ConfigurationError
from treadle.model.retry import Backoff, Retry
from treadle.model.sanitise import class_name

SECOND = 1_000_000
DELAYS = st.floats(0, 1e6) | st.integers(0, 10**8) | st.timedeltas(timedelta(0), timedelta(days=3650))
POLICIES = st.builds(
    Retry,
    st.integers(0, 10**6),
    backoff=st.none() | DELAYS | st.lists(DELAYS, min_size=1, max_size=8)
    | st.builds(Backoff, base=DELAYS, factor=st.floats(1, 1000)),
    jitter=st.floats(0, 1),
    cap=st.none() | DELAYS,
)  # fmt: skip


class Broken(Exception):
    pass


class Worse(Broken):
    pass


def test_defaults_are_the_documented_ones() -> None:
    """Ten retries from 10 s, doubled, at most an hour."""
    policy = Retry()
    assert policy.retries == defaults.RETRIES
    assert [policy.delay(n, 0.5) // SECOND for n in (1, 2, 3, 9, 10, 11)] == [10, 20, 40, 2560, 3600, 3600]


def test_every_entry_of_a_list_is_reached_and_the_last_repeats() -> None:
    """Retry(n) is n retries, so a list of n entries is used to its end, without a hidden cap."""
    policy = Retry(6, backoff=(30, 120, 480, 1800, 7200), jitter=0)
    decisions = [policy.decide(Broken(), n, {}) for n in range(1, 8)]
    assert [d.delay // SECOND for d in decisions] == [30, 120, 480, 1800, 7200, 7200, 0]
    assert [d.kind for d in decisions] == ["later"] * 6 + ["stop"]
    assert decisions[-1].reason == "all 6 retries are spent"
    assert decisions[0].reason == "retry 1 of 6"
    assert Retry(0).decide(Broken(), 1, {}).kind == "stop"


def test_a_given_cap_holds_for_lists_too() -> None:
    """A cap somebody asked for is applied to everything."""
    assert Retry(backoff=(30, 7200), cap=timedelta(minutes=1), jitter=0).delay(2, 0.5) == 60 * SECOND


@given(policy=POLICIES, failures=st.integers(0, 10**6), luck=st.floats(0, 1, exclude_max=True))
def test_delays_are_bounded(policy: Retry, failures: int, luck: float) -> None:
    """No delay is negative, too large for a database, or beyond jitter around the exact one."""
    exact, delay = policy.delay(failures, 0.5), policy.delay(failures, luck)
    assert 0 <= delay < 2**63
    assert exact * (1 - policy.jitter) - 1 <= delay <= exact * (1 + policy.jitter) + 1


@given(policy=POLICIES, failures=st.integers(1, 10**6))
def test_formula_delays_never_shrink(policy: Retry, failures: int) -> None:
    """A formula never waits less after more failures."""
    if isinstance(policy.backoff, Backoff):
        assert policy.delay(failures, 0.5) <= policy.delay(failures + 1, 0.5)


@given(policy=POLICIES, failures=st.integers(0, 1000), luck=st.floats(0, 1, exclude_max=True))
def test_stored_policies_behave_the_same(policy: Retry, failures: int, luck: float) -> None:
    """A policy read back from JSON makes the same decisions."""
    again = Retry.from_json(policy.to_json())
    assert again.decide(Broken(), failures, {}, luck=luck) == policy.decide(Broken(), failures, {}, luck=luck)
    assert Retry.from_json(again.to_json()) == again


def test_never_ends_at_once() -> None:
    """A terminal class, or a subclass of it, gives up with the reason."""
    decision = Retry(never=(Broken,)).decide(Worse(), 1, {})
    assert decision.kind == "stop"
    assert decision.reason == f"{class_name(Broken)} is never retried"


def test_immediate_retries_have_their_own_count() -> None:
    """They name the class counted; when spent, the ordinary rule follows."""
    policy, name = Retry(1, immediately={Broken: 2}), class_name(Broken)
    first = policy.decide(Worse(), 1, {})
    assert (first.kind, first.delay, first.counted) == ("now", 0, name)
    assert policy.decide(Worse(), 99, {name: 1}).kind == "now"
    assert policy.decide(Worse(), 1, {name: 2}).kind == "later"
    assert policy.decide(Worse(), 2, {name: 2}).kind == "stop"
    assert policy.decide(ValueError(), 1, {}).kind == "later"


def test_the_nearest_class_wins() -> None:
    """A rule for a subclass goes before one for its base."""
    policy = Retry(never=(Broken,), on={Worse: Retry(7, backoff=1, jitter=0)})
    assert policy.decide(Worse(), 7, {}).delay == SECOND
    assert policy.decide(Worse(), 8, {}).kind == "stop"
    assert policy.decide(Broken(), 1, {}).kind == "stop"


def test_rules_are_shown_in_json_but_not_read_back() -> None:
    """Stored class names are for display; the task's rules are added to an override."""
    task = Retry(3, never=(KeyError,), immediately={Broken: 1}, on={OSError: Retry(1)})
    assert '"never": ["KeyError"]' in task.to_json()
    override = Retry.from_json(Retry(9, never=(ValueError,)).to_json())
    assert override.never == ()
    joined = override.with_rules_of(task)
    assert (joined.retries, joined.never, joined.on) == (9, (KeyError,), task.on)


def test_policies_are_values() -> None:
    """Equal, hashable, and nothing in them can be changed."""
    rules: dict[type[BaseException], int] = {Broken: 1}
    policy = Retry(2, immediately=rules)
    assert policy == Retry(2, immediately={Broken: 1})
    assert hash(policy) == hash(Retry(2, immediately={Broken: 1}))
    rules[Broken] = 5
    assert policy.immediately[Broken] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.retries = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retries": -1}, "retries must be a whole number from 0"),
        ({"retries": True}, "not True"),
        ({"retries": 1.5}, "not 1.5"),
        ({"backoff": ()}, "empty list"),
        ({"backoff": "30"}, "not '30'"),
        ({"backoff": (1, -2)}, r"backoff\[1\] must be from 0"),
        ({"backoff": (float("nan"),)}, "not nan"),
        ({"backoff": timedelta(days=4000)}, "3650 days"),
        ({"jitter": 1.1}, "jitter must be a fraction"),
        ({"cap": "1h"}, "cap must be a timedelta"),
        ({"never": (int,)}, "never must name exception classes"),
        ({"never": ("ValueError",)}, "never must name exception classes"),
        ({"immediately": {ValueError: 0}}, r"immediately\[ValueError\]"),
        ({"immediately": {1: 1}}, "immediately must name"),
        ({"on": {ValueError: 3}}, r"on\[ValueError\] must be a Retry"),
    ],
)
def test_bad_arguments_are_refused_in_words(options: dict[str, Any], words: str) -> None:
    """Each refusal names the argument and the value."""
    with pytest.raises(ConfigurationError, match=words):
        Retry(**options)


@pytest.mark.parametrize("factor", [0.5, float("inf"), 1e9, "2"])
def test_bad_factors_are_refused(factor: Any) -> None:
    """A formula must grow, and not without bound."""
    with pytest.raises(ConfigurationError, match="backoff factor"):
        Backoff(factor=factor)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"retries": 1, "backoff": 5, "jitter": 0, "cap": null}']
)
def test_a_damaged_stored_policy_is_refused(text: str) -> None:
    """What is not a stored policy is refused with the text."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Retry.from_json(text)
