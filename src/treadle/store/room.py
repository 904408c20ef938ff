"""Whether there is room for new work: on the disk, and within the budget of the file."""

from __future__ import annotations

from pathlib import Path

from treadle.errors import StoreFull
from treadle.host.files import free_bytes


def check(path: Path, coming: int, *, min_free: int, max_size: int | None) -> None:
    """Refuse *coming* bytes of new work when they would leave too little room.

    Args:
        path: the database.
        coming: bytes of arguments about to be stored.
        min_free: bytes kept free on the disk for running work to be settled.
        max_size: bytes the database and its log may have, None for no budget.

    Raises:
        StoreFull: nothing was stored; the message says what is short.
    """
    free = free_bytes(path)
    if free - coming < min_free:
        raise StoreFull(
            f"Only {free:,} bytes are free under {path} and {min_free:,} are kept for running work (min_free). "
            "Nothing was enqueued; free space, work resumes by itself."
        )
    if max_size is None:
        return
    try:
        wal = Path(f"{path}-wal")
        size = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    except FileNotFoundError:
        return  # the file is lost, and the write that follows says so
    if size + coming > max_size:
        raise StoreFull(
            f"{path} has {size:,} bytes of its budget of {max_size:,} (max_size). "
            "Nothing was enqueued; prune and compact ('treadle prune', 'treadle compact') or raise the budget."
        )
