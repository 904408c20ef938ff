"""Retry policies: pure values that say what follows a failure.

A policy counts *failures*, this one included: after the first failure ``failures`` is 1. ``Retry(n)`` gives n
retries after the first run, so every entry of a backoff list of length n is reached.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, NoReturn

from treadle import defaults
from treadle.clock import SECOND, to_duration
from treadle.errors import ConfigurationError
from treadle.model.sanitise import class_name

Delay = timedelta | float

RETRIES_MAX: Final = 1_000_000
DELAY_MAX: Final = timedelta(days=3650)


class Decision(NamedTuple):
    """What follows a failure.

    Attributes:
        kind: ``later`` (retry after *delay*), ``now`` (retry at once, spending only the count of *counted*)
            or ``stop`` (give up).
        delay: microseconds; 0 unless *kind* is ``later``.
        counted: class name whose immediate count this retry spends, only for ``now``.
        reason: why, in words.
    """

    kind: Literal["later", "now", "stop"]
    delay: int
    counted: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """A growing delay: ``base * factor ** (failures - 1)``, cut at the policy's cap.

    Args:
        base: the first delay, as timedelta or seconds.
        factor: growth per failure, 1 to 1000.

    Example:
        >>> Retry(5, backoff=Backoff(base=1, factor=3)).delay(3, luck=0.5)
        9000000
    """

    base: Delay = defaults.RETRY_BASE
    factor: float = defaults.RETRY_FACTOR

    def __post_init__(self) -> None:
        _duration("backoff base", self.base)
        if not _is_number(self.factor) or not 1 <= self.factor <= 1000:
            _refuse(f"backoff factor must be a number from 1 to 1000, not {self.factor!r}")

    def delay(self, failures: int, cap: int) -> int:
        """Microseconds after the given number of failures, at most *cap*; without jitter."""
        base = to_duration(self.base)
        if base == 0:
            return 0
        steps = max(0, failures - 1)
        # Compare logarithms first: 2.0 ** 1024 overflows a float.
        if steps * math.log(self.factor) >= math.log(max(cap, 1) / base):
            return cap
        return min(cap, round(base * self.factor**steps))


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """When and how often a failed job runs again.

    Args:
        retries: retries after the first run, 0 or more.
        backoff: a list of delays (the last one repeats), one delay, a :class:`Backoff`, or None for the
            default formula (10 s, doubled each time). Delays are timedelta or seconds.
        jitter: fraction by which a delay may be shorter or longer, 0 to 1.
        cap: longest delay before jitter. By default 1 h for a formula and none for delays you list.
        never: exception classes that end the job at once.
        immediately: exception class to number of retries without delay; they do not spend *retries*.
        on: exception class to another policy for it.

    For one exception the rule of its nearest class counts, whichever argument names it; within one class
    *immediately* goes before *never* and *on*.

    Raises:
        ConfigurationError: an argument is out of range.

    Example:
        >>> policy = Retry(2, backoff=(30, 120), jitter=0)
        >>> [policy.delay(failures, luck=0.5) for failures in (1, 2, 3)]
        [30000000, 120000000, 120000000]
        >>> policy.decide(ValueError(), 3, {}).kind
        'stop'
    """

    retries: int
    backoff: tuple[Delay, ...] | Backoff
    jitter: float
    cap: Delay | None
    never: tuple[type[BaseException], ...]
    immediately: Mapping[type[BaseException], int] = field(hash=False)
    on: Mapping[type[BaseException], Retry] = field(hash=False)

    def __init__(
        self,
        retries: int = defaults.RETRIES,
        *,
        backoff: Sequence[Delay] | Backoff | Delay | None = None,
        jitter: float = defaults.RETRY_JITTER,
        cap: Delay | None = None,
        never: tuple[type[BaseException], ...] = (),
        immediately: Mapping[type[BaseException], int] = MappingProxyType({}),
        on: Mapping[type[BaseException], Retry] | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "retries", _count("retries", retries, 0))
        put(self, "backoff", _backoff(backoff))
        if not _is_number(jitter) or not 0 <= jitter <= 1:
            _refuse(f"jitter must be a fraction from 0 to 1, not {jitter!r}")
        put(self, "jitter", float(jitter))
        if cap is not None:
            _duration("cap", cap)
        put(self, "cap", cap)
        put(self, "never", _classes("never", never))
        put(self, "immediately", _immediate_rules(immediately))
        put(self, "on", _policies(on))

    def delay(self, failures: int, luck: float) -> int:
        """Microseconds to wait after this number of failures.

        Args:
            failures: failures so far, this one included.
            luck: a random number in [0, 1); 0.5 means no jitter.
        """
        exact = self._exact_delay(failures)
        return max(0, round(exact * (1 + self.jitter * (2 * luck - 1))))

    def decide(
        self, exc: BaseException, failures: int, immediates: Mapping[str, int], *, luck: float = 0.5
    ) -> Decision:
        """Say what follows *exc*.

        Args:
            exc: what the handler raised.
            failures: failures so far, this one included.
            immediates: immediate retries spent so far, by class name.
            luck: a random number in [0, 1) for the jitter.
        """
        return self.decide_for(kinds_of(exc), failures, immediates, luck=luck)

    def decide_for(
        self, kinds: Sequence[str], failures: int, immediates: Mapping[str, int], *, luck: float = 0.5
    ) -> Decision:
        """The same for an error known by the names of its class and bases, nearest first."""
        if self.immediately or self.never or self.on:
            now = {class_name(cls): count for cls, count in self.immediately.items()}
            never = {class_name(cls) for cls in self.never}
            on = {class_name(cls): policy for cls, policy in self.on.items()}
            for name in kinds:
                if immediates.get(name, 0) < now.get(name, 0):
                    nth = immediates.get(name, 0) + 1
                    return Decision("now", 0, name, f"{name}: immediate retry {nth} of {now[name]}")
                if name in never:
                    return Decision("stop", 0, None, f"{name} is never retried")
                if name in on:
                    return on[name].decide_for(kinds, failures, immediates, luck=luck)
        if failures > self.retries:
            return Decision("stop", 0, None, f"all {self.retries} retries are spent")
        return Decision("later", self.delay(failures, luck), None, f"retry {failures} of {self.retries}")

    @property
    def counts_immediates(self) -> bool:
        """True when some class is retried without delay, so that a count has to be kept."""
        return bool(self.immediately) or any(policy.counts_immediates for policy in self.on.values())

    def with_rules_of(self, other: Retry) -> Retry:
        """These counts and delays with the exception rules of *other*; for an override stored with a job."""
        return Retry(
            self.retries,
            backoff=self.backoff,
            jitter=self.jitter,
            cap=self.cap,
            never=other.never,
            immediately=other.immediately,
            on=other.on,
        )

    def to_json(self) -> str:
        """The policy as JSON. Exception classes are names for display only: reading restores none of them.

        Example:
            >>> Retry(1, backoff=5).to_json()
            '{"retries": 1, "backoff": [5000000], "jitter": 0.1, "cap": null}'
        """
        return json.dumps(self._plain())

    @classmethod
    def from_json(cls, text: str) -> Retry:
        """Read what :meth:`to_json` wrote, without exception rules; add those with :meth:`with_rules_of`.

        Raises:
            ConfigurationError: the text is not such a policy.
        """
        try:
            stored = json.loads(text)
            raw, cap = stored["backoff"], stored["cap"]
            backoff: Sequence[Delay] | Backoff
            if isinstance(raw, dict):
                backoff = Backoff(base=_stored(raw["base"]), factor=raw["factor"])
            else:
                backoff = tuple(_stored(entry) for entry in raw)
            limit = None if cap is None else _stored(cap)
            return cls(stored["retries"], backoff=backoff, jitter=stored["jitter"], cap=limit)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise ConfigurationError(
                f"The stored retry policy {text[:200]!r} cannot be read: {error!r}"
            ) from error

    def _exact_delay(self, failures: int) -> int:
        cap = None if self.cap is None else to_duration(self.cap)
        if isinstance(self.backoff, Backoff):
            return self.backoff.delay(failures, to_duration(defaults.RETRY_CAP) if cap is None else cap)
        index = min(max(failures, 1), len(self.backoff)) - 1
        exact = to_duration(self.backoff[index])
        return exact if cap is None else min(exact, cap)

    def _plain(self) -> dict[str, object]:
        steps: object
        if isinstance(self.backoff, Backoff):
            steps = {"base": to_duration(self.backoff.base), "factor": self.backoff.factor}
        else:
            steps = [to_duration(entry) for entry in self.backoff]
        cap = None if self.cap is None else to_duration(self.cap)
        plain: dict[str, object] = {
            "retries": self.retries, "backoff": steps, "jitter": self.jitter, "cap": cap
        }  # fmt: skip
        if self.never:
            plain["never"] = [class_name(cls) for cls in self.never]
        if self.immediately:
            plain["immediately"] = {class_name(cls): count for cls, count in self.immediately.items()}
        if self.on:
            plain["on"] = {class_name(cls): policy._plain() for cls, policy in self.on.items()}
        return plain


def kinds_of(exc: BaseException) -> tuple[str, ...]:
    """The names of an error's class and its bases, nearest first.

    Example:
        >>> kinds_of(KeyError())[:3]
        ('KeyError', 'LookupError', 'Exception')
    """
    return tuple(class_name(cls) for cls in type(exc).__mro__)


def _refuse(what: str) -> NoReturn:
    raise ConfigurationError(f"Retry: {what}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= RETRIES_MAX:
        _refuse(f"{name} must be a whole number from {low} to {RETRIES_MAX:,}, not {value!r}")
    return value


def _duration(name: str, value: object) -> Delay:
    if not isinstance(value, timedelta) and not _is_number(value):
        _refuse(f"{name} must be a timedelta or seconds, not {value!r}")
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    assert isinstance(seconds, int | float)
    if not 0 <= seconds <= DELAY_MAX.total_seconds():
        _refuse(f"{name} must be from 0 to {DELAY_MAX.days} days, not {value!r}")
    return value if isinstance(value, timedelta) else seconds


def _backoff(value: object) -> tuple[Delay, ...] | Backoff:
    if value is None:
        return Backoff()
    if isinstance(value, Backoff):
        return value
    if isinstance(value, timedelta | int | float):
        return (_duration("backoff", value),)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        _refuse(f"backoff must be delays, one delay, a Backoff or None, not {value!r}")
    if not value:
        _refuse("backoff is an empty list; pass at least one delay, or None for the default")
    return tuple(_duration(f"backoff[{index}]", entry) for index, entry in enumerate(value))


def _classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, tuple | list | set | frozenset | Mapping) else (value,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, BaseException):
            _refuse(f"{name} must name exception classes, not {cls!r}")
    return classes


def _immediate_rules(value: Mapping[type[BaseException], int]) -> Mapping[type[BaseException], int]:
    _classes("immediately", value)
    if not isinstance(value, Mapping):
        _refuse(f"immediately must map exception classes to counts, not {value!r}")
    rules = {cls: _count(f"immediately[{cls.__name__}]", count, 1) for cls, count in value.items()}
    return MappingProxyType(rules)


def _policies(value: Mapping[type[BaseException], Retry] | None) -> Mapping[type[BaseException], Retry]:
    if value is None:
        return MappingProxyType({})
    _classes("on", value)
    for cls, policy in value.items():
        if not isinstance(policy, Retry):
            _refuse(f"on[{cls.__name__}] must be a Retry, not {policy!r}")
    return MappingProxyType(dict(value))


def _stored(micros: int) -> timedelta:
    return timedelta(seconds=micros / SECOND) if micros % SECOND else timedelta(seconds=micros // SECOND)
