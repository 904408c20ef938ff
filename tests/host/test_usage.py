"""What processes use, and the limits they can be given."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from host.children import child
from treadle.host.usage import KILO, Used, memory_of, oom_kills, peak_resident, resident_bytes, usage_of, used_by

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux shows them")
MEGA = 1_000_000
BALLAST = f"held = bytearray({100 * MEGA}); held[::4096] = b'x' * len(held[::4096])"


def test_a_meter_measures_its_own_stretch() -> None:
    """A peak before it was made does not count; processor time of ended subprocesses does."""
    code = f"""
        import subprocess
        from treadle.host.usage import Meter
        first = Meter()
        {BALLAST}
        say(first.read().peak_rss > {100 * MEGA})
        del held
        second = Meter()
        say(second.read().peak_rss < {100 * MEGA})
        before = second.read().cpu
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"])
        say(second.read().cpu - before > 20_000)
    """
    with child(code) as measured:
        assert [measured.hear() for _ in range(3)] == ["True"] * 3


@pytest.mark.parametrize("soft", [None, 800 * MEGA])
def test_a_memory_limit_ends_with_its_context(soft: int | None) -> None:
    """Beyond it allocations fail, here and in programs started meanwhile; then whatever held before holds again."""
    code = f"""
        import resource, subprocess
        from treadle.host.usage import memory_limit
        if {soft}:
            resource.setrlimit(resource.RLIMIT_DATA, ({soft}, resource.RLIM_INFINITY))
        before = resource.getrlimit(resource.RLIMIT_DATA)
        program = [sys.executable, "-c", "bytearray({200 * MEGA})"]
        try:
            with memory_limit({150 * MEGA}):
                say(subprocess.run(program, stderr=subprocess.DEVNULL).returncode)
                bytearray({200 * MEGA})
        except MemoryError:
            say("MemoryError")
        say(len(bytearray({200 * MEGA})))
        say(subprocess.run(program).returncode)
        say(resource.getrlimit(resource.RLIMIT_DATA) == before)
        with memory_limit(None):
            say(resource.getrlimit(resource.RLIMIT_DATA) == before)
    """
    with child(code) as limited:
        assert [limited.hear() for _ in range(6)] == ["1", "MemoryError", str(200 * MEGA), "0", "True", "True"]


def test_a_limit_never_exceeds_the_one_in_force() -> None:
    """A task cannot give itself more than the account may have."""
    code = f"""
        import resource
        from treadle.host.usage import memory_limit
        resource.setrlimit(resource.RLIMIT_DATA, ({300 * MEGA}, {400 * MEGA}))
        with memory_limit({900 * MEGA}):
            say(resource.getrlimit(resource.RLIMIT_DATA))
    """
    with child(code) as limited:
        assert limited.hear() == str((300 * MEGA, 400 * MEGA))


def test_memory_of_a_process_is_that_of_its_family() -> None:
    """Programs that it has started count, pages of files do not; one that is gone has none."""
    code = f"""
        import subprocess
        other = subprocess.Popen([sys.executable, "-c", {BALLAST + "; print(1, flush=True); input()"!r}],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        other.stdout.readline()
        say(other.pid)
        hear()
    """
    with child(code) as parent:
        other = int(parent.hear())
        assert resident_bytes(other) > 100 * MEGA > resident_bytes(parent.pid)
        assert memory_of(parent.pid) > 100 * MEGA
        assert memory_of(parent.pid) < resident_bytes(parent.pid) + resident_bytes(other)
    assert memory_of(parent.pid) == 0
    assert usage_of(parent.pid) == Used(None, None)
    assert peak_resident(parent.pid) is None


def test_a_process_shows_what_it_has_used() -> None:
    """Memory and processor time of a process that lives, from outside."""
    with child("say(sum(range(10_000_000))); hear()") as other:
        other.hear()
        used = usage_of(other.pid)
        assert used.cpu is not None
        assert used.cpu > 50_000
        assert used.peak_rss is not None
        assert 5 * MEGA < used.peak_rss <= (peak_resident(other.pid) or 0)


def test_the_peak_of_an_ended_process_is_its_own() -> None:
    """Linux counts the peak of the process that started it as well: only more than that is known."""
    code = f"""
        import os, subprocess
        from treadle.host.usage import peak_resident, used_by
        {BALLAST}
        for program in ("pass", {BALLAST.replace("100", "200")!r}):
            other = subprocess.Popen([sys.executable, "-c", program])
            said = os.wait4(other.pid, 0)[2]
            say((used_by(said, peak_resident()).peak_rss is None, used_by(said, None).peak_rss > {100 * MEGA}))
    """
    with child(code) as parent:
        assert [parent.hear() for _ in range(2)] == ["(True, True)", "(False, True)"]


def test_a_peak_that_is_hardly_more_than_inherited_is_unknown() -> None:
    """Two readings of one memory differ by a little: the kernel adds its counters up only now and then."""
    said = SimpleNamespace(ru_maxrss=280_000, ru_utime=0.25, ru_stime=0.25)
    assert used_by(said, said.ru_maxrss * KILO - 4096) == (None, 500_000)
    assert used_by(said, 0) == (said.ru_maxrss * KILO, 500_000)


def test_this_process_knows_its_memory() -> None:
    """Its own memory is there; the count of memory kills is a number wherever there is one."""
    assert resident_bytes() > 5 * MEGA
    assert oom_kills() >= 0

