"""What only some jobs carry: a retry policy of their own, and meta."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ConfigurationError, InvalidPayload
from treadle.model.extra import encode_extra, meta_of, policy_of
from treadle.model.retry import Backoff, Retry

DEFAULT = Retry(7, backoff=(1, 2), never=(KeyError,), immediately={ValueError: 2})
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("meta", [None, {}])
def test_most_jobs_carry_nothing(meta: dict[str, object] | None) -> None:
    """Without a policy and without meta nothing is stored."""
    assert encode_extra(None, meta) is None


@given(st.dictionaries(text, plain, min_size=1, max_size=4))
def test_meta_comes_back_as_it_was(meta: dict[str, Any]) -> None:
    """Any JSON value under any text key."""
    assert meta_of(encode_extra(None, meta)) == meta


@pytest.mark.parametrize("key", [1, None, ("a",), b"a"])
def test_meta_keys_are_text(key: object) -> None:
    """Other keys are refused, as JSON would turn them into text."""
    with pytest.raises(InvalidPayload, match="meta keys must be text"):
        encode_extra(None, {key: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [object(), {1, object()}, float("nan"), "\ud800"])
def test_meta_that_json_cannot_carry_is_refused(value: object) -> None:
    """Nothing is stored that cannot be read back."""
    with pytest.raises(InvalidPayload):
        encode_extra(None, {"a": value})


def test_a_job_without_a_policy_follows_its_task() -> None:
    """Meta alone changes no policy."""
    extra = encode_extra(None, {"a": 1})
    assert extra is not None
    assert policy_of(extra, DEFAULT) is DEFAULT


@pytest.mark.parametrize(
    "own", [Retry(0), Retry(3, backoff=(30, 120), jitter=0), Retry(9, backoff=Backoff(base=2, factor=3), cap=60)]
)
def test_a_jobs_own_counts_and_delays_win(own: Retry) -> None:
    """Retries, delays, jitter and cap are the job's."""
    extra = encode_extra(own, None)
    assert extra is not None
    found = policy_of(extra, DEFAULT)
    assert (found.retries, found.jitter) == (own.retries, own.jitter)
    assert [found.delay(n, 0.5) for n in range(1, 12)] == [own.delay(n, 0.5) for n in range(1, 12)]


def test_exception_rules_stay_the_tasks() -> None:
    """Classes cannot be stored, so the rules come from the task as it is now."""
    extra = encode_extra(Retry(3, never=(TypeError,)), None)
    assert extra is not None
    found = policy_of(extra, DEFAULT)
    assert (found.never, found.immediately) == (DEFAULT.never, DEFAULT.immediately)


def test_a_policy_and_meta_do_not_disturb_each_other() -> None:
    """Both come back."""
    extra = encode_extra(Retry(3), {"retry": "mine", "meta": 1})
    assert extra is not None
    assert meta_of(extra) == {"retry": "mine", "meta": 1}
    assert policy_of(extra, DEFAULT).retries == 3


@pytest.mark.parametrize("damaged", ["", "{", "nonsense", '{"retry": 5}', '{"retry": {"retries": -1}}'])
def test_a_damaged_policy_is_told(damaged: str) -> None:
    """A policy that cannot be read is never replaced by another in silence."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        policy_of(damaged, DEFAULT)


@pytest.mark.parametrize("damaged", [None, "", "{", "[]", "5", "null", '{"meta": 5}', "{}", '{"meta": null}'])
def test_meta_that_cannot_be_read_is_empty(damaged: str | None) -> None:
    """Showing a job never fails because of its meta."""
    assert meta_of(damaged) == {}


@pytest.mark.parametrize("other", ["[]", "5", "null"])
def test_an_extra_of_another_shape_has_no_policy(other: str) -> None:
    """JSON that is no object carries no policy."""
    assert policy_of(other, DEFAULT) is DEFAULT
