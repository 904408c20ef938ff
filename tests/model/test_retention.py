"""How long history is kept."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest

from treadle import defaults
from treadle.errors import ConfigurationError
from treadle.model.job import ENDED, JobState
from treadle.model.retention import Keep, Retention


def test_the_defaults_are_those_of_the_table() -> None:
    """Succeeded, failed and cancelled jobs have the ages the documentation names."""
    assert Retention().rules() == (
        (JobState.SUCCEEDED, Keep(age=defaults.KEEP_SUCCEEDED)),
        (JobState.FAILED, Keep(age=defaults.KEEP_FAILED)),
        (JobState.CANCELLED, Keep(age=defaults.KEEP_CANCELLED)),
    )


def test_there_is_a_rule_for_every_end() -> None:
    """No ended state is forgotten, and no living one is pruned."""
    assert {state for state, _ in Retention().rules()} == ENDED


def test_the_dead_letter_is_kept_longest() -> None:
    """What a person may still want to look at outlives what went well."""
    rules = dict(Retention().rules())
    ages = [rules[state].age for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED)]
    assert ages == sorted(age for age in ages if age is not None)


def test_one_rule_can_be_changed_alone() -> None:
    """The others keep their defaults."""
    changed = Retention(failed=Keep(count=5))
    assert (changed.failed, changed.succeeded) == (Keep(count=5), Retention().succeeded)


def test_keep_without_limits_keeps_for_ever() -> None:
    """Neither age nor count."""
    assert (Keep().age, Keep().count) == (None, None)


@pytest.mark.parametrize("zero", [Keep(age=timedelta(0)), Keep(count=0)])
def test_keeping_nothing_is_allowed(zero: Keep) -> None:
    """Zero is a limit like any other."""
    assert Retention(succeeded=zero).succeeded == zero


@pytest.mark.parametrize("wrong", [{"age": timedelta(seconds=-1)}, {"count": -1}])
def test_negative_limits_are_refused(wrong: dict[str, object]) -> None:
    """The message shows the limit that was given."""
    with pytest.raises(ConfigurationError, match=r"Keep\((age|count)=.*\) is negative"):
        Keep(**wrong)  # type: ignore[arg-type]


def test_rules_are_values() -> None:
    """Nobody changes a rule behind another's back."""
    with pytest.raises(FrozenInstanceError):
        Keep().count = 5  # type: ignore[misc]
    assert Keep(count=5) == Keep(count=5)
