"""The roll: which leases of a worker had begun, read by others after its death."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.children import child
from treadle.host.roll import Roll, read_roll


def test_the_roll_outlives_its_process(tmp_path: Path) -> None:
    """What was entered and not left is read after SIGKILL."""
    code = """
        from pathlib import Path
        from treadle.host.roll import Roll
        roll = Roll(Path(sys.argv[1]), 4)
        for lease in (11, 12, 13):
            roll.enter(lease)
        roll.leave(12)
        say("entered")
        hear()
    """
    path = tmp_path / "roll-1"
    with child(code, path) as writer:
        writer.hear()
        writer.kill()
    assert sorted(read_roll(path) or ()) == [11, 13]


def test_more_than_it_holds_means_that_any_may_have_begun(tmp_path: Path) -> None:
    """Until those beyond its places have left; one that never began makes no difference."""
    roll = Roll(tmp_path / "roll-1", 2)
    for lease in (1, 2, 3, 4):
        roll.enter(lease)
    assert read_roll(tmp_path / "roll-1") is None
    for lease in (77, 78, 3):
        roll.leave(lease)
    assert read_roll(tmp_path / "roll-1") is None, "4 has begun, and stands nowhere"
    roll.leave(4)
    assert sorted(read_roll(tmp_path / "roll-1") or ()) == [1, 2]
    roll.leave(1)
    roll.enter(5)
    assert sorted(read_roll(tmp_path / "roll-1") or ()) == [2, 5]
    roll.close()
    assert read_roll(tmp_path / "roll-1") is None


@pytest.mark.parametrize("data", [b"", b"1234567"])
def test_what_is_no_roll_tells_nothing(tmp_path: Path, data: bytes) -> None:
    """A file cut short charges everybody rather than nobody."""
    (tmp_path / "roll-1").write_bytes(data)
    assert read_roll(tmp_path / "roll-1") is None
