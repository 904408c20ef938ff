"""Processes: identity, fork hooks, signals, spawning."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading

import pytest

from host.children import PATIENCE, child
from treadle.host.process import (
    ProcessIdentity,
    account_name,
    forget_on_fork,
    host_name,
    is_gone,
    on_fork,
    own_identity,
    spawn_python,
    stop_signals,
)
from treadle.host.usage import resident_bytes


def test_this_process_is_alive() -> None:
    """Identity is stable and never counts as gone."""
    own = own_identity()
    assert own == own_identity()
    assert own.pid == os.getpid()
    assert own.started > 0
    assert own.boot_id
    assert own.namespace > 0
    assert not is_gone(own, own)


def test_an_ended_process_is_gone() -> None:
    """Alive and stopped are not gone; ended is."""
    code = """
        from treadle.host.process import own_identity
        own = own_identity()
        say(f"{own.pid} {own.started} {own.boot_id} {own.namespace}")
        hear()
    """
    own = own_identity()
    with child(code) as other:
        pid, started, boot_id, namespace = other.hear().split()
        identity = ProcessIdentity(
            pid=int(pid), started=int(started), boot_id=boot_id, namespace=int(namespace)
        )
        assert not is_gone(identity, own)
        os.kill(other.pid, signal.SIGSTOP)
        assert not is_gone(identity, own)
        other.kill()
        assert is_gone(identity, own)


def test_only_proof_counts() -> None:
    """Another boot or another start proves the end; another namespace or missing facts prove nothing."""
    own = own_identity()
    assert is_gone(dataclasses.replace(own, boot_id="another"), own)
    assert is_gone(dataclasses.replace(own, started=own.started + 1), own)
    assert not is_gone(dataclasses.replace(own, boot_id=""), own)
    assert not is_gone(dataclasses.replace(own, started=0), own)
    assert not is_gone(dataclasses.replace(own, namespace=1, pid=2**22 + 1), own)
    assert is_gone(dataclasses.replace(own, pid=2**22 + 1), own)
    assert not is_gone(dataclasses.replace(own, pid=0, started=0), own)


def test_fork_hooks_run_around_a_fork_while_their_owner_lives() -> None:
    """Before runs newest first, after oldest first; dead, forgotten and failing owners stop nobody."""
    code = """
        import gc, logging, os
        from treadle.host.process import forget_on_fork, on_fork
        logging.disable()
        told = []
        class Owner:
            def __init__(self, name):
                self.name = name
                on_fork(self, before=self.before, after_in_parent=self.parent, after_in_child=self.child)
            def before(self):
                told.append("before " + self.name)
                if self.name == "bad": raise RuntimeError("told you")
            def parent(self): told.append("parent " + self.name)
            def child(self): told.append("child " + self.name)
        one, bad, gone, forgotten, two = map(Owner, ["one", "bad", "gone", "forgotten", "two"])
        forget_on_fork(forgotten)
        forget_on_fork(forgotten)
        del gone
        gc.collect()
        if os.fork() == 0:
            say(", ".join(told))
            os._exit(0)
        os.wait()
        say(", ".join(told))
    """
    before = "before two, before bad, before one"
    with child(code) as other:
        assert other.hear() == f"{before}, child one, child bad, child two"
        assert other.hear() == f"{before}, parent one, parent bad, parent two"


def test_a_forked_child_can_fork_and_lock_again() -> None:
    """The lock that keeps descriptors and hooks together is free on both sides of a fork."""
    code = """
        import os, threading
        from treadle.host.process import no_fork
        def use():
            with no_fork(): pass
        def check(name):
            thread = threading.Thread(target=use)
            thread.start()
            thread.join(20)
            say(name if not thread.is_alive() else "stuck")
        if os.fork() == 0:
            check("child")
            if os.fork() == 0:
                check("grandchild")
                os._exit(0)
            os.wait()
            os._exit(0)
        os.wait()
        check("parent")
    """
    with child(code) as other:
        assert [other.hear() for _ in range(3)] == ["child", "grandchild", "parent"]


def test_a_fork_hook_must_be_a_bound_method() -> None:
    """A function could not be held weakly through its owner."""

    class Owner:
        pass

    owner = Owner()
    with pytest.raises(TypeError):
        on_fork(owner, before=lambda: None)
    forget_on_fork(owner)


def test_stop_signals_call_back_and_the_old_handlers_return() -> None:
    """Both signals reach the callback; afterwards everything is as before."""
    heard: list[int] = []
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals(heard.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_stop_signals_come_back_after_an_error() -> None:
    """An exception inside the block restores the handlers too."""
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        with stop_signals(lambda _: None):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert signal.getsignal(signal.SIGTERM) == before


def test_stop_signals_change_nothing_in_another_thread() -> None:
    """Outside the main thread the handlers stay as they are."""
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def work() -> None:
        with stop_signals(lambda _: None):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_a_spawned_python_inherits_no_descriptor() -> None:
    """The child runs this interpreter and sees none of our files, even inheritable ones."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    code = f"import os, sys; sys.exit(any(fd == {writing} for fd in map(int, os.listdir('/proc/self/fd'))))"
    assert spawn_python(["-c", code]).wait(PATIENCE) == 0
    os.close(reading)
    os.close(writing)
    with child("say(sys.executable)") as other:
        assert other.hear() == sys.executable


def test_code_in_a_forked_child_is_refused() -> None:
    """preexec_fn would run Python between fork and exec."""
    with pytest.raises(ValueError, match="preexec_fn"):
        spawn_python(["-c", "pass"], preexec_fn=print)


def test_the_process_knows_its_figures() -> None:
    """Memory, host and account are real values."""
    assert resident_bytes() > 1_000_000
    assert account_name().endswith(f"@{host_name()}")
