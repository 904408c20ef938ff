"""Rivals, each at its best sensible setting. A rival that is not installed is left out and said so."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """The installed version of *package*, None when there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(*packages: str) -> tuple[str, ...]:
    """A note for each of *packages* that is not installed."""
    return tuple(f"{name} is not installed, so its rows are left out: pip install {name}"
                 for name in packages if installed(name) is None)  # fmt: skip
