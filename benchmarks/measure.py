"""Measuring: rounds that interleave, medians, percentiles, ratios, and what a benchmark hands back."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing: a value for each round."""

    name: str
    values: tuple[float, ...]
    unit: str
    settings: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure has to reach. ``least=False`` means at most."""

    name: str
    value: float
    target: float
    unit: str = "x"
    least: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one benchmark found."""

    name: str
    title: str
    settings: str
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Bench:
    """How to measure: where the files lie, how many rounds, full or quick sizes."""

    folder: Path
    quick: bool
    repeat: int
    _files: itertools.count[int] = field(default_factory=itertools.count)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def database(self, label: str = "jobs") -> str:
        """A path that no database lay on before."""
        return str(self.folder / f"{label}-{next(self._files)}.db")

    def interleave(self, variants: Mapping[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
        """Run every variant once a round, so that drift of the machine meets all of them alike.

        The order turns with every round: whoever goes first has no advantage.
        """
        found: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for turn in range(self.repeat):
            for name in names if turn % 2 == 0 else reversed(names):
                found[name].append(variants[name]())
        return {name: tuple(values) for name, values in found.items()}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least *percent* of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios within each round."""
    return median([value / other for value, other in zip(values, base, strict=True)])
